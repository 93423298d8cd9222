"""start.sh and `python app.py`: set-up, phases, supervision, and that nothing is left behind.

Around a stand-in for the engine where it is about start.sh; engine/test_space.py runs the real one.
"""

import re
import shutil
import signal
import stat
import sys

import gradio_client
import psutil
import pytest
import requests

from support.programs import (
    ROOT,
    STAND_IN,
    STAND_IN_ENGINE,
    START,
    TESTS,
    alive,
    free_port,
    wait_for,
)
from vllm_space import settings
from vllm_space.engine import supervisor
from vllm_space.engine.process import EngineProcess

pytestmark = pytest.mark.vllm  # start.sh looks for it


@pytest.fixture
def start(program):
    """start(...) -> (Program, address): start.sh with the stand-in engine on free ports."""

    def run(command=START, cwd=ROOT, **env):
        port = free_port()
        engine = STAND_IN_ENGINE | {"ENGINE_PORT": str(free_port())}
        return program(
            [*command, "--port", str(port)], cwd=cwd, **engine | env
        ), f"http://127.0.0.1:{port}"

    return run


def test_an_unknown_name_is_a_warning(start):
    running, _ = start(APP_TITEL="x", SCRIPT="die", LAST_WORDS="x")
    running.process.wait(60)
    assert (
        "WARNING: APP_TITEL is set but nothing reads it; did you mean APP_TITLE?" in running.output
    )


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
    whole, of_vllm = map(
        float,
        re.search(r"Up after ([\d.]+) s, ([\d.]+) s of them vLLM's\.", running.output).groups(),
    )
    rows = dict(
        reversed(row)
        for row in re.findall(r"^ +([\d.]+) s  #+ +(.+)$", running.output, re.MULTILINE)
    )
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
    assert any("start.sh" in " ".join(one.cmdline()) for one in running.processes())


def test_it_runs_from_any_folder_in_a_path_with_spaces_read_only(start, tmp_path):
    copy = tmp_path / "my own space"
    ignore = shutil.ignore_patterns(".git", "demo_model", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    for one in [copy, *copy.rglob("*")]:
        one.chmod(
            one.stat().st_mode & ~(stat.S_IWUSR | stat.S_IXUSR if one.is_file() else stat.S_IWUSR)
        )
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
    family = running.processes()
    assert len(family) >= 4
    running.process.send_signal(number)
    assert running.process.wait(10) == 128 + number
    assert alive(family) == []
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=2)


def test_kill_9_of_any_part_leaves_nothing_of_the_rest(start, tmp_path):
    for part in ("start.sh", "vllm_space.engine", "app.py"):
        running, url = start(TMPDIR=str(tmp_path))  # a killed start.sh cannot remove its folder
        running.wait_until_up(url, 60)
        family = running.processes()
        next(one for one in family if any(part in word for word in one.cmdline())).kill()
        wait_for(lambda family=family: not alive(family), 12, f"the end after kill -9 of {part}")


def test_an_engine_that_dies_is_restarted_and_the_page_goes_on(start):
    running, url = start()
    running.wait_until_up(url, 60)
    client = gradio_client.Client(url, verbose=False)
    running.part(STAND_IN).kill()
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 10, "503")
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).ok, 30, "the restart")
    assert client.predict("Hi", api_name="/chat") == "Hello"
    assert "Restart 1 of 3" in running.output


def test_an_engine_that_hangs_counts_as_dead(tmp_path, monkeypatch):
    """Alive, its port open, and silent: with a minute cut to two seconds."""
    monkeypatch.setattr(supervisor, "HUNG_AFTER", 2)
    monkeypatch.setattr(supervisor, "HEALTH_EVERY", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    config = settings.Settings(
        _env_file=None, engine_module=STAND_IN, engine_port=free_port(), engine_run_dir=tmp_path
    )
    running = EngineProcess(config, tmp_path, [])
    try:
        wait_for(running.healthy, 30, "the engine")
        family = [
            psutil.Process(running.process.pid),
            *psutil.Process(running.process.pid).children(),
        ]
        running.process.send_signal(signal.SIGSTOP)
        assert supervisor._watch(running) == "it answered nothing for 2 s"
    finally:
        running.stop()
    assert alive(family) == []


def test_too_many_deaths_end_it_with_the_cause(start):
    running, url = start(MAX_RESTARTS="0")
    running.wait_until_up(url, 60)
    running.part(STAND_IN).kill()
    assert running.process.wait(30) == 1
    assert (
        "ERROR: vLLM died 1 times in a row; the last time: the system killed it" in running.output
    )


def test_a_proxy_of_the_owners_stands_before_nothing_on_this_machine(start):
    dead = "http://127.0.0.1:9"
    running, url = start(
        http_proxy=dead, https_proxy=dead, HTTP_PROXY=dead, HTTPS_PROXY=dead, no_proxy="a.example"
    )
    running.wait_until_up(url, 60)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"


@pytest.mark.parametrize("zero_gpu", ["", "true"])
def test_a_space_without_a_gpu_gets_a_page_and_no_crash_loop(start, zero_gpu):
    running, url = start(
        [sys.executable, str(ROOT / "app.py")], SPACE_ID="me/my-space", SPACES_ZERO_GPU=zero_gpu
    )
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 60, "the page")
    assert "No model is running" in requests.get(f"{url}/healthz", timeout=5).json()["reason"]
    assert (
        "https://huggingface.co/spaces/me/my-space/settings"
        in requests.get(f"{url}/config", timeout=5).text
    )
    assert not any(STAND_IN in one.cmdline() for one in running.processes())
