"""The Python environment: which one start.sh uses, how it makes one, and what is not needed in it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from support.package_index import package_index
from support.programs import ROOT, alive, free_port, wait_for


@pytest.fixture
def index(tmp_path):
    """A package index with two small wheels. The download of the second sets `index.asked` and waits for `go_on`."""
    asked, go_on = threading.Event(), threading.Event()

    def stall(path: str) -> None:
        if "tiny_package" in path:
            asked.set()
            go_on.wait(60)

    with package_index(tmp_path / "index", stall) as index:
        index.asked, index.go_on = asked, go_on
        for name in ("pydantic-settings", "tiny-package"):
            index.add(name, "1.0")
        yield index
        go_on.set()


def test_an_interrupted_install_ends_at_once_and_the_next_start_finishes_it(
    program, index, tmp_path
):
    (tmp_path / "requirements.txt").write_text("tiny-package\n")
    (tmp_path / "set-up.sh").write_text(f"""
        set -euo pipefail
        source '{ROOT}/vllm_space/environment.sh'
        TORCH_CPU_INDEX={index.url}
        trap 'exit 143' TERM
        set -m
        trap 'for job in $(jobs -p); do kill -TERM -- -$job; done' EXIT
        choose_environment small '{tmp_path}/requirements.txt'
        fill_environment
        "$PYTHON" -c 'import tiny_package; print("installed")'
    """)
    env = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHON": "",
    }
    first = program(["bash", str(tmp_path / "set-up.sh")], **env)
    assert index.asked.wait(60), first.output
    family = first.processes()
    first.process.terminate()
    assert first.process.wait(10) == 143
    wait_for(lambda: not alive(family), 5, "pip's end")

    index.go_on.set()
    second = program(["bash", str(tmp_path / "set-up.sh")], **env)
    assert second.process.wait(60) == 0, second.output
    assert "installed" in second.output

    third = program(["bash", str(tmp_path / "set-up.sh")], **env)
    assert third.process.wait(60) == 0
    assert third.output.strip() == "installed"  # nothing to do, nothing said


def test_an_active_environment_that_has_everything_is_used_untouched(tmp_path):
    (tmp_path / "requirements.txt").write_text("pip\n")
    script = f"source '{ROOT}/vllm_space/environment.sh'; choose_environment x '{tmp_path}/requirements.txt'"
    done = subprocess.run(
        ["bash", "-c", script + "; fill_environment; echo $PYTHON"],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PATH": os.environ["PATH"],
            "VIRTUAL_ENV": sys.prefix,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )
    assert Path(done.stdout.strip()).parent == Path(sys.prefix) / "bin"
    assert not (tmp_path / "cache").exists()


def test_a_remote_engine_needs_no_vllm_here(program, tmp_path):
    """With MODEL_URL nothing imports vllm: an import of it would end the app here."""
    (tmp_path / "vllm.py").write_text("raise SystemExit('vllm was imported')")
    running = program(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port := free_port())],
        MODEL_URL="http://127.0.0.1:9",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    wait_for(
        lambda: requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 503,
        60,
        "the page",
    )
    assert running.process.poll() is None
