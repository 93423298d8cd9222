"""What the page shows of an engine that is down, restarting or back; and its log, to the owner."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import expect

from support.chromium import ANSWER, QUESTION, ask, message_box, open_tab, sign_in
from support.programs import free_port
from support.scripted_engine import ScriptedEngine, chat_stream

RECOVERY = 15_000  # ms; the page asks again every 3 s


# -- an engine on another machine ------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(shared_page, port) -> str:
    """A page whose engine runs on `port` only while a test runs it."""
    return shared_page(f"http://127.0.0.1:{port}")


def test_page_recovers_with_the_engine(url, port, visit):
    tab = visit(url)
    expect(tab.locator("#banner")).to_contain_text("cannot be reached")
    ask(tab, "Anybody there?")
    expect(tab.locator("#chatbot")).to_contain_text("cannot be reached")
    expect(tab.locator(QUESTION)).to_have_text("Anybody there?")
    message_box(tab).fill("Still here?")
    with ScriptedEngine(lambda path, body: chat_stream("Back")).running(port):
        expect(tab.locator("#about")).to_contain_text("scripted", timeout=RECOVERY)
        expect(tab.locator("#banner")).not_to_be_visible()
        expect(message_box(tab)).to_have_value("Still here?")
        message_box(tab).press("Enter")
        expect(tab.locator(ANSWER).last).to_have_text("Back")


def test_failed_answer_rechecks_the_engine(url, port, visit):
    """The API server of an engine that died still answers for a while."""
    engine = ScriptedEngine()

    def die(path: str, body: dict) -> tuple[int, dict]:
        engine.alive = False
        message = "EngineCore encountered an issue"
        return 500, {"error": {"message": message, "type": "InternalServerError"}}

    engine.script = die
    with engine.running(port):
        tab = visit(url)
        expect(tab.locator("#about")).to_contain_text("scripted", timeout=RECOVERY)
        ask(tab, "Hello?")
        expect(tab.locator("#chatbot")).to_contain_text("engine has crashed")
        expect(tab.locator("#banner")).to_contain_text("cannot be reached")
        engine.alive = True
        expect(tab.locator("#banner")).not_to_be_visible(timeout=RECOVERY)


# -- an engine that start.sh runs ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """The folder with the engine's log and its status, which a test may change."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "engine.log").write_text("dtype=torch.bfloat16\nline with key-of-the-engine\n")
    write_status(folder, "ready")
    return folder


def write_status(run_dir: Path, state: str, phase: str = "") -> None:
    status = {"state": state, "phase": phase, "since": 1.0, "restarts": 2, "reason": "it died"}
    (run_dir / "status.json").write_text(json.dumps(status))


@pytest.fixture(scope="module")
def start(shared_page, run_dir) -> Iterator[Callable[..., str]]:
    """start(NAME="value") -> the URL of a page with that folder."""
    with ScriptedEngine().running() as engine:
        env = {"ENGINE_RUN_DIR": str(run_dir), "MODEL_API_KEY": "key-of-the-engine"}
        yield partial(shared_page, engine.url, **env)


@pytest.fixture(scope="module")
def public_url(start) -> str:
    return start(API_KEYS="k")


def test_banner_says_what_the_engine_does(public_url, run_dir, visit):
    write_status(run_dir, "restarting", "loading the weights")
    tab = visit(public_url)
    banner = tab.locator("#banner")
    expect(banner).to_contain_text("The engine is restarting: loading the weights.")
    expect(banner).to_contain_text("it died")
    write_status(run_dir, "ready")
    expect(banner).not_to_be_visible(timeout=RECOVERY)


def test_visitors_do_not_see_the_engine_log(public_url, visit):
    tab = visit(public_url)
    open_tab(tab, "Status")
    expect(tab.locator("#facts")).to_contain_text("bfloat16")
    expect(tab.locator("#facts")).to_contain_text("Restarts: 2")
    assert tab.get_by_text("Engine log").count() == 0
    open_tab(tab, "API")
    expect(tab.get_by_text("/v1 is on")).to_be_visible()


def test_owner_sees_the_masked_engine_log(start, chromium):
    with chromium.new_context() as context:
        tab = context.new_page()
        tab.goto(start(APP_USERNAME="alice", APP_PASSWORD="right", APP_TITLE="My Space"))
        sign_in(tab, "alice", "wrong")
        expect(tab.get_by_role("alert")).to_contain_text("Incorrect user name or password")
        sign_in(tab, "alice", "right")
        expect(message_box(tab)).to_be_visible(timeout=20_000)
        expect(tab.get_by_role("heading", name="My Space")).to_be_visible()
        open_tab(tab, "Status")
        tab.get_by_role("button", name="Engine log").click()
        expect(tab.get_by_text("line with ***")).to_be_visible()
