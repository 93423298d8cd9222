"""Programs under test, each in a process group of its own, and the constants that the tests share."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
START = ["bash", str(ROOT / "start.sh")]
BOOT_TIMEOUT = 400  # seconds; a warm boot takes about 40 here

API_KEY = "key-of-the-tests"
KEY = {"Authorization": f"Bearer {API_KEY}"}
DEMO_MODEL = ROOT / "vllm_space" / "demo_model"
MODEL = "vllm-space-demo"  # the name under which it is served

# The variables for a stand-in for vLLM's server: see scripted_api_server.py.
STAND_IN = "support.scripted_api_server"
STAND_IN_ENGINE = {"ENGINE_MODULE": STAND_IN, "PYTHONPATH": str(TESTS)}

# What a test may inherit: never the owner's variables, and no network beyond loopback.
CLEAN = {
    name: os.environ[name]
    for name in ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME")
    if name in os.environ
}
CLEAN |= {
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
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if value := condition():
                return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout} s")


def at_work(engine_url: str) -> float:
    """How many requests an engine runs or keeps waiting, by its own gauges."""
    lines = requests.get(f"{engine_url}/metrics", timeout=5).text.splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that have not ended."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _hear_ctrl_c() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """A program under test, its output in a file. Ends with everything it started."""

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
                preexec_fn=_hear_ctrl_c,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The process and everything below it that still lives."""
        try:
            top = psutil.Process(self.process.pid)
            found = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return alive(found)

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

    def check_clean_end(self) -> None:
        """SIGTERM ends it and everything it started within 10 s."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 128 + signal.SIGTERM
        assert alive(family) == []

    def ended(self, folder: Path, seconds: float = 60) -> tuple[int, list[str]]:
        """Wait for its end: (exit code, the ERROR lines). No process may be left, and nothing in TMPDIR (`folder`)."""
        family = self.family()
        code = self.process.wait(seconds)
        assert alive(family) == []
        assert list(folder.glob("vllm-space.*")) == []
        assert "Traceback" not in re.sub(
            r"^ {4}.*$", "", self.output, flags=re.MULTILINE
        )  # but for the engine's own
        return code, [line for line in self.output.splitlines() if line.startswith("ERROR: ")]

    def stop(self) -> None:
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Space:
    """The whole thing, as ./start.sh runs it with the demo model on a real vLLM."""

    url: str
    engine_url: str
    engine_key: str
    program: Program

    @property
    def auth(self) -> dict[str, str]:
        """Headers for the engine asked directly."""
        return {"Authorization": f"Bearer {self.engine_key}"}
