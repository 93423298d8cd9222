"""generation.py: every request is validated, fitted to what is left of the context, counted, and streamed."""

import threading

import pytest

from support.scripted_engine import ScriptedEngine, chat_stream, completion_stream
from vllm_space import generation, settings
from vllm_space.catalog import Catalog
from vllm_space.generation import Generation, Request
from vllm_space.page import conversation

HELLO = [{"role": "user", "content": "Hello"}]
CONTEXT = 4096  # of the scripted model


def script(path, body):
    return (
        chat_stream("Hello", " you") if "messages" in body else completion_stream("Hello", " you")
    )


def words(body: dict) -> tuple[int, dict]:
    """Count a word as a token, as /tokenize does for messages and for a prompt."""
    text = (
        body["prompt"]
        if "prompt" in body
        else " ".join(str(each["content"]) for each in body["messages"])
    )
    return 200, {"count": len(text.split())}


@pytest.fixture
def engine():
    with ScriptedEngine(script, tokenize=words).running() as engine:
        yield engine


@pytest.fixture
def ours(engine) -> Generation:
    config = settings.Settings(_env_file=None, model_url=engine.url)
    return Generation(config, Catalog.of(config))


def ask(ours: Generation, prompt, **fields):
    *_, answer = ours.answer(Request(prompt, **fields), "visitor")
    return answer


def as_chat(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("form", [str, as_chat], ids=["completion", "chat"])
@pytest.mark.parametrize(("tokens", "left"), [(10, 4086), (4000, 96), (4095, 1)])
def test_max_tokens_is_what_is_left(ours, engine, form, tokens, left):
    answer = ask(ours, form("word " * tokens), sampling={"max_tokens": 4096})
    assert (answer.text, answer.error) == ("Hello you", None)
    assert engine.requests[0][2]["max_tokens"] == left


@pytest.mark.parametrize(("form", "what"), [(str, "text"), (as_chat, "conversation")])
def test_a_full_context_is_a_sentence(ours, engine, form, what):
    answer = ask(ours, form("word " * CONTEXT))
    assert answer.error.startswith(
        f"The {what} has 4,096 tokens and the model's context holds 4,096"
    )
    assert engine.requests == []


def test_the_system_prompt_counts_too(ours, engine):
    ask(ours, HELLO, sampling={"max_tokens": 1000}, system_prompt="word " * 4000)
    assert engine.requests[0][2]["max_tokens"] == 95


def test_short_requests_are_not_counted(ours, engine):
    ask(ours, HELLO, sampling={"max_tokens": 100})
    assert "POST /tokenize" not in engine.asked
    assert engine.requests[0][2]["max_tokens"] == 100


def test_a_server_that_cannot_count_decides(ours, engine):
    engine.tokenize = lambda body: (404, {})
    ask(ours, "word " * 4000, sampling={"max_tokens": 4096})
    assert engine.requests[0][2]["max_tokens"] == 4096


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(HELLO, model="no-such"), "no model 'no-such'"),
        (Request(HELLO, sampling={"temperature": 9}), "temperature=9 is not allowed"),
        (Request([{"role": "king", "content": "x"}]), "Each message"),
        (Request([{"role": "user", "content": 5}]), "Each message"),
        (Request([{"role": "user", "content": [{"type": "text"}]}]), "Each message"),
        (Request([{"role": "user"}]), "Each message"),
        (Request(5), "cannot make sense"),
        (Request(HELLO, system_prompt=["x"]), "cannot make sense"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(ours, engine, request_, says):
    *_, answer = ours.answer(request_, "visitor")
    assert says in answer.error
    assert answer.ended
    assert engine.requests == []


def test_one_bad_request_leaves_the_others(ours):
    *_, answers = ours.answers(
        [Request(HELLO), Request(HELLO, model="no-such"), Request("Once")], "visitor"
    )
    assert [answer.text for answer in answers] == ["Hello you", "", "Hello you"]
    assert [bool(answer.error) for answer in answers] == [False, True, False]


def test_a_visitors_share_holds_under_threads(engine):
    """However many of one visitor's requests begin at the same moment, no more run than may."""
    running = threading.Semaphore(0)
    release = threading.Event()

    def held(path, body):
        running.release()
        release.wait(20)
        yield from chat_stream("x")

    engine.script = held
    config = settings.Settings(_env_file=None, model_url=engine.url, max_concurrency=16)
    ours = Generation(config, Catalog.of(config))
    ours.catalog.models()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(ours, HELLO))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        assert running.acquire(timeout=10)
    while len(answers) < 36:
        threads[0].join(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert sum(answer.error is None for answer in answers) == 4
    assert (ours.streams.active, dict(ours.streams.visitors)) == (0, {})


def test_what_is_sent_is_not_what_is_saved(ours, engine, monkeypatch):
    """What a fork puts before the system prompt reaches the engine and no saved conversation."""
    ours_first = {"role": "system", "content": "Today is Friday. MARKED"}
    original = generation.system_message
    monkeypatch.setattr(
        generation, "system_message", lambda prompt: [ours_first, *original(prompt)]
    )
    history = [conversation.message("user", "Hello")]
    answer = ask(ours, conversation.to_messages(history), system_prompt="Be kind.")
    assert engine.requests[0][2]["messages"][:2] == [
        ours_first,
        {"role": "system", "content": "Be kind."},
    ]
    history += conversation.shown(answer, ended=True)
    for saved in (
        conversation.written(history, "Be kind.", "id"),
        conversation.to_markdown(history, "Be kind."),
    ):
        assert "Be kind." in str(saved)
        assert "MARKED" not in str(saved)
