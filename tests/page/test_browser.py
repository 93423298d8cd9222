"""The page in a real Chromium, on scripted engines: what a visitor sees and does."""

import time

from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.scripted_engine import Cut, ScriptedEngine, chat_stream, completion_stream, event


def test_a_chat_of_turns_with_edit_retry_and_undo(page, visit):
    asked = []

    def script(path, body):
        asked.append([(one["role"], one["content"]) for one in body["messages"]])
        return chat_stream("Answer", f" {len(asked)}")

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "One")
        expect(tab.locator(ANSWER).last).to_have_text("Answer 1")
        ask(tab, "Two")
        expect(tab.locator(ANSWER).last).to_have_text("Answer 2")
        assert asked[-1] == [("user", "One"), ("assistant", "Answer 1"), ("user", "Two")]

        tab.get_by_label("Retry").last.click()
        expect(tab.locator(ANSWER).last).to_have_text("Answer 3")
        assert asked[-1] == asked[-2]

        tab.get_by_label("Edit").last.click()
        tab.locator("#chatbot textarea").last.fill("Two, please")
        tab.locator("#chatbot").get_by_label("Submit").last.click()
        expect(tab.locator(ANSWER).last).to_have_text("Answer 4")
        assert asked[-1][-1] == ("user", "Two, please")

        tab.get_by_label("Undo").last.click()
        expect(tab.get_by_placeholder("Type a message")).to_have_value("Two, please")
        expect(tab.locator(ANSWER)).to_have_count(1)


def test_stop_keeps_what_had_arrived_and_frees_the_engine(page, visit):
    with ScriptedEngine(
        lambda path, body: chat_stream(*["word "] * 5000, every=0.02)
    ).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "Count")
        expect(tab.locator(ANSWER).last).to_contain_text("word word word")
        tab.locator("#message .stop-button").click()
        assert engine.left.wait(1)
        assert "word" in tab.locator(ANSWER).last.inner_text()
        ask(tab, "Again")  # and the page is ready for the next
        expect(tab.locator("[data-testid=user]")).to_have_count(2)


def test_enter_during_an_answer_leaves_what_was_typed(page, visit):
    with ScriptedEngine(
        lambda path, body: chat_stream(*["word "] * 5000, every=0.02)
    ).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "Count")
        expect(tab.locator(ANSWER).last).to_contain_text("word word")
        box = tab.get_by_placeholder("Type a message")
        box.fill("And then?")
        box.press("Enter")
        expect(box).to_have_value("And then?")
        tab.locator("#message .stop-button").click()
        expect(tab.locator("#message .stop-button")).to_have_count(0)
        box.press("Enter")
        expect(tab.locator("[data-testid=user]").last).to_have_text("And then?")
        expect(box).to_have_value("")


def test_a_page_that_is_full_says_so_at_once_and_gives_the_message_back(page, visit):
    with ScriptedEngine(
        lambda path, body: chat_stream(*["word "] * 5000, every=0.05)
    ).running() as engine:
        url = page(engine.url, MAX_CONCURRENCY="1", MAX_QUEUE="1")
        running, waiting, refused = (visit(url) for _ in range(3))
        ask(running, "First")
        expect(running.locator(ANSWER).last).to_contain_text("word")
        ask(waiting, "Second")
        expect(waiting.locator("#chatbot")).to_contain_text("queue: 1/1")
        expect(waiting.locator("[data-testid=user]")).to_have_text("Second")
        ask(refused, "Third")
        expect(refused.get_by_text("currently busy. Please try again.")).to_be_visible()
        expect(refused.get_by_placeholder("Type a message")).to_have_value("Third")
        expect(refused.locator("#message .submit-button")).to_be_visible()
        running.locator("#message .stop-button").click()
        expect(waiting.locator(ANSWER).last).to_contain_text("word")


def test_a_failure_shows_its_sentence_and_keeps_the_partial_answer(page, visit):
    def script(path, body):
        yield event(choices=[{"delta": {"content": "The first half"}, "finish_reason": None}])
        raise Cut

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "Hi")
        expect(tab.locator("#chatbot")).to_contain_text("The answer was cut off")
        expect(tab.locator("#chatbot")).to_contain_text("The first half")
        expect(tab.locator("#chatbot")).to_contain_text("Hi")


def test_an_engine_that_is_down_is_a_sentence_and_the_question_stays(page, visit):
    tab = visit(page("http://127.0.0.1:9"))
    ask(tab, "Anybody there?")
    expect(tab.locator("#chatbot")).to_contain_text("cannot be reached")
    expect(tab.locator("#chatbot")).to_contain_text("Anybody there?")


def test_the_sampling_controls_are_sent_and_empty_ones_are_not(page, visit):
    with ScriptedEngine(lambda path, body: chat_stream("ok")).running() as engine:
        tab = visit(page(engine.url, TEMPERATURE="0.7", MAX_TOKENS="77"))
        tab.get_by_label("System prompt").fill("Be kind.")
        tab.get_by_label("Top-p").fill("0.9")
        tab.get_by_role("button", name="More").click()
        tab.get_by_label("Seed").fill("5")
        tab.get_by_label("Stop sequences").fill("END\nFIN")
        ask(tab, "Hi")
        expect(tab.locator(ANSWER).last).to_have_text("ok")
    body = engine.requests[0][2]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    sampling = {
        name: value
        for name, value in body.items()
        if name not in ("model", "messages", "stream", "stream_options")
    }
    assert sampling == {
        "max_tokens": 77,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["END", "FIN"],
    }


def test_what_is_typed_as_soon_as_a_part_of_the_page_opens_stays(page, visit):
    slow_frames = """() => {
        const frame = requestAnimationFrame;
        window.requestAnimationFrame = (callback) => setTimeout(() => frame(callback), 200);
    }"""
    two_frames = (
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    tab = visit(page("http://127.0.0.1:9"))
    tab.evaluate(slow_frames)
    for role, name, field in (
        ("button", "More", tab.get_by_label("Seed")),
        ("tab", "Completion", tab.locator("#text textarea")),
        ("tab", "Compare", tab.get_by_placeholder("One prompt")),
        (
            "button",
            "Settings of this column",
            tab.get_by_role("tabpanel").get_by_label("System prompt").first,
        ),
    ):
        tab.get_by_role(role, name=name).first.click()
        field.fill("5")
        tab.evaluate(two_frames)
        expect(field).to_have_value("5")


def test_completion_continues_in_place_and_can_be_undone(page, visit):
    with ScriptedEngine(
        lambda path, body: completion_stream(" upon", " a time")
    ).running() as engine:
        tab = visit(page(engine.url))
        tab.get_by_role("tab", name="Completion").click()
        text = tab.locator("#text textarea")
        text.fill("Once")
        tab.get_by_role("button", name="Complete").click()
        expect(text).to_have_value("Once upon a time")
        tab.get_by_role("button", name="Undo").click()
        expect(text).to_have_value("Once")


def test_thinking_is_apart_from_the_answer_and_not_sent_back(page, visit):
    def script(path, body):
        yield event(choices=[{"delta": {"reasoning": "Let me think."}, "finish_reason": None}])
        yield from chat_stream("42")

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "The answer?")
        expect(tab.get_by_role("button", name="Thought")).to_be_visible()
        expect(tab.locator("#chatbot")).to_contain_text("42")
        ask(tab, "Sure?")
        expect(tab.locator("[data-testid=user]")).to_have_count(2)
        deadline = time.monotonic() + 10
        while len(engine.requests) < 2 and time.monotonic() < deadline:
            tab.wait_for_timeout(50)
    contents = [message["content"] for message in engine.requests[1][2]["messages"]]
    assert contents == ["The answer?", "42", "Sure?"]


def test_login_in_the_browser(page, chromium):
    with ScriptedEngine(lambda path, body: chat_stream("in")).running() as engine:
        url = page(engine.url, APP_USERNAME="alice", APP_PASSWORD="right", APP_TITLE="My Space")
        tab = chromium.new_page()
        tab.goto(url)
        tab.get_by_label("User name").fill("alice")
        tab.get_by_label("Password").fill("wrong")
        tab.get_by_role("button", name="Sign in").click()
        expect(tab.get_by_role("alert")).to_contain_text("do not match")
        tab.get_by_label("User name").fill("alice")
        tab.get_by_label("Password").fill("right")
        tab.get_by_role("button", name="Sign in").click()
        expect(tab.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
        expect(tab.get_by_role("heading", name="My Space")).to_be_visible()
        tab.close()
