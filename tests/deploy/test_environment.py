"""The Python environment that start.sh finds or creates."""

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
    """An index of two wheels. A download of the second sets `requested` and waits for `resume`."""
    requested, resume = threading.Event(), threading.Event()

    def stall(path: str) -> None:
        if "tiny_package" in path:
            requested.set()
            resume.wait(60)

    with package_index(tmp_path / "index", stall) as index:
        index.requested, index.resume = requested, resume
        for name in ("pydantic", "tiny-package"):
            index.add(name, "1.0")
        yield index
        resume.set()


def test_interrupted_install_is_resumed(program, index, tmp_path):
    requirements, script = tmp_path / "requirements.txt", tmp_path / "set-up.sh"
    requirements.write_text("tiny-package\n")
    script.write_text(f"""
        set -euo pipefail
        source '{ROOT}/vllm_space/environment.sh'
        TORCH_CPU_INDEX={index.url}
        trap 'exit 143' TERM
        set -m
        trap 'for job in $(jobs -p); do kill -TERM -- -$job; done' EXIT
        choose_environment small '{requirements}'
        fill_environment
        "$PYTHON" -c 'import tiny_package; print("installed")'
    """)

    def set_up():
        return program(
            ["bash", str(script)],
            PIP_CONFIG_FILE=os.devnull,
            PIP_INDEX_URL=index.url,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
            PYTHON="",
        )

    first = set_up()
    assert index.requested.wait(60), first.output
    processes = first.processes()
    first.process.terminate()
    assert first.process.wait(10) == 143
    wait_for(lambda: not alive(processes), 5, "pip's end")

    index.resume.set()
    second = set_up()
    assert second.process.wait(60) == 0, second.output
    assert "installed" in second.output

    third = set_up()
    assert third.process.wait(60) == 0
    assert third.output.strip() == "installed"  # nothing else to do or to say


def test_complete_active_environment_is_used(tmp_path):
    requirements, cache = tmp_path / "requirements.txt", tmp_path / "cache"
    requirements.write_text("pip\n")
    script = f"""
        source '{ROOT}/vllm_space/environment.sh'
        choose_environment x '{requirements}'
        fill_environment
        echo $PYTHON
    """
    env = {
        "PATH": os.environ["PATH"],
        "VIRTUAL_ENV": sys.prefix,
        "XDG_CACHE_HOME": str(cache),
    }
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=env
    )
    assert Path(done.stdout.strip()).parent == Path(sys.prefix) / "bin"
    assert not cache.exists()


def test_remote_engine_needs_no_vllm(program, tmp_path):
    """With MODEL_URL, nothing imports vllm: the import would end the app here."""
    (tmp_path / "vllm.py").write_text("raise SystemExit('vllm was imported')")
    url = f"http://127.0.0.1:{(port := free_port())}"
    running = program(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port)],
        MODEL_URL="http://127.0.0.1:9",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 60, "the page")
    assert running.process.poll() is None
