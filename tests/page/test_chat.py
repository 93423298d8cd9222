"""The Chat tab in Chromium, on scripted engines."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from support.chromium import ANSWER, NUMBERS, QUESTION, STOP, ask, message_box
from support.programs import free_port
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream
from vllm_space.tokenizer import TEST_IMAGE

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


class Endless:
    """A script whose answers end when the visitor stops them, which sets `stopped`."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def __call__(self, path: str, body: dict) -> Iterator[bytes]:
        try:
            yield from chat_stream(*["word "] * 5000, every=0.02)
        finally:
            self.stopped.set()


# -- questions and answers -------------------------------------------------------------------------


def test_edit_retry_and_undo_a_turn(engine, tab):
    conversations = []

    def script(path, body):
        messages = body["messages"]
        conversations.append([(message["role"], message["content"]) for message in messages])
        return chat_stream("Answer", f" {len(conversations)}")

    engine.script = script
    answer = tab.locator(ANSWER).last
    ask(tab, "One")
    expect(answer).to_have_text("Answer 1")
    ask(tab, "Two")
    expect(answer).to_have_text("Answer 2")
    assert conversations[-1] == [("user", "One"), ("assistant", "Answer 1"), ("user", "Two")]

    tab.get_by_label("Retry").last.click()
    expect(answer).to_have_text("Answer 3")
    assert conversations[-1] == conversations[-2]

    tab.get_by_label("Edit").last.click()
    tab.locator("#chatbot textarea").last.fill("Two, please")
    tab.locator("#chatbot").get_by_label("Submit").last.click()
    expect(answer).to_have_text("Answer 4")
    assert conversations[-1][-1] == ("user", "Two, please")

    tab.get_by_label("Undo").last.click()
    expect(message_box(tab)).to_have_value("Two, please")
    expect(tab.locator(ANSWER)).to_have_count(1)


def test_stop_keeps_the_text_received_so_far(engine, tab):
    engine.script = Endless()
    ask(tab, "Count")
    expect(tab.locator(ANSWER)).to_contain_text("word word word")
    tab.locator(STOP).click()
    assert engine.script.stopped.wait(10)
    assert "word" in tab.locator(ANSWER).inner_text()
    engine.script = lambda path, body: chat_stream("ready")
    ask(tab, "Again")
    expect(tab.locator(ANSWER).last).to_have_text("ready")


def test_escape_stops_and_shift_enter_wraps(engine, tab):
    engine.script = Endless()
    box = message_box(tab)
    box.fill("One")
    box.press("Shift+Enter")
    box.press_sequentially("Two")
    box.press("Enter")
    expect(tab.locator(ANSWER)).to_contain_text("word word")
    tab.keyboard.press("Escape")
    assert engine.script.stopped.wait(10)
    assert engine.requests[0][2]["messages"][0]["content"] == "One\nTwo"


def test_enter_while_answering_sends_nothing(engine, tab):
    engine.script = Endless()
    ask(tab, "Count")
    expect(tab.locator(ANSWER)).to_contain_text("word word")
    box = message_box(tab)
    box.fill("And then?")
    box.press("Enter")
    expect(box).to_have_value("And then?")
    tab.locator(STOP).click()
    expect(tab.locator(STOP)).to_have_count(0)
    box.press("Enter")
    expect(tab.locator(QUESTION).last).to_have_text("And then?")
    expect(box).to_have_value("")


def test_failed_answer_keeps_partial_text(engine, tab):
    def script(path, body):
        yield chat_event(content="The first half")
        raise Cut

    engine.script = script
    ask(tab, "Hi")
    expect(tab.locator("#chatbot")).to_contain_text("The answer was cut off")
    expect(tab.locator("#chatbot")).to_contain_text("The first half")
    expect(tab.locator(QUESTION)).to_have_text("Hi")


def test_continue_after_max_tokens(engine, tab):
    def script(path, body):
        if body.get("continue_final_message"):
            return chat_stream(" and more")
        return chat_stream("Half", finish="length")

    engine.script = script
    ask(tab, "Tell me")
    numbers = re.compile(r"1 token · \d+ tokens/s · first token after")
    expect(tab.locator(NUMBERS)).to_contain_text(numbers)
    tab.get_by_text("Stopped at 1 token — Continue").click()
    expect(tab.locator(ANSWER)).to_have_text("Half and more")
    expect(tab.locator(QUESTION)).to_have_count(1)
    expect(tab.get_by_text("— Continue")).to_have_count(0)
    body = engine.requests[1][2]
    assert body["messages"] == [
        {"role": "user", "content": "Tell me"},
        {"role": "assistant", "content": "Half"},
    ]
    assert body["add_generation_prompt"] is False


def test_reasoning_is_not_sent_back(engine, tab):
    def script(path, body):
        yield chat_event(reasoning="Let me think.")
        yield from chat_stream("42")

    engine.script = script
    ask(tab, "The answer?")
    expect(tab.get_by_role("button", name="Thought")).to_be_visible()
    expect(tab.locator("#chatbot")).to_contain_text("42")
    ask(tab, "Sure?")
    expect(tab.locator(NUMBERS)).to_have_count(2)
    contents = [message["content"] for message in engine.requests[1][2]["messages"]]
    assert contents == ["The answer?", "42", "Sure?"]


def test_think_tags_become_a_timed_thought(engine, tab):
    unfolded = threading.Event()

    def script(path, body):
        for character in "<think>\nLet me think.\n":
            yield chat_event(content=character)
        unfolded.wait(30)
        time.sleep(0.2)  # the page shows no duration if it is zero
        yield from chat_stream(*"</think>\n\nForty-two.")

    engine.script = script
    ask(tab, "The answer?")
    thought = tab.locator("#chatbot").get_by_text("Let me think.")
    expect(tab.get_by_role("button", name="Thinking")).to_be_visible()
    expect(thought).to_be_visible()
    unfolded.set()
    expect(tab.locator("#chatbot")).to_contain_text("Forty-two.")
    expect(tab.get_by_role("button", name=re.compile(r"Thought.*\(\d"))).to_be_visible()
    expect(thought).not_to_be_visible()
    assert "think>" not in tab.locator("#chatbot").inner_text()


def test_too_long_prompt_is_rejected_unsent(engine, tab):
    engine.script = lambda path, body: chat_stream(f"{body['max_tokens']}")
    engine.tokenize = lambda body: (200, {"count": 5000})
    ask(tab, "word " * 1000)
    expect(tab.locator("#chatbot")).to_contain_text(
        "has 5,000 tokens, but the model's context length is 4,096"
    )
    assert engine.requests == []
    engine.tokenize = lambda body: (200, {"count": 4000})
    ask(tab, "word")
    expect(tab.locator(ANSWER).last).to_have_text("96")  # what the context has left


def test_full_page_returns_the_message(page, visit):
    with ScriptedEngine(Endless()).running() as engine:
        url = page(engine.url, MAX_CONCURRENCY="1", MAX_QUEUE="1")
        running, waiting, rejected = (visit(url) for _ in range(3))
        ask(running, "First")
        expect(running.locator(ANSWER)).to_contain_text("word")
        ask(waiting, "Second")
        expect(waiting.locator("#chatbot")).to_contain_text("queue: 1/1")
        expect(waiting.locator(QUESTION)).to_have_text("Second")
        ask(rejected, "Third")
        expect(rejected.get_by_text("currently busy. Please try again.")).to_be_visible()
        expect(message_box(rejected)).to_have_value("Third")
        expect(rejected.locator("#message .submit-button")).to_be_visible()
        running.locator(STOP).click()
        expect(waiting.locator(ANSWER)).to_contain_text("word")


# -- settings and files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configured(shared_page) -> Iterator[tuple[ScriptedEngine, str]]:
    """A page with two sampling defaults and a model that takes images: (engine, URL)."""

    def tokenize(body: dict) -> tuple[int, dict]:
        looks = TEST_IMAGE in json.dumps(body)  # refuses what is no image, as vLLM does
        return (200, {"count": 9}) if looks else (400, {"error": {"message": "no image"}})

    engine = ScriptedEngine(lambda path, body: chat_stream("ok"), tokenize=tokenize)
    with engine.running():
        yield engine, shared_page(engine.url, TEMPERATURE="0.7", MAX_TOKENS="77")


def test_empty_sampling_fields_are_not_sent(configured, visit):
    engine, url = configured
    tab = visit(url)
    tab.get_by_label("System prompt").fill("Be kind.")
    tab.get_by_label("Top-p").fill("0.9")
    tab.get_by_role("button", name="More").click()
    tab.get_by_label("Seed").fill("5")
    tab.get_by_label("Stop sequences").fill("END\nFIN")
    ask(tab, "Hi")
    expect(tab.locator(ANSWER)).to_have_text("ok")
    body = dict(engine.requests[-1][2])
    assert body.pop("messages")[0] == {"role": "system", "content": "Be kind."}
    assert body == {
        "model": "scripted",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 77,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["END", "FIN"],
    }


def attach(tab, file, accepts):
    """Attach a file, once the message box accepts what this model takes."""
    chooser = tab.locator("#message input[type=file]")
    expect(chooser).to_have_attribute("accept", accepts)
    chooser.set_input_files(file)
    expect(tab.get_by_label("File thumbnail")).to_be_visible()


def test_text_file_joins_the_message(engine, tab, tmp_path):
    engine.script = lambda path, body: chat_stream("Seen")
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    attach(tab, tmp_path / "notes.txt", re.compile("^(?!.*png)"))
    ask(tab, "What?")
    expect(tab.locator(ANSWER)).to_have_text("Seen")
    content = engine.requests[0][2]["messages"][0]["content"]
    assert content == "What?\n\n**notes.txt**\n```\nRemember the milk.\n```"


def test_image_is_sent_to_a_vision_model(configured, visit, tmp_path):
    engine, url = configured
    tab = visit(url)
    (tmp_path / "dot.png").write_bytes(PNG)
    attach(tab, tmp_path / "dot.png", re.compile("png"))
    ask(tab, "What is it?")
    expect(tab.locator(ANSWER)).to_have_text("ok")
    expect(tab.locator("#chatbot .user img").first).to_be_visible()
    image, text = engine.requests[-1][2]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "What is it?"}


# -- conversations ---------------------------------------------------------------------------------


def test_conversations_survive_a_restart(program, visit):
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def start(engine_url):
        running = program([sys.executable, "app.py", "--port", str(port)], MODEL_URL=engine_url)
        running.wait_until_up(url)
        return running

    def script(path, body):
        return chat_stream("To " + body["messages"][-1]["content"])

    with ScriptedEngine(script).running() as engine:
        running = start(engine.url)
        tab = visit(url)
        for question in ("First question", "Second question"):
            ask(tab, question)
            expect(tab.locator("#conversations")).to_contain_text(question)
            tab.get_by_role("button", name="New chat").click()
            expect(tab.locator(QUESTION)).to_have_count(0)
        running.stop()
        start(engine.url)
        tab.reload()
        tab.get_by_role("radio", name="First question").click(timeout=20_000)
        expect(tab.locator(ANSWER)).to_have_text("To First question")
        ask(tab, "And then?")
        expect(tab.locator(ANSWER)).to_have_count(2)
        expect(tab.get_by_role("radio")).to_have_count(2)
        tab.get_by_role("button", name="Delete this conversation").click()
        expect(tab.get_by_role("radio")).to_have_count(1)
        expect(tab.locator(QUESTION)).to_have_count(0)
        tab.reload()
        expect(tab.get_by_role("radio", name="Second question")).to_be_visible(timeout=20_000)
        expect(tab.get_by_role("radio")).to_have_count(1)


def test_export_and_import_round_trip(engine, tab, tmp_path):
    def script(path, body):
        yield chat_event(reasoning="Hm.")
        yield from chat_stream("```python\n    x = 1\n```\n")

    def export(kind):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=f"Export as {kind}").click()
        return download.value

    engine.script = script
    tab.get_by_label("System prompt").first.fill("Be kind.")
    ask(tab, "Code, please")
    expect(tab.locator("#conversations")).to_contain_text("Code, please")
    tab.get_by_role("button", name="Export and import").click()
    markdown = export("Markdown")
    assert markdown.suggested_filename == "Code-please.md"
    assert "## You\n\nCode, please" in markdown.path().read_text()
    exported = export("JSON")
    assert exported.suggested_filename == "Code-please.json"
    messages = json.loads(exported.path().read_text())["messages"]
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Code, please"},
        {"role": "assistant", "content": "```python\n    x = 1\n```\n", "reasoning": "Hm."},
    ]

    tab.get_by_role("button", name="New chat").click()
    tab.get_by_label("System prompt").first.fill("")
    exported.save_as(tmp_path / "exported.json")
    tab.locator("#sidebar input[type=file]").set_input_files(tmp_path / "exported.json")
    expect(tab.locator(ANSWER).last).to_contain_text("x = 1")
    expect(tab.get_by_label("System prompt").first).to_have_value("Be kind.")
    expect(tab.get_by_role("radio")).to_have_count(2)
    assert json.loads(export("JSON").path().read_text())["messages"] == messages
