"""Programs under test, and the constants the tests share."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
START = ["bash", str(ROOT / "start.sh")]
BOOT_TIMEOUT = 400  # seconds; on two cores vLLM takes about 40

API_KEY = "key-of-the-tests"
KEY = {"Authorization": f"Bearer {API_KEY}"}
DEMO_MODEL = ROOT / "vllm_space" / "demo_model"
MODEL = "vllm-space-demo"  # the name under which it is served

# Variables that replace vLLM's server with a stand-in: see scripted_api_server.py.
STAND_IN = "support.scripted_api_server"
STAND_IN_ENGINE = {"ENGINE_MODULE": STAND_IN, "PYTHONPATH": str(TESTS)}

# The environment of every program: as little as possible of ours, and no access to the Hub.
INHERITED = "PATH HOME LANG TMPDIR XDG_CACHE_HOME".split()
CLEAN = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
    "PYTHON": sys.executable,
    "PYTHONDONTWRITEBYTECODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], timeout: float, what: str) -> object:
    """Poll until `condition` returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if value := condition():
                return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: no result within {timeout} s")


def metrics(engine_url: str, *names: str) -> float:
    """The sum of some of an engine's metrics."""
    lines = requests.get(f"{engine_url}/metrics", timeout=5).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0] in names)


def active_requests(engine_url: str) -> float:
    """The number of requests that an engine runs or queues."""
    return metrics(engine_url, "vllm:num_requests_running", "vllm:num_requests_waiting")


def generated_tokens(engine_url: str) -> float:
    """The number of tokens that an engine has generated since its start."""
    return metrics(engine_url, "vllm:generation_tokens_total")


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that have not ended."""
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def _handle_sigint() -> None:
    """Undo the shell's SIG_IGN for background jobs, which child processes inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """A program under test in its own process group, with its output in a file."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], cwd: Path = ROOT):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=CLEAN | env,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_handle_sigint,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The process and its descendants that are still running."""
        try:
            top = psutil.Process(self.process.pid)
            return alive([top, *top.children(recursive=True)])
        except psutil.NoSuchProcess:
            return []

    def part(self, word: str) -> psutil.Process:
        """The first of its processes that has `word` in its command line."""
        return next(
            process
            for process in self.processes()
            if any(word in argument for argument in process.cmdline())
        )

    def wait_until_up(self, url: str, timeout: float = BOOT_TIMEOUT) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode}:\n{self.output}"
            )
            return requests.get(f"{url}/healthz", timeout=5).ok

        try:
            wait_for(answers, timeout, url)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def check_sigterm(self) -> None:
        """Check that SIGTERM ends it and all its descendants."""
        processes = self.processes()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 128 + signal.SIGTERM
        assert alive(processes) == []

    def wait_for_exit(self, folder: Path, seconds: float = 60) -> tuple[int, list[str]]:
        """Wait until it exits: (exit code, ERROR lines).

        Checks that it leaves no process and nothing in its TMPDIR, `folder`.
        """
        processes = self.processes()
        code = self.process.wait(seconds)
        assert alive(processes) == []
        assert list(folder.glob("vllm-space.*")) == []
        own_lines = re.sub(r"^ {4}.*$", "", self.output, flags=re.MULTILINE)  # not the engine's
        assert "Traceback" not in own_lines
        return code, [line for line in self.output.splitlines() if line.startswith("ERROR: ")]

    def stop(self) -> None:
        """End it and everything it started, by force if need be."""
        processes = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Space:
    """A Space that ./start.sh booted, with a real vLLM."""

    url: str
    engine_url: str
    engine_key: str
    program: Program

    @property
    def auth(self) -> dict[str, str]:
        """Headers for requests that go directly to the engine."""
        return {"Authorization": f"Bearer {self.engine_key}"}


@contextlib.contextmanager
def booted_space(log: Path, **env: str) -> Iterator[Space]:
    """Run ./start.sh with the demo model, and check that it stops cleanly."""
    port, engine_port = free_port(), free_port()
    env = {"ENGINE_PORT": str(engine_port), "API_KEYS": f"tester:{API_KEY}"} | env
    program = Program([*START, "--port", str(port)], log, env)
    url = f"http://127.0.0.1:{port}"
    try:
        program.wait_until_up(url)
        key = program.part("app.py").environ()["MODEL_API_KEY"]
        yield Space(url, f"http://127.0.0.1:{engine_port}", key, program)
        program.check_sigterm()
    finally:
        program.stop()
