"""One page and one scripted engine, shared by all browser tests that need no other settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from support.programs import Program, free_port
from support.scripted_engine import ScriptedEngine

if TYPE_CHECKING:  # the fast tests run without Playwright
    from playwright.sync_api import Page


@pytest.fixture(scope="session")
def default_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedEngine, str]]:
    """app.py with default settings: (its engine, its URL)."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("page") / "app.log"
    with ScriptedEngine().running() as engine:
        command = [sys.executable, "app.py", "--port", str(port)]
        app = Program(command, log, {"MODEL_URL": engine.url})
        try:
            app.wait_until_up(url, 60)
            yield engine, url
        finally:
            app.stop()


@pytest.fixture
def engine(default_page: tuple[ScriptedEngine, str]) -> ScriptedEngine:
    """The engine of the default page, as new: a test sets its `script`."""
    engine, _ = default_page
    ScriptedEngine.__init__(engine, url=engine.url)
    return engine


@pytest.fixture
def url(default_page: tuple[ScriptedEngine, str]) -> str:
    """The URL of the default page."""
    return default_page[1]


@pytest.fixture
def tab(engine: ScriptedEngine, url: str, visit) -> Page:
    """The default page in a fresh browser context."""
    return visit(url)
