"""Fixtures: one real vLLM for the whole session, booted by ./start.sh; scripted engines for faults; a browser.

Nothing is left behind: every process started here is a group of its own and is ended with the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import unprivileged
from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "key-of-the-tests"
OPENAI_JS = "openai@7.57.0"
BOOT_TIMEOUT = 400  # seconds; a warm boot takes about 40 here

# What a test may inherit: never the owner's variables, and no network beyond loopback.
CLEAN = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME") if name in os.environ}
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


def _hear_ctrl_c() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """A program under test, its output in a file. Ends with everything it started."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], cwd: Path = ROOT):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=CLEAN | env, cwd=cwd, start_new_session=True, preexec_fn=_hear_ctrl_c,
            )  # fmt: skip

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
        return [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def wait_until_up(self, url: str, timeout: float = BOOT_TIMEOUT) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
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
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []

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


def _programs(folder: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(command: list[str], cwd: Path = ROOT, **env: str) -> Program:
        started.append(Program(command, folder / f"program-{len(started)}.log", env, cwd))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def _page(program: Callable[..., Program], model_url: str | None, **env: str) -> str:
    port = free_port()
    if model_url:
        env["MODEL_URL"] = model_url
    app = program([sys.executable, "app.py", "--port", str(port)], **env)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert app.process.poll() is None, app.output
        return requests.get(f"{url}/healthz", timeout=5).status_code in (200, 503)

    wait_for(answers, 60, url)
    return url


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs: program([...], NAME="value") -> Program."""
    yield from _programs(tmp_path)


@pytest.fixture
def page(program: Callable[..., Program]) -> Callable[..., str]:
    """Run app.py in front of a running engine: page(url, NAME="value") -> the page's address."""
    return partial(_page, program)


@pytest.fixture(scope="module")
def shared_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Program]]:
    """As `program`, for the tests of a module to share."""
    yield from _programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def shared_page(shared_program: Callable[..., Program]) -> Callable[..., str]:
    """As `page`, for the tests of a module to share."""
    return partial(_page, shared_program)


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


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    port, engine_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("space") / "start.log"
    env = {"ENGINE_PORT": str(engine_port), "API_KEYS": f"tester:{API_KEY}"}
    running = Program(["bash", str(ROOT / "start.sh"), "--port", str(port)], log, env)
    try:
        running.wait_until_up(f"http://127.0.0.1:{port}")
        app = next(one for one in running.family() if any("app.py" in part for part in one.cmdline()))
        key = app.environ()["MODEL_API_KEY"]
        yield Space(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}", key, running)
        running.check_clean_end()
    finally:
        running.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    expect.set_options(timeout=15_000)  # a busy machine takes its time
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open an address as a visitor: visit(url) -> Page, which must stay free of requests to other hosts."""
    contexts, outside = [], []

    def open_page(url: str, width: int = 1280, **context_options: Any) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 800}, **context_options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
        page.goto(url)
        expect(page.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


def ask(page: Page, text: str) -> None:
    """Send a message in the chat, once the answer before it is over: its numbers stand there some ms earlier."""
    page.get_by_placeholder("Type a message").fill(text)
    expect(page.locator("#message .stop-button")).to_have_count(0)
    page.keyboard.press("Enter")


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The npm package, installed once into the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-space" / OPENAI_JS
    if not (cache / ".complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--prefix", str(cache), "--no-audit", "--no-fund", "--ignore-scripts", OPENAI_JS]
        subprocess.run(install, check=True, timeout=300)
        (cache / ".complete").touch()
    return cache


@pytest.fixture(scope="session")
def computer() -> Iterator[Path]:
    """A folder of an unprivileged user's, for the session."""
    with unprivileged.folder_of_the_user() as folder:
        yield folder


@pytest.fixture(scope="session")
def user_python(computer: Path) -> Path:
    """The tests' Python where that user can run it."""
    return unprivileged.environment_for_the_user(computer / "env")
