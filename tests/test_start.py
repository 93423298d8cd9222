"""start.sh and `python app.py`: set-up, phases, supervision, and that nothing is left behind.

Around a stand-in for the engine where it is about start.sh; test_space.py runs the real one.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gradio_client
import psutil
import pytest
import requests

from conftest import ROOT, free_port, wait_for
from vllm_space import engine, settings

TESTS = str(ROOT / "tests")
START = ["bash", str(ROOT / "start.sh")]


@pytest.fixture
def start(program):
    """start(...) -> (Program, address): start.sh with the stand-in engine on free ports."""

    def run(command=START, cwd=ROOT, **env):
        port = free_port()
        engine = {"ENGINE_MODULE": "scripted_api_server", "ENGINE_PORT": str(free_port()), "PYTHONPATH": TESTS}
        return program([*command, "--port", str(port)], cwd=cwd, **engine | env), f"http://127.0.0.1:{port}"

    return run


def test_an_unknown_name_is_a_warning(start):
    running, _ = start(APP_TITEL="x", SCRIPT="die", LAST_WORDS="x")
    running.process.wait(60)
    assert "WARNING: APP_TITEL is set but nothing reads it; did you mean APP_TITLE?" in running.output


def test_help_names_the_flags_and_starts_nothing(program):
    running = program([*START, "--help"])
    assert running.process.wait(10) == 0
    for flag in ("--host", "--port", "--model-url", "--share"):
        assert flag in running.output


def test_the_last_lines_of_a_dead_engine_are_its_own(start):
    noise = 'nanobind: leaked 2 types!\n - leaked type "a"\n - ... skipped remainder\n' * 50
    running, _ = start(SCRIPT="die", LAST_WORDS=f"ERROR the cause of it\n{noise}")
    assert running.process.wait(60) == 1
    assert "    ERROR the cause of it\n" in running.output
    assert "nanobind" not in running.output


def test_a_start_that_takes_too_long_is_ended(start):
    running, _ = start(SCRIPT="slow", STARTUP_TIMEOUT="2")
    assert running.process.wait(60) == 1
    assert "raise STARTUP_TIMEOUT" in running.output.strip().splitlines()[-1]
    assert "vLLM is loading the model (" in running.output


def test_the_phases_of_the_start_are_told_at_its_end(start, tmp_path):
    running, url = start(TMPDIR=str(tmp_path))
    running.wait_until_up(url, 60)
    wait_for(lambda: "of them vLLM's.\n" in running.output, 10, "the phases")
    whole, of_vllm = map(float, re.search(r"Up after ([\d.]+) s, ([\d.]+) s of them vLLM's\.", running.output).groups())
    rows = dict(reversed(row) for row in re.findall(r"^ +([\d.]+) s  #+ +(.+)$", running.output, re.MULTILINE))
    assert {"checking the settings", "checking the model", "vLLM: starting Python"} <= set(rows)
    # This one is noted, but not shown where the page was there before the engine, and so took no time.
    (noted,) = tmp_path.glob("vllm-space.*/phases")
    assert noted.read_text().endswith(" opening the page\n")
    assert sum(map(float, rows.values())) == pytest.approx(whole, abs=0.5)
    assert 0 < of_vllm < whole


def test_python_app_py_alone_serves_through_start_sh(start):
    running, url = start([sys.executable, str(ROOT / "app.py")])
    running.wait_until_up(url, 60)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"
    assert any("start.sh" in " ".join(one.cmdline()) for one in running.family())


def test_it_runs_from_any_folder_in_a_path_with_spaces_read_only(start, tmp_path):
    copy = tmp_path / "my own space"
    ignore = shutil.ignore_patterns(".git", "demo_model", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    for one in [copy, *copy.rglob("*")]:
        one.chmod(one.stat().st_mode & ~(stat.S_IWUSR | stat.S_IXUSR if one.is_file() else stat.S_IWUSR))
    try:
        running, url = start(["bash", str(copy / "start.sh")], cwd=tmp_path)
        running.wait_until_up(url, 60)
    finally:
        running.stop()
        for one in [copy, *copy.rglob("*")]:
            one.chmod(one.stat().st_mode | stat.S_IWUSR)


@pytest.mark.parametrize("phase", ["vLLM starts", "serving", "serving, deaf to SIGTERM"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_process_and_no_port_within_10_s(start, phase, number):
    running, url = start(SCRIPT={"vLLM starts": "slow", "serving": "ready"}.get(phase, "deaf"))
    if phase == "vLLM starts":
        wait_for(lambda: "vLLM is" in running.output, 30, "the engine's start")
    else:
        running.wait_until_up(url, 60)
    family = running.family()
    assert len(family) >= 4
    running.process.send_signal(number)
    assert running.process.wait(10) == 128 + number
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=2)


def test_kill_9_of_any_part_leaves_nothing_of_the_rest(start, tmp_path):
    for part in ("start.sh", "vllm_space.engine", "app.py"):
        running, url = start(TMPDIR=str(tmp_path))  # a killed start.sh cannot remove its folder
        running.wait_until_up(url, 60)
        family = running.family()
        next(one for one in family if any(part in word for word in one.cmdline())).kill()

        def gone(family=family):
            return not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

        wait_for(gone, 12, f"the end after kill -9 of {part}")


def test_an_engine_that_dies_is_restarted_and_the_page_goes_on(start):
    running, url = start()
    running.wait_until_up(url, 60)
    client = gradio_client.Client(url, verbose=False)
    next(one for one in running.family() if "scripted_api_server" in one.cmdline()).kill()
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 10, "503")
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).ok, 30, "the restart")
    assert client.predict("Hi", api_name="/chat") == "Hello"
    assert "Restart 1 of 3" in running.output


def test_an_engine_that_hangs_counts_as_dead(tmp_path, monkeypatch):
    """Alive, its port open, and silent: with a minute cut to two seconds."""
    monkeypatch.setattr(engine, "HUNG_AFTER", 2)
    monkeypatch.setattr(engine, "HEALTH_EVERY", 0.5)
    monkeypatch.setenv("PYTHONPATH", TESTS)
    config = settings.Settings(
        _env_file=None, engine_module="scripted_api_server", engine_port=free_port(), engine_run_dir=tmp_path
    )
    running = engine.Engine(config, [])
    try:
        wait_for(running.healthy, 30, "the engine")
        family = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children()]
        running.process.send_signal(signal.SIGSTOP)
        assert engine._watch(running) == "it answered nothing for 2 s"
    finally:
        running.stop()
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def test_too_many_deaths_end_it_with_the_cause(start):
    running, url = start(MAX_RESTARTS="0")
    running.wait_until_up(url, 60)
    next(one for one in running.family() if "scripted_api_server" in one.cmdline()).kill()
    assert running.process.wait(30) == 1
    assert "ERROR: vLLM died 1 times in a row; the last time: the system killed it" in running.output


def test_a_proxy_of_the_owners_stands_before_nothing_on_this_machine(start):
    dead = "http://127.0.0.1:9"
    running, url = start(http_proxy=dead, https_proxy=dead, HTTP_PROXY=dead, HTTPS_PROXY=dead, no_proxy="a.example")
    running.wait_until_up(url, 60)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"


@pytest.mark.parametrize("zero_gpu", ["", "true"])
def test_a_space_without_a_gpu_gets_a_page_and_no_crash_loop(start, zero_gpu):
    running, url = start([sys.executable, str(ROOT / "app.py")], SPACE_ID="me/my-space", SPACES_ZERO_GPU=zero_gpu)
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 60, "the page")
    assert "There is no engine" in requests.get(f"{url}/healthz", timeout=5).json()["reason"]
    assert "https://huggingface.co/spaces/me/my-space/settings" in requests.get(f"{url}/config", timeout=5).text
    assert not any("scripted_api_server" in one.cmdline() for one in running.family())


def test_a_remote_engine_needs_no_vllm_here(start, tmp_path):
    """With MODEL_URL nothing imports vllm: an import of it would end the app here."""
    (tmp_path / "vllm.py").write_text("raise SystemExit('vllm was imported')")
    running, url = start(
        [sys.executable, str(ROOT / "app.py")], MODEL_URL="http://127.0.0.1:9", PYTHONPATH=f"{tmp_path}:{ROOT}"
    )
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 60, "the page")
    assert running.process.poll() is None


# -- the environment that start.sh makes, from a package index on this machine ----------------------------------------


@pytest.fixture
def index(tmp_path):
    """A package index (PEP 503) with two small wheels; `index.stall` holds back the download of the second."""
    root = tmp_path / "index"
    for name in ("pydantic_settings", "tiny_package"):
        folder = root / "simple" / name.replace("_", "-")
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if "tiny_package" in self.path:
                server.asked.set()
                server.go_on.wait(60)
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    server.daemon_threads = True
    server.asked, server.go_on = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/simple/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def test_an_interrupted_install_ends_at_once_and_the_next_start_finishes_it(program, index, tmp_path):
    (tmp_path / "requirements.txt").write_text("tiny-package\n")
    (tmp_path / "set-up.sh").write_text(f"""
        set -euo pipefail
        source '{ROOT}/vllm_space/environment.sh'
        TORCH_CPU_INDEX={index.url}
        trap 'exit 143' TERM
        set -m
        trap 'for job in $(jobs -p); do kill -TERM -- -$job; done' EXIT
        choose_environment small "tiny_package pydantic_settings" '{tmp_path}/requirements.txt'
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
    family = first.family()
    first.process.terminate()
    assert first.process.wait(10) == 143
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in family), 5, "pip's end")

    index.go_on.set()
    second = program(["bash", str(tmp_path / "set-up.sh")], **env)
    assert second.process.wait(60) == 0, second.output
    assert "installed" in second.output

    third = program(["bash", str(tmp_path / "set-up.sh")], **env)
    assert third.process.wait(60) == 0
    assert third.output.strip() == "installed"  # nothing to do, nothing said


def test_an_active_environment_that_has_everything_is_used_untouched(tmp_path):
    (tmp_path / "requirements.txt").write_text("tiny-package\n")
    script = f"source '{ROOT}/vllm_space/environment.sh'; choose_environment x 'json pip' '{tmp_path}/requirements.txt'"
    done = subprocess.run(
        ["bash", "-c", script + "; fill_environment; echo $PYTHON"], capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "VIRTUAL_ENV": sys.prefix, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == Path(sys.prefix) / "bin"
    assert not (tmp_path / "cache").exists()
