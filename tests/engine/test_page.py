"""The page in Chromium on a real vLLM: one test per tab, and one of a reasoning model.

tests/page has the details of every tab, on scripted engines.
"""

import os
import re
import subprocess
import sys

import pytest
import requests
from playwright.sync_api import Locator, Page, expect

from support.chromium import ANSWER, NUMBERS, ask, open_tab
from support.programs import API_KEY, MODEL, booted_space, wait_for
from vllm_space.page import snippets

QUESTION = "How do I use another model?"
EXAMPLE = "Explain step by step how to deploy this Space."  # one of the page's own
# Records the length of the answer at each change; polling from outside would miss short answers.
RECORD_LENGTHS = """() => {
  window.lengths = [];
  const record = () => {
    const answers = document.querySelectorAll("[data-testid=bot]");
    if (answers.length) window.lengths.push(answers[0].innerText.length);
  };
  const changes = { childList: true, subtree: true, characterData: true };
  new MutationObserver(record).observe(document.querySelector("#chatbot"), changes);
}"""


def set_sampling(tab: Page, **values: str) -> None:
    for label, value in values.items():
        tab.get_by_label(label.replace("_", " ")).locator("visible=true").first.fill(value)


def test_chat_tab_streams_and_continues(space, visit):
    tab = visit(space.url)
    expect(tab.get_by_text(MODEL)).to_be_visible()
    tab.evaluate(RECORD_LENGTHS)
    tab.get_by_text(EXAMPLE).click()
    expect(tab.locator(NUMBERS)).to_be_visible(timeout=60_000)
    expect(tab.locator(ANSWER)).to_contain_text("MODEL_ID")
    lengths = tab.evaluate("window.lengths")
    assert lengths[0] < lengths[-1], "the answer came in one piece"
    numbers = tab.locator(NUMBERS).inner_text()
    assert re.search(r"\d+ tokens · \d+ tokens/s · first token after", numbers)

    set_sampling(tab, Temperature="0", Max_tokens="12")
    ask(tab, EXAMPLE)
    option = tab.get_by_text("Stopped at 12 tokens — Continue")
    expect(option).to_be_visible(timeout=30_000)
    beginning = tab.locator(ANSWER).last.inner_text().strip()[:30]
    set_sampling(tab, Max_tokens="400")
    option.click()
    continued = re.compile(re.escape(beginning) + ".{50}", re.DOTALL)
    expect(tab.locator(ANSWER).last).to_have_text(continued, timeout=30_000)
    expect(tab.locator(NUMBERS)).to_have_count(2, timeout=30_000)
    expect(option).to_have_count(0)
    expect(tab.locator("[data-testid=user]")).to_have_count(2)


def test_completion_tab_continues_the_text(space, visit):
    tab = visit(space.url)
    open_tab(tab, "Completion")
    text = tab.locator("#text textarea")
    text.fill("This Space")
    tab.get_by_role("button", name="Complete").click()
    expect(text).to_have_value(re.compile(r"^This Space .{20}", re.DOTALL), timeout=30_000)
    expect(tab.locator(".stats").first).to_contain_text("tokens/s", timeout=30_000)


def test_compare_tab_fills_both_columns(space, visit):
    tab = visit(space.url)
    open_tab(tab, "Compare")
    set_sampling(tab, Temperature="0")
    tab.get_by_placeholder("One prompt").fill(QUESTION)
    tab.keyboard.press("Enter")
    for column in tab.locator(".compared").all()[:2]:
        expect(column.locator("small")).to_contain_text("tokens/s", timeout=30_000)
        expect(column).to_contain_text("MODEL_ID")


def test_status_tab_plots_the_generation(space, visit):
    tab = visit(space.url)
    open_tab(tab, "Status")
    for fact in (
        "Engine: ready since",
        "Restarts:",
        f"Model: {MODEL}",
        "Context length: 2,048 tokens",
        "dtype: bfloat16",
        "GPU: none",
    ):
        expect(tab.locator("#facts")).to_contain_text(fact)
    expect(tab.locator(".plot canvas, .plot svg")).to_have_count(3)
    tokens = tab.locator(".plot").first

    wait_for(lambda: axis_maximum(tokens) > 0, 30, "the plot")
    idle = axis_maximum(tokens)
    body = {"model": MODEL, "prompt": "This", "max_tokens": 500, "ignore_eos": True}
    url = f"{space.engine_url}/v1/completions"
    requests.post(url, json=body, headers=space.auth, timeout=120).raise_for_status()
    wait_for(lambda: axis_maximum(tokens) > idle, 30, "the generation in the plot")


def axis_maximum(plot: Locator) -> float:
    """The highest integer label of a plot's axes."""
    labels = [label.replace(",", "") for label in plot.locator("svg text").all_text_contents()]
    return max((int(label) for label in labels if label.isdecimal()), default=0)


# -- the programs in the API tab -------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(space, chromium) -> dict[str, str]:
    """Title -> program, as the API tab shows it."""
    texts = {}
    tab = chromium.new_page()
    tab.goto(space.url)
    open_tab(tab, "API")
    for title in snippets.ALL:
        open_tab(tab, title)
        program = tab.locator(".snippet").locator("visible=true")
        expect(program).to_contain_text(space.url)
        lines = program.locator(".cm-line").all_inner_texts()
        texts[title] = "\n".join(lines).replace("\n\n\n", "\n\n")
    tab.close()
    return texts


COMMANDS = {"JavaScript": ["node", "--input-type=module"], "curl": ["bash"]}
NEEDS_NPM = pytest.param("JavaScript", marks=pytest.mark.registry)


@pytest.mark.parametrize(
    "title", [NEEDS_NPM if title == "JavaScript" else title for title in snippets.ALL]
)
def test_programs_in_the_api_tab_run(programs, title, tmp_path, request):
    assert snippets.QUESTION in programs[title]
    done = subprocess.run(
        COMMANDS.get(title, [sys.executable]),
        input=programs[title],
        cwd=request.getfixturevalue("node_modules") if title == "JavaScript" else tmp_path,
        env=os.environ | {"API_KEY": API_KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "vLLM" in done.stdout, done.stderr


# -- reasoning -------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_reasoning_is_shown_apart(tmp_path, visit):
    reasoning = """--default-chat-template-kwargs '{"enable_thinking": true}'"""
    settings = {"REASONING_PARSER": "qwen3", "ENGINE_ARGS": reasoning}
    with booted_space(tmp_path / "start.log", **settings) as space:
        tab = visit(space.url)
        set_sampling(tab, Temperature="0")
        ask(tab, QUESTION)
        thought = tab.get_by_role("button", name=re.compile("Thought"))
        expect(thought).to_be_visible(timeout=30_000)
        expect(tab.locator(NUMBERS)).to_have_count(1, timeout=30_000)
        assert "think>" not in tab.locator("#chatbot").inner_text()
        expect(tab.locator(ANSWER).last).to_be_visible()
        assert tab.locator(ANSWER).last.inner_text().strip()
