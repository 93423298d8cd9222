"""The engine fetches nothing that a request names: vLLM's own parser and media connector, with our command line."""

import subprocess
import sys

import pytest

from support.scripted_engine import ScriptedEngine
from vllm_space import client, settings
from vllm_space.engine import command

FETCH = """
import sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.multimodal.media import MediaConnector
from vllm.utils.argparse_utils import FlexibleArgumentParser

*line, site, picture = sys.argv[1:]
args, _ = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(line)
media = MediaConnector(
    allowed_local_media_path=args.allowed_local_media_path, allowed_media_domains=args.allowed_media_domains
)
for url in (site, site.replace("http", "HTTP"), site.replace("//", "//none.invalid@"), "file:///etc/hostname"):
    try:
        media.fetch_image(url)
    except (ValueError, RuntimeError) as error:
        print("refused", error)
print(media.fetch_image(picture).size)
"""


@pytest.mark.vllm
def test_the_engine_fetches_nothing_that_a_request_names():
    """The server would notice."""
    with ScriptedEngine().running() as site:
        line = [
            *command.command_line(settings.Settings(_env_file=None), [])[3:],
            f"{site.url}/picture.png",
            client.TEST_IMAGE,
        ]
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *line], capture_output=True, text=True, timeout=120
        )
        assert done.stdout.count("refused") == 4, done.stderr
        assert done.stdout.splitlines()[-1] == "(64, 64)"
        assert site.asked == []
