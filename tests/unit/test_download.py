"""download.py: the real huggingface_hub downloads weights from a local server."""

import sys

import pytest

from support.scripted_hub import hub, model

SCRIPT = """
import threading
from vllm_space import settings
from vllm_space.engine import download
download.PROGRESS_EVERY = 0
download.fetch_in_background(settings.load([]), "org/name", print)
while (threads := set(threading.enumerate()) - {threading.main_thread()}):
    threads.pop().join()
"""
SHARDS = {
    f"model-0000{number}-of-00006.safetensors": bytes([number]) * 2**20 for number in range(1, 7)
}
OTHER_FILES = {
    "config.json": b"{}",
    "pytorch_model.bin": b"x" * 100,
    "original/model.safetensors": b"y" * 100,
}


@pytest.fixture
def fetch(program, tmp_path):
    """fetch(files, NAME="value") -> (downloaded files, lines of output)."""

    def run(files: dict[str, bytes], **env: str) -> tuple[dict[str, bytes], list[str]]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        with hub(model("org/name", siblings=siblings, content=files)) as url:
            env = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)} | env
            running = program([sys.executable, "-c", SCRIPT], **env)
            assert running.process.wait(60) == 0, running.output
        paths = tmp_path.glob("**/snapshots/*/*")
        return {path.name: path.read_bytes() for path in paths}, running.output.splitlines()

    return run


def test_only_needed_weights_are_downloaded(fetch):
    downloaded, lines = fetch(SHARDS | OTHER_FILES)
    assert downloaded == SHARDS
    assert lines[-1] == "Downloading weights: 6 of 6 MiB"
    assert fetch(SHARDS | OTHER_FILES) == (SHARDS, [])  # they are in the cache


@pytest.mark.parametrize(
    ("files", "env"),
    [
        pytest.param(SHARDS | {"consolidated.safetensors": b"z"}, {}, id="two formats"),
        pytest.param(SHARDS, {"ENGINE_ARGS": "--load-format dummy"}, id="no weights needed"),
        pytest.param(SHARDS, {"ENGINE_ARGS": "--download-dir=elsewhere"}, id="another folder"),
        pytest.param(SHARDS, {"HF_ENDPOINT": "http://127.0.0.1:9"}, id="Hub down"),
        pytest.param(SHARDS, {"HF_HUB_OFFLINE": "1"}, id="offline"),
        pytest.param(SHARDS, {"VLLM_USE_MODELSCOPE": "1"}, id="ModelScope"),
    ],
)
def test_unclear_cases_are_left_to_vllm(fetch, files, env):
    assert fetch(files, **env) == ({}, [])
