"""The page's tabs and kept conversations in a real Chromium, on scripted engines: what a visitor sees and does."""

import json
import re
import sys
import threading
import time

import pytest
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.programs import free_port, wait_for
from support.scripted_engine import ScriptedEngine, chat_stream, event

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def test_an_answer_cut_by_max_tokens_is_continued_in_place(page, visit):
    def script(path, body):
        return (
            chat_stream(" and more")
            if body.get("continue_final_message")
            else chat_stream("Half", finish="length")
        )

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "Tell me")
        expect(tab.locator("#chatbot small")).to_contain_text(
            re.compile(r"1 tokens · \d+ tokens/s · first after")
        )
        tab.get_by_text("Stopped at 1 tokens — Continue").click()
        expect(tab.locator(ANSWER)).to_have_text("Half and more")
        expect(tab.locator("[data-testid=user]")).to_have_count(1)
        expect(tab.get_by_text("— Continue")).to_have_count(0)
    body = engine.requests[1][2]
    assert body["messages"] == [
        {"role": "user", "content": "Tell me"},
        {"role": "assistant", "content": "Half"},
    ]
    assert body["add_generation_prompt"] is False


def test_conversations_are_kept_in_the_browser_over_a_restart_and_can_be_deleted(program, visit):
    command = [sys.executable, "app.py", "--port", str(port := free_port())]
    url = f"http://127.0.0.1:{port}"
    with ScriptedEngine(
        lambda path, body: chat_stream("To " + body["messages"][-1]["content"])
    ).running() as engine:
        running = program(command, MODEL_URL=engine.url)
        running.wait_until_up(url)
        tab = visit(url)
        for question in ("First question", "Second question"):
            ask(tab, question)
            expect(tab.locator("#conversations")).to_contain_text(question)
            tab.get_by_role("button", name="New chat").click()
            expect(tab.locator("[data-testid=user]")).to_have_count(0)
        running.stop()
        program(command, MODEL_URL=engine.url).wait_until_up(url)
        tab.reload()
        tab.get_by_role("radio", name="First question").click(timeout=20_000)
        expect(tab.locator(ANSWER)).to_have_text("To First question")
        ask(tab, "And then?")
        expect(tab.locator(ANSWER)).to_have_count(2)
        expect(tab.get_by_role("radio")).to_have_count(2)
        tab.get_by_role("button", name="Delete this conversation").click()
        expect(tab.get_by_role("radio")).to_have_count(1)
        expect(tab.locator("[data-testid=user]")).to_have_count(0)
        tab.reload()
        expect(tab.get_by_role("radio", name="Second question")).to_be_visible(timeout=20_000)
        expect(tab.get_by_role("radio")).to_have_count(1)


def test_export_then_import_gives_the_same_conversation(page, visit, tmp_path):
    def script(path, body):
        yield event(choices=[{"delta": {"reasoning": "Hm."}, "finish_reason": None}])
        yield from chat_stream("```python\n    x = 1\n```\n")

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url), accept_downloads=True)
        tab.get_by_label("System prompt").first.fill("Be kind.")
        ask(tab, "Code, please")
        expect(tab.locator("#conversations")).to_contain_text("Code, please")
        tab.get_by_role("button", name="Export and import").click()
        exported = tmp_path / "one.json"
        for kind in ("JSON", "Markdown"):
            with tab.expect_download() as download:
                tab.get_by_role("button", name=f"Export as {kind}").click()
            assert (
                download.value.suggested_filename
                == f"Code-please.{'json' if kind == 'JSON' else 'md'}"
            )
            download.value.save_as(exported if kind == "JSON" else tmp_path / "one.md")
        messages = json.loads(exported.read_text())["messages"]
        assert messages == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Code, please"},
            {"role": "assistant", "content": "```python\n    x = 1\n```\n", "reasoning": "Hm."},
        ]
        assert "## You\n\nCode, please" in (tmp_path / "one.md").read_text()

        tab.get_by_role("button", name="New chat").click()
        tab.get_by_label("System prompt").first.fill("")
        tab.locator("#sidebar input[type=file]").set_input_files(exported)
        expect(tab.locator(ANSWER).last).to_contain_text("x = 1")
        expect(tab.get_by_label("System prompt").first).to_have_value("Be kind.")
        expect(tab.get_by_role("radio")).to_have_count(2)
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Export as JSON").click()
        assert json.loads(download.value.path().read_text())["messages"] == messages


def test_bare_think_tags_fold_into_a_thought_that_tells_how_long(page, visit):
    seen = threading.Event()

    def script(path, body):
        for token in "<think>\nLet me think.\n":
            yield event(choices=[{"delta": {"content": token}, "finish_reason": None}])
        seen.wait(30)
        time.sleep(0.2)  # a thought of no time is shown without one
        yield from chat_stream(*"</think>\n\nForty-two.")

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "The answer?")
        expect(tab.get_by_role("button", name="Thinking")).to_be_visible()
        expect(tab.locator("#chatbot").get_by_text("Let me think.")).to_be_visible()
        seen.set()
        expect(tab.locator("#chatbot")).to_contain_text("Forty-two.")
        expect(tab.get_by_role("button", name=re.compile(r"Thought.*\(\d"))).to_be_visible()
        expect(tab.locator("#chatbot").get_by_text("Let me think.")).not_to_be_visible()
        assert "think>" not in tab.locator("#chatbot").inner_text()


def test_several_servers_fill_the_picker_and_one_that_is_down_is_shown_until_it_is_back(
    page, visit
):
    with (
        ScriptedEngine(lambda path, body: chat_stream("from one"), ["one"]).running() as first,
        ScriptedEngine(
            lambda path, body: chat_stream("from " + body["model"]), ["two", "three"]
        ).running() as second,
    ):
        servers = {"A": first.url, "B": second.url, "C": "http://127.0.0.1:9"}
        tab = visit(page(None, MODELS=json.dumps(servers)))
        expect(tab.locator("#banner")).to_contain_text("The model server C cannot be reached")
        tab.get_by_label("Model", exact=True).click()
        for label in ("one (A)", "two (B)", "three (B)"):
            expect(tab.get_by_role("option", name=label)).to_be_visible()
        tab.get_by_role("option", name="three (B)").click()
        expect(tab.locator("#about")).to_contain_text("three (B) · context of 4,096 tokens")
        ask(tab, "Who?")
        expect(tab.locator(ANSWER)).to_have_text("from three")


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers_before_it_is_sent(page, visit):
    script = lambda path, body: chat_stream(f"{body['max_tokens']}")  # noqa: E731
    with ScriptedEngine(script, tokenize=lambda body: (200, {"count": 5000})).running() as engine:
        tab = visit(page(engine.url))
        ask(tab, "word " * 1000)
        expect(tab.locator("#chatbot")).to_contain_text(
            "has 5,000 tokens and the model's context holds 4,096"
        )
        assert engine.requests == []
        engine.tokenize = lambda body: (200, {"count": 4000})
        ask(tab, "word")
        expect(tab.locator(ANSWER).last).to_have_text("96")  # the answer gets the room that is left


def test_compare_streams_two_servers_at_once_each_with_its_own_end(page, visit):
    seen = threading.Event()

    def script(path, body):
        word = {"one": "a ", "three": "c "}[body["model"]]
        for _ in range(2):
            yield event(choices=[{"delta": {"content": word}, "finish_reason": None}])
        seen.wait(30)
        yield from chat_stream(*[word] * 40)

    with (
        ScriptedEngine(script, ["one"]).running() as first,
        ScriptedEngine(lambda path, body: (500, {"detail": "broken"}), ["two"]).running() as second,
        ScriptedEngine(script, ["three"]).running() as third,
    ):
        servers = {"A": first.url, "B": third.url, "C": second.url}
        tab = visit(page(None, MODELS=json.dumps(servers)))
        open_tab(tab, "Compare")
        tab.get_by_role("button", name="Add a column").click()
        tab.get_by_placeholder("One prompt").fill("Go")
        tab.keyboard.press("Enter")
        answers = tab.locator(".compared")
        expect(answers.nth(0)).to_contain_text("a a")
        expect(answers.nth(1)).to_contain_text("c c")
        expect(answers.nth(0).locator("small")).to_have_count(0)  # both still run
        expect(answers.nth(2)).to_contain_text("HTTP 500")
        seen.set()
        for number in (0, 1):
            expect(answers.nth(number).locator("small")).to_contain_text("40 tokens")


def test_compare_asks_each_model_before_the_page_has_heard_of_them(page, visit):
    with ScriptedEngine(
        lambda path, body: chat_stream(body["model"]), ["one", "two"]
    ).running() as engine:
        url = page(engine.url)
        tab = visit(url)
        tab.route(
            "**/run/predict*", lambda route: None
        )  # a slow network: the page's first question stays on its way
        tab.reload()
        open_tab(tab, "Compare")
        tab.get_by_placeholder("One prompt").fill("Go")
        tab.keyboard.press("Enter")
        expect(tab.get_by_label("Model 1")).to_have_value("")
        for number, name in enumerate(("one", "two")):
            expect(tab.locator(".compared").nth(number)).to_contain_text(name)


def test_no_upload_of_pictures_where_the_model_takes_none_and_they_are_sent_where_it_does(
    page, visit, tmp_path
):
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    (tmp_path / "dot.png").write_bytes(PNG)
    with ScriptedEngine(lambda path, body: chat_stream("Seen")).running() as engine:
        tab = visit(page(engine.url))
        files = tab.locator("#message input[type=file]")
        expect(files).not_to_have_attribute("accept", re.compile("png"))
        files.set_input_files(tmp_path / "notes.txt")
        expect(tab.get_by_label("File thumbnail")).to_be_visible()
        ask(tab, "What?")
        expect(tab.locator(ANSWER)).to_have_text("Seen")
    assert (
        engine.requests[0][2]["messages"][0]["content"]
        == "What?\n\n**notes.txt**\n```\nRemember the milk.\n```"
    )

    sees = ScriptedEngine(
        lambda path, body: chat_stream("A dot"), tokenize=lambda body: (200, {"count": 9})
    )
    with sees.running():
        tab = visit(page(sees.url))
        files = tab.locator("#message input[type=file]")
        expect(files).to_have_attribute("accept", re.compile("png"))
        files.set_input_files(tmp_path / "dot.png")
        expect(tab.get_by_label("File thumbnail")).to_be_visible()
        ask(tab, "What is it?")
        expect(tab.locator(ANSWER)).to_have_text("A dot")
        expect(tab.locator("#chatbot .user img").first).to_be_visible()
    image, text = sees.requests[0][2]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "What is it?"}


def test_the_page_mends_itself_when_the_engine_comes_back(page, visit):
    engine = ScriptedEngine(lambda path, body: chat_stream("Back"), models=["one"])
    with engine.running():
        port = int(engine.url.rsplit(":", 1)[1])
    tab = visit(page(f"http://127.0.0.1:{port}"))
    expect(tab.locator("#banner")).to_contain_text("cannot be reached")
    tab.get_by_placeholder("Type a message").fill("Still here?")
    with engine.running(port):
        expect(tab.locator("#about")).to_contain_text("one", timeout=15_000)
        expect(tab.locator("#banner")).not_to_be_visible()
        expect(tab.get_by_placeholder("Type a message")).to_have_value("Still here?")
        tab.get_by_placeholder("Type a message").press("Enter")
        expect(tab.locator(ANSWER)).to_have_text("Back")


def test_an_answer_that_fails_makes_the_page_look_though_the_api_server_of_the_dead_engine_still_answers(
    page, visit
):
    engine = ScriptedEngine(models=["one"])
    with engine.running():
        tab = visit(page(engine.url))
        expect(tab.locator("#about")).to_contain_text("one")
        died = {"message": "EngineCore encountered an issue", "type": "InternalServerError"}

        def die(path: str, body: dict) -> tuple[int, dict]:
            engine.alive = False
            return 500, {"error": died}

        engine.script = die
        ask(tab, "Hello?")
        expect(tab.locator("#chatbot")).to_contain_text("engine has died")
        expect(tab.locator("#banner")).to_contain_text("cannot be reached")
        engine.alive = True
        expect(tab.locator("#banner")).not_to_be_visible(timeout=15_000)


def test_a_banner_says_what_the_engine_is_doing(page, visit, tmp_path):
    status = tmp_path / "status.json"
    state = {
        "state": "restarting",
        "phase": "loading the weights",
        "since": 1.0,
        "restarts": 1,
        "reason": "it died",
    }
    status.write_text(json.dumps(state))
    with ScriptedEngine().running() as engine:
        tab = visit(page(engine.url, ENGINE_RUN_DIR=str(tmp_path)))
        expect(tab.locator("#banner")).to_contain_text(
            "The engine is restarting: loading the weights."
        )
        expect(tab.locator("#banner")).to_contain_text("it died")
        status.write_text(json.dumps(state | {"state": "ready", "phase": ""}))
        expect(tab.locator("#banner")).not_to_be_visible(timeout=15_000)


def test_the_engine_log_is_for_the_owner_only_and_masked(page, visit, chromium, tmp_path):
    (tmp_path / "status.json").write_text(
        json.dumps({"state": "ready", "since": 1.0, "restarts": 2, "reason": "x"})
    )
    (tmp_path / "engine.log").write_text("dtype=torch.bfloat16\nline with key-of-the-engine\n")
    env = {"ENGINE_RUN_DIR": str(tmp_path), "MODEL_API_KEY": "key-of-the-engine"}
    with ScriptedEngine().running() as engine:
        tab = visit(page(engine.url, **env))
        open_tab(tab, "Status")
        expect(tab.locator("#facts")).to_contain_text("bfloat16")
        expect(tab.locator("#facts")).to_contain_text("Restarts: 2")
        assert tab.get_by_text("Engine log").count() == 0

        owner = chromium.new_page()
        owner.goto(page(engine.url, APP_USERNAME="alice", APP_PASSWORD="right", **env))
        owner.get_by_label("User name").fill("alice")
        owner.get_by_label("Password").fill("right")
        owner.get_by_role("button", name="Sign in").click()
        owner.get_by_role("tab", name="Status").click(timeout=20_000)
        owner.get_by_role("button", name="Engine log").click()
        expect(owner.get_by_text("line with ***")).to_be_visible()
        owner.close()


def test_nothing_is_polled_when_nobody_looks_at_the_status(page, visit):
    asked = []
    engine = ScriptedEngine(metrics=lambda: asked.append(1) or "vllm:num_requests_running 1.0\n")
    with engine.running():
        tab = visit(page(engine.url))
        tab.wait_for_timeout(2500)
        assert asked == []
        open_tab(tab, "Status")
        wait_for(lambda: len(asked) > 2, 10, "polling")
        open_tab(tab, "Chat")
        tab.wait_for_timeout(500)
        before = len(asked)
        tab.wait_for_timeout(3000)
        assert len(asked) == before


@pytest.mark.parametrize(
    ("keys", "says"), [({}, "/v1 is closed"), ({"API_KEYS": "k"}, "/v1 is open")]
)
def test_the_api_tab_says_whether_v1_is_open(page, visit, keys, says):
    with ScriptedEngine().running() as engine:
        tab = visit(page(engine.url, **keys))
        open_tab(tab, "API")
        expect(tab.get_by_text(says)).to_be_visible()


def test_escape_stops_and_shift_enter_breaks_the_line(page, visit):
    with ScriptedEngine(
        lambda path, body: chat_stream(*["word "] * 5000, every=0.02)
    ).running() as engine:
        tab = visit(page(engine.url))
        box = tab.get_by_placeholder("Type a message")
        box.fill("One")
        box.press("Shift+Enter")
        box.press_sequentially("Two")
        box.press("Enter")
        expect(tab.locator(ANSWER)).to_contain_text("word word")
        tab.keyboard.press("Escape")
        assert engine.left.wait(2)
    assert engine.requests[0][2]["messages"][0]["content"] == "One\nTwo"


def test_the_status_looks_only_while_it_is_seen_and_has_no_sampling_controls_beside_it(page, visit):
    with ScriptedEngine().running() as engine:
        tab = visit(page(engine.url))
        expect(tab.locator("#about")).to_contain_text("scripted")
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        open_tab(tab, "Status")
        wait_for(lambda: tab.wait_for_timeout(100) or len(asked) > 2, 15, "the second look")
        expect(tab.get_by_label("Top-p")).not_to_be_visible()
        open_tab(tab, "Completion")
        expect(tab.get_by_label("Top-p")).to_be_visible()
        tab.wait_for_timeout(1000)  # for a look that is on its way
        asked.clear()
        tab.wait_for_timeout(2500)
        assert asked == []


@pytest.mark.parametrize("name", ["Chat", "Completion", "Compare", "Status", "API"])
def test_every_tab_fits_a_phone_and_every_control_has_a_name(page, visit, name):
    with ScriptedEngine().running() as engine:
        tab = visit(page(engine.url), width=390)
        expect(tab.locator(".overflow-menu > button")).to_be_visible()  # it is known which tabs fit
        if not tab.get_by_role("tab", name=name, exact=True).is_visible():
            tab.locator(".overflow-menu > button").click()
            tab.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
        else:
            open_tab(tab, name)
        tab.wait_for_timeout(500)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        nameless = tab.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select")]
            .filter((one) => one.offsetParent && !one.innerText?.trim() && !one.ariaLabel && !one.title
              && !one.placeholder && !one.closest("label") && !one.labels?.length
              && !one.getAttribute("aria-labelledby") && one.type !== "file")
            .map((one) => one.outerHTML.slice(0, 120))"""
        )
        assert nameless == []


def test_it_works_where_the_browser_lets_it_keep_nothing(page, chromium):
    denied = """Object.defineProperty(window, "localStorage", {
        configurable: true, get() { throw new DOMException("Access is denied.", "SecurityError"); }
    })"""
    with ScriptedEngine(lambda path, body: chat_stream("kept")).running() as engine:
        tab = chromium.new_page()
        failures = []
        tab.on("pageerror", lambda error: failures.append(error))
        tab.add_init_script(denied)
        tab.goto(page(engine.url))
        ask(tab, "Hi")
        expect(tab.locator(ANSWER)).to_have_text("kept")
        expect(
            tab.get_by_role("radio", name="Hi")
        ).to_be_visible()  # for as long as the page is open
        assert failures == []
        tab.close()


def test_it_works_in_a_frame_of_another_page(page, chromium):
    with ScriptedEngine(lambda path, body: chat_stream("framed")).running() as engine:
        url = page(engine.url)
        outer = chromium.new_page()
        outer.set_content(f'<iframe src="{url}" width="1000" height="700"></iframe>')
        frame = outer.frame_locator("iframe")
        box = frame.get_by_placeholder("Type a message")
        box.fill("Hi", timeout=20_000)
        box.press("Enter")
        expect(frame.locator(ANSWER)).to_have_text("framed")
        outer.close()
