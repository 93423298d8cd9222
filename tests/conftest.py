"""Fixtures: programs under test, one real vLLM for the whole session booted by ./start.sh, and a browser.

Nothing is left behind: every process started here is a group of its own and is ended with the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

pytest.register_assert_rewrite("support")

from support import unprivileged  # noqa: E402
from support.programs import API_KEY, ROOT, START, Program, Space, free_port, wait_for  # noqa: E402

if TYPE_CHECKING:  # the fast tests run where there is no Playwright
    from playwright.sync_api import Page

OPENAI_JS = "openai@7.57.0"

# What an item needs, told by the fixtures that it uses: fixture -> marker
NEEDS = {"chromium": "browser", "space": "vllm", "node_modules": "registry"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in NEEDS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(NEEDS[fixture])


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


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    port, engine_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("space") / "start.log"
    env = {"ENGINE_PORT": str(engine_port), "API_KEYS": f"tester:{API_KEY}"}
    running = Program([*START, "--port", str(port)], log, env)
    try:
        running.wait_until_up(f"http://127.0.0.1:{port}")
        app = next(
            one for one in running.family() if any("app.py" in part for part in one.cmdline())
        )
        key = app.environ()["MODEL_API_KEY"]
        yield Space(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}", key, running)
        running.check_clean_end()
    finally:
        running.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)  # a busy machine takes its time
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open an address as a visitor: visit(url) -> Page, which must stay free of requests to other hosts."""
    from playwright.sync_api import expect

    contexts, outside = [], []

    def open_page(url: str, width: int = 1280, **context_options: Any) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 800}, **context_options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "request",
            lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None,
        )
        page.goto(url)
        expect(page.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The npm package, installed once into the user's cache folder."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-space" / OPENAI_JS
    )
    if not (cache / ".complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        install = [
            "npm",
            "install",
            "--prefix",
            str(cache),
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            OPENAI_JS,
        ]
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
