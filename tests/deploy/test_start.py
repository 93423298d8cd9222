"""start.sh and `python app.py`: the log, supervision and restarts, and that nothing is left behind.

With a scripted engine; engine/test_space.py runs the real one.
"""

import re
import signal
import sys

import gradio_client
import pytest
import requests

from support.programs import (
    ROOT,
    STAND_IN,
    STAND_IN_ENGINE,
    START,
    alive,
    free_port,
    wait_for,
)
from support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.vllm  # start.sh requires it to be installed

APP = [sys.executable, str(ROOT / "app.py")]
DEAD_URL = "http://127.0.0.1:9"


@pytest.fixture
def start(program):
    """start(NAME="value") -> (Program, URL): start.sh with a scripted engine on free ports."""

    def run(command=START, cwd=ROOT, **env):
        port = free_port()
        env = STAND_IN_ENGINE | {"ENGINE_PORT": str(free_port())} | env
        running = program([*command, "--port", str(port)], cwd=cwd, **env)
        return running, f"http://127.0.0.1:{port}"

    return run


def last_line(running, start="") -> str:
    """The last line of the log, once it starts with `start`."""

    def line() -> str:
        lines = running.output.splitlines()
        return lines[-1] if lines and lines[-1].startswith(start) else ""

    return wait_for(line, 60, f"a line that starts with {start!r}")


# -- the log -------------------------------------------------------------------------------


def test_unknown_variable_is_a_warning(start):
    running, _ = start(APP_TITEL="x", SCRIPT="die", LAST_WORDS="x")
    running.process.wait(60)
    warning = "WARNING: APP_TITEL is set, but there is no such variable. Did you mean APP_TITLE?"
    assert warning in running.output


def test_help_lists_flags_and_exits(program):
    running = program([*START, "--help"])
    assert running.process.wait(10) == 0
    for flag in ("--host", "--port", "--model-url", "--share"):
        assert flag in running.output


def test_log_has_one_line_for_each_phase(start):
    running, url = start()
    lines = [last_line(running, "Ready"), *running.output.splitlines()][1:]
    assert lines[0] == "Checking vllm-space-demo (demo model: no GPU found)"
    assert re.fullmatch(r"vLLM is starting Python \(\d+ s\)", lines[1])
    assert re.fullmatch(r"vLLM is ready \(\d+ s\)", lines[-2])
    assert len(lines) <= 5  # the script may also be seen loading the model
    match = re.fullmatch(
        rf"Ready at {url} in ([\d.]+) s \(vLLM: ([\d.]+) s\) · "
        r"model vllm-space-demo \(demo model: no GPU found\) · "
        r"sign-in: none \(open to everyone\) · API: off \(API_KEYS not set\)",
        lines[-1],
    )
    total, vllm = map(float, match.groups())
    assert 0 < vllm < total


def test_last_line_says_who_can_use_it(start):
    with ScriptedEngine().running() as engine:
        running, url = start(
            MODEL_URL=engine.url, APP_USERNAME="alice", APP_PASSWORD="right", API_KEYS="abc,x:def"
        )
        assert last_line(running, "Ready") == (
            f"Ready at {url} · model scripted (served at MODEL_URL) · sign-in: password · "
            "API: on (2 keys)"
        )
    assert len(running.output.splitlines()) == 1


def test_last_line_admits_a_server_is_down(start):
    running, url = start(MODEL_URL=DEAD_URL, API_KEYS="abc")
    line = last_line(running, "Page open")
    assert line.startswith(f"Page open at {url} · no model yet: see the warning above · ")
    assert line.endswith("API: on (1 key)")
    assert "The model server cannot be reached" in running.output.splitlines()[-2]
    for _ in range(3):
        requests.get(f"{url}/healthz", timeout=5)
    assert running.output.count("cannot be reached") == 1


def test_failed_public_link_is_explained(start):
    """By Gradio, without its other hints. The proxy keeps it from downloading frpc."""
    with ScriptedEngine().running() as engine:
        command = [*START, "--share"]
        running, _ = start(command, MODEL_URL=engine.url, https_proxy=DEAD_URL)
        last_line(running, "Ready")
    assert "Could not create share link." in running.output
    assert "share=True" not in running.output


def test_dead_engines_last_lines_are_shown(start):
    noise = 'nanobind: leaked 2 types!\n - leaked type "a"\n - ... skipped remainder\n' * 50
    running, _ = start(SCRIPT="die", LAST_WORDS=f"ERROR the cause of it\n{noise}")
    assert running.process.wait(60) == 1
    assert "    ERROR the cause of it\n" in running.output
    assert "nanobind" not in running.output


def test_slow_start_times_out(start):
    running, _ = start(SCRIPT="slow", STARTUP_TIMEOUT="2")
    assert running.process.wait(60) == 1
    assert "raise STARTUP_TIMEOUT" in running.output.splitlines()[-1]
    assert "vLLM is loading the model (" in running.output


# -- where it runs -------------------------------------------------------------------------


def test_app_py_runs_start_sh(start):
    running, url = start(APP)
    running.wait_until_up(url, 60)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"
    assert running.part("start.sh")


def test_proxy_is_not_used_for_this_machine(start):
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD_URL)
    running, url = start(**proxies, no_proxy="a.example")
    running.wait_until_up(url, 60)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"


@pytest.mark.parametrize("zero_gpu", ["", "true"])
def test_space_without_gpu_shows_a_page(start, zero_gpu):
    running, url = start(APP, SPACE_ID="me/my-space", SPACES_ZERO_GPU=zero_gpu)
    assert "no model: this Space has no GPU" in last_line(running, "Page open")
    health = requests.get(f"{url}/healthz", timeout=5)
    assert health.status_code == 503
    assert "No model is running" in health.json()["reason"]
    page = requests.get(f"{url}/config", timeout=5).text
    assert "https://huggingface.co/spaces/me/my-space/settings" in page
    assert not any(STAND_IN in process.cmdline() for process in running.processes())


# -- how it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["vLLM starts", "serving", "serving, deaf to SIGTERM"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_processes(start, phase, number):
    running, url = start(SCRIPT={"vLLM starts": "slow", "serving": "ready"}.get(phase, "deaf"))
    if phase == "vLLM starts":
        wait_for(lambda: "vLLM is" in running.output, 30, "the engine's start")
    else:
        running.wait_until_up(url, 60)
    processes = running.processes()
    assert len(processes) >= 4
    running.process.send_signal(number)
    assert running.process.wait(10) == 128 + number
    assert alive(processes) == []
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=2)


@pytest.mark.parametrize("part", ["start.sh", "vllm_space.engine", "app.py"])
def test_sigkill_of_any_part_ends_the_others(start, tmp_path, part):
    running, url = start(TMPDIR=str(tmp_path))  # a killed start.sh cannot delete its folder
    running.wait_until_up(url, 60)
    processes = running.processes()
    running.part(part).kill()
    wait_for(lambda: not alive(processes), 12, f"the end after kill -9 of {part}")


# -- an engine that dies -------------------------------------------------------------------


def test_page_stays_while_vllm_restarts(start):
    running, url = start()
    running.wait_until_up(url, 60)
    client = gradio_client.Client(url, verbose=False)
    last_line(running, "Ready")
    before = len(running.output.splitlines())
    running.part(STAND_IN).kill()
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).status_code == 503, 10, "503")
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=5).ok, 30, "the restart")
    assert client.predict("Hi", api_name="/chat") == "Hello"
    lines = running.output.splitlines()[before:]
    assert re.fullmatch(r"vLLM died: the system killed it.*\. Restart 1 of 3 in 1 s\.", lines[0])
    assert all(line.startswith("vLLM is ") for line in lines[1:])


def test_too_many_deaths_end_the_start(start):
    running, url = start(MAX_RESTARTS="0")
    running.wait_until_up(url, 60)
    running.part(STAND_IN).kill()
    assert running.process.wait(30) == 1
    assert running.output.splitlines()[-1].startswith(
        "ERROR: vLLM died, and MAX_RESTARTS is 0. Last failure: the system killed it"
    )
