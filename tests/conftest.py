"""Fixtures: programs under test, a Space with a real vLLM for the whole session, and a browser.

Every program runs in its own process group and is stopped at the end of its fixture's scope.
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
from support.programs import ROOT, Program, Space, booted_space, free_port, wait_for  # noqa: E402

if TYPE_CHECKING:  # the fast tests run without Playwright
    from playwright.sync_api import Page

CHROMIUM: dict[str, Any] = {
    "executable_path": "/usr/bin/chromium",
    "args": ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
}
OPENAI_JS = "openai@7.57.0"

MARKER_OF_FIXTURE = {"chromium": "browser", "space": "vllm", "node_modules": "registry"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what its fixtures need."""
    for item in items:
        for fixture in MARKER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKER_OF_FIXTURE[fixture])


def _programs(folder: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(command: list[str], cwd: Path = ROOT, **env: str) -> Program:
        started.append(Program(command, folder / f"program-{len(started)}.log", env, cwd))
        return started[-1]

    yield start
    for running in started:
        running.stop()


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
    """Start a program: program([...], NAME="value") -> Program."""
    yield from _programs(tmp_path)


@pytest.fixture
def page(program: Callable[..., Program]) -> Callable[..., str]:
    """Run app.py in front of a running engine: page(engine_url, NAME="value") -> its URL."""
    return partial(_page, program)


@pytest.fixture(scope="module")
def shared_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Program]]:
    """Like `program`, shared by the tests of a module."""
    yield from _programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def shared_page(shared_program: Callable[..., Program]) -> Callable[..., str]:
    """Like `page`, shared by the tests of a module."""
    return partial(_page, shared_program)


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A Space on a real vLLM with the demo model. Booting takes 40 s, so all tests share it."""
    with booted_space(tmp_path_factory.mktemp("space") / "start.log") as space:
        yield space


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)  # the default of 5 s is too short on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium, tmp_path: Path):
    """Open a tab of a Chromium with more flags: browse(flags) -> Page.

    By default, it is private, so that it blocks third-party cookies. With `profile`, it is not.
    """
    opened = []

    def start(flags: list[str], profile: bool = False) -> Page:
        options = CHROMIUM | {"args": CHROMIUM["args"] + flags}
        if profile:
            folder = tmp_path / f"profile-{len(opened)}"
            context = chromium.browser_type.launch_persistent_context(
                folder, ignore_https_errors=True, **options
            )
            opened.append(context)
        else:
            opened.append(chromium.browser_type.launch(**options))
            context = opened[-1].new_context(ignore_https_errors=True)
        return context.new_page()

    yield start
    for browser in opened:
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a URL in Chromium: visit(url) -> Page. Fails if the page contacts another host."""
    from playwright.sync_api import expect

    contexts, requested = [], []

    def open_page(url: str, width: int = 1280, **context_options: Any) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 800}, **context_options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    here = ("http://127.0.0.1", "data:", "blob:")
    assert [url for url in requested if not url.startswith(here)] == []


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """OpenAI's npm package, installed once into the user's cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = caches / "vllm-space" / OPENAI_JS
    if not (cache / ".complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        install = f"npm install --no-audit --no-fund --ignore-scripts {OPENAI_JS} --prefix".split()
        subprocess.run([*install, str(cache)], check=True, timeout=300)
        (cache / ".complete").touch()
    return cache


@pytest.fixture(scope="session")
def computer() -> Iterator[Path]:
    """A folder that belongs to an unprivileged user."""
    with unprivileged.folder_of_the_user() as folder:
        yield folder


@pytest.fixture(scope="session")
def user_python(computer: Path) -> Path:
    """A copy of the tests' Python that this user can run."""
    return unprivileged.environment_for_the_user(computer / "env")
