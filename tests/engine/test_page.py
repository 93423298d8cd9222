"""The page in a real Chromium on the real engine: the ways through it that visitors take."""

import json
import os
import re
import subprocess
import sys

import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, NUMBERS, ask
from support.programs import API_KEY, START, active_requests, free_port, wait_for
from vllm_space.page import snippets

STOP = """() => {
  const stop = document.querySelector("#message .stop-button");
  if (!stop || !document.querySelector("#chatbot [data-testid=bot]")?.innerText.trim()) return false;
  stop.click();
  return true;
}"""
# The demo model is fast: what stands on the page for a moment only, the browser itself has to notice.
FEWEST = """numbers => {
  const chatbot = document.querySelector("#chatbot");
  const look = () => { window.fewest = Math.min(window.fewest, document.querySelectorAll(numbers).length); };
  window.fewest = Infinity;
  new MutationObserver(look).observe(chatbot, {childList: true, subtree: true});
}"""
# Notes in the page itself how long the answer is at each change: from outside, a busy machine would miss them.
WATCH = """() => {
  window.sizes = [];
  new MutationObserver(() => {
    const answers = document.querySelectorAll("[data-testid=bot]");
    if (answers.length) window.sizes.push(answers[0].innerText.length);
  }).observe(document.querySelector("#chatbot"), { childList: true, subtree: true, characterData: true });
}"""
LONG = "Explain step by step how to deploy this Space."
# Nothing ends such an answer before its 1900 tokens: words become likelier with each use, so it turns in circles.
ENDLESS = {"Temperature": "0", "Frequency_penalty": "-2", "Max_tokens": "1900"}


def set_sampling(tab, **values):
    for label, value in values.items():
        tab.get_by_label(label.replace("_", " ")).locator("visible=true").first.fill(value)


def test_a_question_of_the_examples_is_answered_and_the_answer_grows(space, visit):
    page = visit(space.url)
    expect(page.get_by_text("vllm-space-demo")).to_be_visible()
    page.evaluate(WATCH)
    page.get_by_text("Explain step by step how to deploy this Space.").click()
    answer = page.locator(ANSWER).last
    expect(answer).to_be_visible(timeout=20_000)
    expect(page.locator(NUMBERS)).to_be_visible(timeout=60_000)
    sizes = page.evaluate("window.sizes")
    assert len(set(sizes)) > 1, "the answer came in one piece"
    assert sizes[-1] > sizes[0]
    expect(answer).to_contain_text("MODEL_ID")
    assert re.search(r"\d+ tokens · \d+ tokens/s · first token after", page.locator(NUMBERS).inner_text())


def test_a_chat_of_three_turns_with_edit_and_retry(space, visit):
    tab = visit(space.url)
    set_sampling(tab, Temperature="0")
    for count, question in enumerate(
        ("What is this Space?", "How do I use another model?", LONG), start=1
    ):
        ask(tab, question)
        expect(tab.locator(NUMBERS)).to_have_count(count, timeout=30_000)
    expect(tab.locator(ANSWER).nth(1)).to_contain_text("MODEL_ID")
    before = tab.locator(ANSWER).last.inner_text()

    tab.evaluate(FEWEST, NUMBERS)
    tab.get_by_role("button", name="Retry", exact=True).last.click()
    tab.wait_for_function("window.fewest == 2")
    expect(tab.locator(NUMBERS)).to_have_count(3, timeout=30_000)
    assert tab.locator(ANSWER).last.inner_text() == before  # the same question at temperature 0

    tab.get_by_role("button", name="Edit", exact=True).last.click()
    tab.locator("#chatbot textarea").last.fill("How do I use another model?")
    tab.locator("#chatbot").get_by_label("Submit").last.click()
    expect(tab.locator(ANSWER).last).to_contain_text("MODEL_ID", timeout=30_000)
    expect(tab.locator("[data-testid=user]")).to_have_count(3)


def test_stop_frees_the_engine(space, visit):
    tab = visit(space.url)
    tab.get_by_role("button", name="More").click()
    set_sampling(tab, **ENDLESS)
    ask(tab, "Tell me everything about this Space.")
    with tab.expect_request("**/cancel"):
        tab.wait_for_function(STOP)  # in the browser, at once: the demo model is fast
    # It takes 0.1 s (test_leaving_in_mid_answer.py measures it over the protocol); a busy machine is given more.
    wait_for(lambda: active_requests(space.engine_url) == 0, 3, "the end of the generation")
    assert tab.locator(ANSWER).last.inner_text()


def test_an_answer_that_max_tokens_cut_is_continued(space, visit):
    tab = visit(space.url)
    set_sampling(tab, Temperature="0", Max_tokens="12")
    ask(tab, LONG)
    option = tab.get_by_text("Stopped at 12 tokens — Continue")
    expect(option).to_be_visible(timeout=30_000)
    first = tab.locator(ANSWER).inner_text().strip()
    set_sampling(tab, Max_tokens="400")
    option.click()
    expect(tab.locator(ANSWER)).to_have_text(
        re.compile(re.escape(first[:30]) + ".{50}", re.DOTALL), timeout=30_000
    )
    expect(tab.locator(NUMBERS)).to_have_count(1, timeout=30_000)
    expect(option).to_have_count(0)
    expect(tab.locator("[data-testid=user]")).to_have_count(1)


def test_export_then_import_gives_the_same_conversation(space, visit, tmp_path):
    tab = visit(space.url, accept_downloads=True)
    for count, question in enumerate(
        ("What is this Space?", "How do I use another model?"), start=1
    ):
        ask(tab, question)
        expect(tab.locator(NUMBERS)).to_have_count(count, timeout=30_000)

    def export() -> list[dict]:
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Export as JSON").click()
        download.value.save_as(tmp_path / "exported.json")
        return json.loads((tmp_path / "exported.json").read_text())["messages"]

    tab.get_by_role("button", name="Export and import").click()
    messages = export()
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    tab.get_by_role("button", name="New chat").click()
    expect(tab.locator("[data-testid=user]")).to_have_count(0)
    tab.locator("#sidebar input[type=file]").set_input_files(tmp_path / "exported.json")
    expect(tab.locator("[data-testid=user]")).to_have_count(2)
    assert export() == messages
    ask(tab, "What does it cost?")  # and it goes on from there
    expect(tab.locator(NUMBERS)).to_have_count(1, timeout=30_000)


def test_completion_goes_on_in_place_and_can_be_undone(space, visit):
    tab = visit(space.url)
    tab.get_by_role("tab", name="Completion").click()
    text = tab.locator("#text textarea")
    text.fill("This Space")
    tab.get_by_role("button", name="Complete").click()
    expect(text).to_have_value(re.compile(r"^This Space .{20}", re.DOTALL), timeout=30_000)
    expect(tab.locator(".stats").first).to_contain_text("tokens/s", timeout=30_000)
    tab.get_by_role("button", name="Undo").click()
    expect(text).to_have_value("This Space")


def test_compare_with_two_servers(space, page, visit):
    servers = {"A": space.engine_url, "B": space.engine_url}
    tab = visit(page(None, MODELS=json.dumps(servers), MODEL_API_KEY=space.engine_key))
    tab.get_by_role("tab", name="Compare").click()
    expect(tab.get_by_label("Model 2")).to_have_value("vllm-space-demo (B)")
    tab.get_by_role("button", name="More").click()
    set_sampling(tab, **ENDLESS)
    tab.get_by_placeholder("One prompt").fill(LONG)
    tab.keyboard.press("Enter")
    wait_for(lambda: active_requests(space.engine_url) == 2, 20, "two generations at once")
    for answer in tab.locator(".compared").all()[:2]:
        expect(answer.locator("small")).to_contain_text("tokens/s", timeout=30_000)
        expect(answer).to_contain_text("Space")


def test_the_status_shows_a_generation_in_progress(space, visit):
    tab = visit(space.url)
    tab.get_by_role("tab", name="Status").click()
    expect(tab.locator("#facts")).to_contain_text("Engine: ready since")
    for fact in (
        "Restarts: 0",
        "Model: vllm-space-demo",
        "Context: 2,048 tokens",
        "Number format: bfloat16",
        "GPU",
    ):
        expect(tab.locator("#facts")).to_contain_text(fact)
    expect(tab.locator(".plot canvas, .plot svg")).to_have_count(3)

    def most() -> float:
        """The highest label of the tokens' axis, which grows with what it shows."""
        labels = tab.locator(".plot").first.locator("svg text").all_text_contents()
        return max(
            (float(label.replace(",", "")) for label in labels if re.fullmatch(r"[\d,]+", label)),
            default=0,
        )

    wait_for(lambda: most() > 0, 10, "the plots")
    idle = most()
    body = {"model": "vllm-space-demo", "prompt": "This", "max_tokens": 1900, "ignore_eos": True}
    requests.post(
        f"{space.engine_url}/v1/completions", json=body, headers=space.auth, timeout=120
    ).raise_for_status()
    wait_for(lambda: most() > max(idle, 20), 15, "the generation in the plot")


# -- the programs of the API tab, each run as it stands there ----------------------------------------------------


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=pytest.mark.registry if title == "JavaScript" else ())
        for title in snippets.ALL
    ],
)
def test_the_programs_of_the_api_tab_run_as_they_stand(space, visit, title, tmp_path, request):
    tab = visit(space.url)
    tab.get_by_role("tab", name="API", exact=True).click()
    tab.get_by_role("tab", name=title, exact=True).click()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = tab.locator(".snippet").locator("visible=true")
    expect(shown).to_contain_text(space.url)
    program = "\n".join(shown.locator(".cm-line").all_inner_texts()).replace("\n\n\n", "\n\n")
    assert snippets.QUESTION in program
    folder = tmp_path
    if title == "JavaScript":
        folder = request.getfixturevalue("node_modules")
        command = ["node", "--input-type=module"]
    elif title == "curl":
        command = ["bash"]
    else:
        command = [sys.executable]
    done = subprocess.run(
        command,
        input=program,
        cwd=folder,
        env=os.environ | {"API_KEY": API_KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "vLLM" in done.stdout, done.stderr


# -- thinking, on an engine of its own with a reasoning parser ----------------------------------------------------


@pytest.mark.vllm
def test_a_thinking_model_with_a_reasoning_parser(program, visit):
    port, engine_port = free_port(), free_port()
    started = program(
        [*START, "--port", str(port)],
        ENGINE_PORT=str(engine_port),
        REASONING_PARSER="qwen3",
        ENGINE_ARGS="""--default-chat-template-kwargs '{"enable_thinking": true}'""",
    )
    url = f"http://127.0.0.1:{port}"
    started.wait_until_up(url)
    tab = visit(url)
    set_sampling(tab, Temperature="0")
    ask(tab, "How do I use another model?")
    thought = tab.get_by_role("button", name=re.compile("Thought"))
    expect(thought).to_be_visible(timeout=30_000)
    expect(tab.locator(NUMBERS)).to_have_count(1, timeout=30_000)
    assert "think>" not in tab.locator("#chatbot").inner_text()
    expect(tab.locator(ANSWER).last).to_be_visible()  # and the thought above it is folded
    assert tab.locator(ANSWER).last.inner_text().strip()
