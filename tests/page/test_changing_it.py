"""docs/changing-it.md: its changes, made to a copy of the product, do what it says."""

import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import gradio_client
import pytest
import requests
from gradio.themes import colors
from playwright.sync_api import Page, expect

from support.chromium import ANSWER, QUESTION, STOP, ask, message_box, open_tab, pass_time
from support.product import copy_product
from support.programs import ROOT, free_port
from support.scripted_engine import ScriptedEngine, chat_stream

RECIPES = (ROOT / "docs" / "changing-it.md").read_text()
NEW_FILE = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
CHANGE = re.compile(r"```diff\n--- (\S+)\n(.*?)```", re.DOTALL)
PERIOD = 2.5  # seconds; longer than the new tab's refresh_every
TEAL = "rgb({}, {}, {})".format(*bytes.fromhex(colors.teal.c700[1:]))


def apply_recipes(folder: Path) -> None:
    for path, text in NEW_FILE.findall(RECIPES):
        (folder / path).write_text(text)
    for path, changes in CHANGE.findall(RECIPES):
        source = (folder / path).read_text()
        for hunk in filter(None, re.split(r"^@@.*\n", changes, flags=re.MULTILINE)):
            before = "".join(re.findall(r"^[ -](.*\n)", hunk, re.MULTILINE))
            after = "".join(re.findall(r"^[ +](.*\n)", hunk, re.MULTILINE))
            assert source.count(before) == 1, f"{path} no longer has:\n{before}"
            source = source.replace(before, after)
        (folder / path).write_text(source)


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    def script(path: str, body: dict) -> Iterator[bytes]:
        if "Summarise" in body["messages"][-1]["content"]:
            return chat_stream(*["briefly "] * 500, every=0.02)
        return chat_stream("Hello.")

    with ScriptedEngine(script).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_program, tmp_path_factory, engine) -> str:
    """A page with all the changes."""
    folder = copy_product(tmp_path_factory.mktemp("changed"))
    apply_recipes(folder)
    port = free_port()
    program = shared_program(
        [sys.executable, "app.py", "--port", str(port)], cwd=folder, MODEL_URL=engine.url
    )
    program.wait_until_up(f"http://127.0.0.1:{port}", 60)
    return f"http://127.0.0.1:{port}"


def color(page: Page, name: str) -> str:
    button = page.get_by_role("button", name=name, exact=True)
    return button.evaluate("button => getComputedStyle(button).backgroundColor")


def test_a_new_button_answers(url, visit, engine):
    page = visit(url)
    ask(page, "Hi")
    expect(page.locator(ANSWER)).to_have_text("Hello.")
    page.get_by_role("button", name="Summarise").click()
    expect(page.locator(ANSWER).last).to_contain_text("briefly briefly")
    expect(page.locator(QUESTION).last).to_have_text("Summarise our conversation so far.")
    engine.client_left.clear()
    page.locator(STOP).click()
    assert engine.client_left.wait(5)
    expect(message_box(page)).to_be_enabled()

    page.reload()
    page.get_by_role("radio", name="Hi").click()
    expect(page.locator(ANSWER).last).to_contain_text("briefly briefly")


def test_a_new_button_is_not_an_endpoint(url):
    endpoints = gradio_client.Client(url, verbose=False).view_api(return_format="dict")
    assert endpoints["named_endpoints"].keys() == {"/chat", "/complete"}
    assert not endpoints["unnamed_endpoints"]


def test_a_new_tab_is_refreshed_while_open(url, visit, engine):
    page = visit(url)
    page.clock.install()
    page.reload()
    expect(page.get_by_label("Temperature").first).to_be_visible()
    open_tab(page, "Models")
    expect(page.locator("#models")).to_have_text("scripted")
    expect(page.get_by_label("Temperature").first).to_be_hidden()
    with page.expect_response("**/run/predict*"):
        pass_time(page, PERIOD)

    open_tab(page, "Chat")
    expect(page.get_by_label("Temperature").first).to_be_visible()
    requested: list[str] = []
    page.on("request", lambda request: "predict" in request.url and requested.append(request.url))
    for _ in range(2):
        pass_time(page, PERIOD)
    assert requested == []


def test_a_new_colour_is_everywhere(url, visit):
    page = visit(url)
    assert color(page, "New chat") == TEAL
    config = requests.get(f"{url}/config", timeout=5).json()
    plots = [part["props"] for part in config["components"] if part["type"] == "nativeplot"]
    assert {plot["color_map"]["generation"] for plot in plots if "tokens" in plot["y_title"]} == {
        colors.teal.c600
    }


def test_the_date_precedes_the_system_prompt(url, visit, engine):
    page = visit(url)
    page.get_by_label("System prompt").first.fill("Be kind.")
    ask(page, "Hi")
    expect(page.locator(ANSWER)).to_have_text("Hello.")
    client = gradio_client.Client(url, verbose=False)
    client.predict("Hi", system_prompt="Be kind.", api_name="/chat")
    for _, _, body in engine.requests[-2:]:
        system, question = body["messages"]
        assert system["content"] == f"Today is {date.today():%A, %d %B %Y}.\n\nBe kind."
        assert question["content"] == "Hi"
