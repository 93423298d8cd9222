"""The download of weights beside vLLM's start: the real huggingface_hub, from a local server that plays the Hub."""

import sys

import pytest

from support.scripted_hub import hub, model

FETCH = """
import threading
from vllm_space import settings
from vllm_space.engine import download
download.PROGRESS_EVERY = 0
download.fetch_in_background(settings.load([]), "org/name", print)
while others := [one for one in threading.enumerate() if one is not threading.main_thread()]:
    others[0].join()
"""
SHARDS = {
    f"model-0000{number}-of-00006.safetensors": bytes([number]) * 2**20 for number in range(1, 7)
}
OTHERS = {
    "config.json": b"{}",
    "pytorch_model.bin": b"x" * 100,
    "original/model.safetensors": b"y" * 100,
}


@pytest.fixture
def fetch(program, tmp_path):
    """fetch(files, ENGINE_ARGS=...) -> (the files that arrived, what was said)."""

    def run(files: dict[str, bytes], **env: str) -> tuple[dict[str, bytes], list[str]]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        with hub(model("org/name", siblings=siblings, content=files)) as address:
            here = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
            running = program([sys.executable, "-c", FETCH], **here | env)
            assert running.process.wait(60) == 0, running.output
        arrived = {path.name: path.read_bytes() for path in tmp_path.glob("**/snapshots/*/*")}
        return arrived, running.output.splitlines()

    return run


def test_the_weights_that_vllm_loads_are_fetched_and_nothing_else(fetch):
    arrived, said = fetch(SHARDS | OTHERS)
    assert arrived == SHARDS
    assert said[-1] == "Downloading weights: 6 of 6 MiB"
    assert fetch(SHARDS | OTHERS) == (SHARDS, [])  # they are here


@pytest.mark.parametrize(
    ("files", "env"),
    [
        (SHARDS | {"consolidated.safetensors": b"z"}, {}),
        (SHARDS, {"ENGINE_ARGS": "--load-format dummy"}),
        (SHARDS, {"ENGINE_ARGS": "--download-dir=elsewhere"}),
        (SHARDS, {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        (SHARDS, {"HF_HUB_OFFLINE": "1"}),
    ],
    ids=["in two forms", "no weights", "kept elsewhere", "no Hub", "offline"],
)
def test_what_is_not_plain_to_see_is_left_to_vllm(fetch, files, env):
    assert fetch(files, **env) == ({}, [])
