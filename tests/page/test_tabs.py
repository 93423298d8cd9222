"""The tabs besides Chat, and the page as a whole, in Chromium on scripted engines."""

import json
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from support.chromium import ANSWER, ask, message_box, open_tab, pass_time
from support.scripted_engine import ScriptedEngine, chat_event, chat_stream, completion_stream

PERIOD = 2.5  # seconds; the Status tab is refreshed every 2 s
RUNNING_1 = "vllm:num_requests_running 1.0\n"


# -- Completion, Status, API -----------------------------------------------------------------------


def test_completion_continues_and_undoes(engine, tab):
    engine.script = lambda path, body: completion_stream(" upon", " a time")
    open_tab(tab, "Completion")
    text = tab.locator("#text textarea")
    text.fill("Once")
    tab.get_by_role("button", name="Complete").click()
    expect(text).to_have_value("Once upon a time")
    tab.get_by_role("button", name="Undo").click()
    expect(text).to_have_value("Once")


def test_only_the_open_status_tab_polls(engine, tab):
    requested = []

    def assert_no_polls() -> None:
        for _ in range(4):
            pass_time(tab, PERIOD)
        assert requested == []

    engine.metrics = lambda: RUNNING_1
    tab.clock.install()
    tab.reload()
    expect(tab.locator("#about")).to_contain_text("scripted")
    tab.on("request", lambda request: "predict" in request.url and requested.append(request.url))
    assert_no_polls()

    open_tab(tab, "Status")
    expect(tab.locator("#facts")).to_contain_text("scripted")
    expect(tab.get_by_label("Top-p")).not_to_be_visible()
    for _ in range(3):
        with tab.expect_response("**/run/predict*"):
            pass_time(tab, PERIOD)
    assert "GET /metrics" in engine.request_lines

    open_tab(tab, "Completion")
    expect(tab.get_by_label("Top-p")).to_be_visible()
    requested.clear()
    assert_no_polls()


def test_api_tab_says_that_v1_is_off(tab):
    open_tab(tab, "API")
    expect(tab.get_by_text("/v1 is off")).to_be_visible()


# -- several servers, and Compare ------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(shared_page) -> Iterator[tuple[ScriptedEngine, ScriptedEngine, str]]:
    """A page with three servers, the last of them down: (A, B, URL)."""
    a, b = ScriptedEngine(models=["one"]), ScriptedEngine(models=["two", "three"])
    with a.running(), b.running():
        urls = {"A": a.url, "B": b.url, "C": "http://127.0.0.1:9"}
        yield a, b, shared_page(None, MODELS=json.dumps(urls))


def test_visitor_picks_a_model_of_any_server(servers, visit):
    a, b, url = servers
    a.script = b.script = lambda path, body: chat_stream("from " + body["model"])
    tab = visit(url)
    expect(tab.locator("#banner")).to_contain_text("The model server C cannot be reached")
    tab.get_by_label("Model", exact=True).click()
    for label in ("one (A)", "two (B)", "three (B)"):
        expect(tab.get_by_role("option", name=label)).to_be_visible()
    tab.get_by_role("option", name="three (B)").click()
    expect(tab.locator("#about")).to_contain_text("three (B) · 4,096 tokens of context")
    ask(tab, "Who?")
    expect(tab.locator(ANSWER)).to_have_text("from three")


def compare(tab, prompt):
    tab.get_by_placeholder("One prompt").fill(prompt)
    tab.keyboard.press("Enter")
    return tab.locator(".compared")


def test_compared_answers_stream_in_parallel(servers, visit):
    a, b, url = servers
    both_seen = threading.Event()

    def script(path, body):
        if body["model"] == "two":
            return 500, {"detail": "broken"}
        return answer({"one": "a ", "three": "c "}[body["model"]])

    def answer(word):
        for _ in range(2):
            yield chat_event(content=word)
        both_seen.wait(30)
        yield from chat_stream(*[word] * 40)

    a.script = b.script = script
    tab = visit(url)
    open_tab(tab, "Compare")
    tab.get_by_role("button", name="Add a column").click()
    answers = compare(tab, "Go")
    expect(answers.nth(0)).to_contain_text("a a")
    expect(answers.nth(1)).to_contain_text("HTTP 500")
    expect(answers.nth(2)).to_contain_text("c c")
    for number in (0, 2):
        expect(answers.nth(number).locator("small")).to_have_count(0)  # still running
    both_seen.set()
    for number in (0, 2):
        expect(answers.nth(number).locator("small")).to_contain_text("40 tokens")


def test_compare_before_the_models_are_known(servers, visit):
    a, b, url = servers
    a.script = b.script = lambda path, body: chat_stream(body["model"])
    tab = visit(url)
    tab.route("**/run/predict*", lambda route: None)  # the page's first request gets no response
    tab.reload()
    open_tab(tab, "Compare")
    answers = compare(tab, "Go")
    expect(tab.get_by_label("Model 1")).to_have_value("")
    for number, name in enumerate(("one", "two")):
        expect(answers.nth(number)).to_contain_text(name)


# -- the page as a whole ---------------------------------------------------------------------------


def test_text_typed_while_opening_stays(tab):
    """Gradio renders a tab or an accordion only when it is opened."""
    slow_frames = """() => {
        const frame = requestAnimationFrame;
        window.requestAnimationFrame = (callback) => setTimeout(() => frame(callback), 200);
    }"""
    two_frames = """() => new Promise((done) =>
        requestAnimationFrame(() => requestAnimationFrame(done)))"""
    panel = tab.get_by_role("tabpanel")
    tab.evaluate(slow_frames)
    for role, name, field in (
        ("button", "More", tab.get_by_label("Seed")),
        ("tab", "Completion", tab.locator("#text textarea")),
        ("tab", "Compare", tab.get_by_placeholder("One prompt")),
        ("button", "Column settings", panel.get_by_label("System prompt").first),
    ):
        tab.get_by_role(role, name=name).first.click()
        field.fill("5")
        tab.evaluate(two_frames)
        expect(field).to_have_value("5")


# Each tab, and something on it that appears last
TABS = {
    "Chat": "#message textarea",
    "Completion": "#text textarea",
    "Compare": ".compared >> nth=1",
    "Status": ".plot svg >> nth=2",
    "API": ".snippet .cm-line >> nth=0",
}
NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, select")]
    .filter((control) => control.offsetParent && control.type !== "file"
        && !control.innerText?.trim() && !control.ariaLabel && !control.title
        && !control.placeholder && !control.closest("label") && !control.labels?.length
        && !control.getAttribute("aria-labelledby"))
    .map((control) => control.outerHTML.slice(0, 120))"""


def test_tabs_fit_a_phone_and_have_names(engine, url, visit):
    engine.metrics = lambda: RUNNING_1
    tab = visit(url, width=390)
    menu = tab.locator(".overflow-menu > button")  # for the tabs that do not fit
    expect(menu).to_be_visible()
    for name, landmark in TABS.items():
        if tab.get_by_role("tab", name=name, exact=True).is_visible():
            open_tab(tab, name)
        else:
            menu.click()
            tab.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
        expect(tab.locator(landmark)).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert tab.evaluate(NAMELESS) == [], name


def test_page_works_without_browser_storage(engine, url, chromium):
    no_storage = """Object.defineProperty(window, "localStorage", {
        configurable: true, get() { throw new DOMException("Access is denied.", "SecurityError"); }
    })"""
    engine.script = lambda path, body: chat_stream("kept")
    failures = []
    with chromium.new_context() as context:
        context.add_init_script(no_storage)
        tab = context.new_page()
        tab.on("pageerror", lambda error: failures.append(error))
        tab.goto(url)
        ask(tab, "Hi")
        expect(tab.locator(ANSWER)).to_have_text("kept")
        expect(tab.get_by_role("radio", name="Hi")).to_be_visible()  # until the tab is closed
    assert failures == []


def test_page_works_in_an_iframe(engine, url, chromium):
    engine.script = lambda path, body: chat_stream("framed")
    with chromium.new_context() as context:
        outer = context.new_page()
        outer.set_content(f'<iframe src="{url}" width="1000" height="700"></iframe>')
        frame = outer.frame_locator("iframe")
        message_box(frame).fill("Hi", timeout=20_000)
        message_box(frame).press("Enter")
        expect(frame.locator(ANSWER)).to_have_text("framed")
