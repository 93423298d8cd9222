"""vLLM downloads no media that a request names. Runs its media connector with our command line."""

import subprocess
import sys

import pytest

from support.scripted_engine import ScriptedEngine
from vllm_space import settings
from vllm_space.engine import command
from vllm_space.tokenizer import TEST_IMAGE

FETCH = """
import sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.multimodal.media import MediaConnector
from vllm.utils.argparse_utils import FlexibleArgumentParser

*flags, url, image = sys.argv[1:]
args, _ = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(flags)
media = MediaConnector(
    allowed_local_media_path=args.allowed_local_media_path,
    allowed_media_domains=args.allowed_media_domains,
)
disguised = url.replace("http", "HTTP"), url.replace("//", "//none.invalid@")
for address in (url, *disguised, "file:///etc/hostname"):
    try:
        media.fetch_image(address)
    except (ValueError, RuntimeError) as error:
        print("rejected:", error)
print(media.fetch_image(image).size)
"""


@pytest.mark.vllm
def test_requests_cannot_make_vllm_download():
    flags = command.command_line(settings.Settings(_env_file=None), [])[3:]
    with ScriptedEngine().running() as site:
        program = [sys.executable, "-c", FETCH, *flags, f"{site.url}/image.png", TEST_IMAGE]
        done = subprocess.run(program, capture_output=True, text=True, timeout=120)
        assert done.stdout.count("rejected:") == 4, done.stderr
        assert done.stdout.splitlines()[-1] == "(64, 64)"
        assert site.request_lines == []
