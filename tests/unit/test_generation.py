"""Requests on their way to the engine: validated, fitted to the context, limited per visitor."""

import threading

import pytest

from support.scripted_engine import ScriptedEngine, chat_stream, completion_stream
from vllm_space.catalog import Catalog
from vllm_space.generation import Generation, Request, system_message
from vllm_space.page import conversation
from vllm_space.settings import Settings

HELLO = [{"role": "user", "content": "Hello"}]
CONTEXT = 4096  # tokens, of the scripted model


def script(path, body):
    stream = chat_stream if "messages" in body else completion_stream
    return stream("Hello", " you")


def count_words(body: dict) -> tuple[int, dict]:
    """/tokenize with one token per word."""
    texts = [body.get("prompt", "")]
    texts += [str(message["content"]) for message in body.get("messages", [])]
    return 200, {"count": len(" ".join(texts).split())}


def generation_for(engine: ScriptedEngine, **variables: object) -> Generation:
    config = Settings(_env_file=None, model_url=engine.url, **variables)
    return Generation(config, Catalog.of(config))


@pytest.fixture
def engine():
    with ScriptedEngine(script, tokenize=count_words).running() as engine:
        yield engine


@pytest.fixture
def generation(engine) -> Generation:
    return generation_for(engine)


def ask(generation: Generation, prompt, **fields):
    *_, answer = generation.answer(Request(prompt, **fields), "visitor")
    return answer


def as_chat(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("form", [str, as_chat], ids=["completion", "chat"])
@pytest.mark.parametrize(("tokens", "left"), [(10, 4086), (4000, 96), (4095, 1)])
def test_max_tokens_fits_the_context(generation, engine, form, tokens, left):
    answer = ask(generation, form("word " * tokens), sampling={"max_tokens": 4096})
    assert (answer.text, answer.error) == ("Hello you", None)
    assert engine.requests[0][2]["max_tokens"] == left


@pytest.mark.parametrize(("form", "name"), [(str, "text"), (as_chat, "conversation")])
def test_full_context_is_rejected(generation, engine, form, name):
    answer = ask(generation, form("word " * CONTEXT))
    assert answer.error == (
        f"The {name} has 4,096 tokens, but the model's context length is 4,096, "
        "including the answer. Shorten it."
    )
    assert engine.requests == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("x " * 17_000), "The text has 34,"),
        (Request(as_chat("x " * 17_000)), "The conversation has 34,"),
        (Request(HELLO, system_prompt="x " * 17_000), "The conversation has 34,"),
        (Request(HELLO, sampling={"stop": "x " * 17_000}), ""),
        (Request([{"role": "user", "content": "x", "name": "x " * 17_000}]), "34,"),
        (Request("x " * 1_100_000), "The request has 2.2 MB of text; at most 2 MB are allowed"),
        (Request(as_chat("\u0e01" * 700_000)), "The request has 2.1 MB of text"),
    ],
)
def test_huge_texts_never_reach_the_engine(generation, engine, request_, reason):
    *_, answer = generation.answer(request_, "visitor")
    assert reason in answer.error
    assert [line for line in engine.request_lines if line.startswith("POST")] == []


def test_megabytes_are_refused_offline():
    """Before anything is asked of the server."""
    config = Settings(_env_file=None, model_url="http://127.0.0.1:9")
    answer = ask(Generation(config, Catalog.of(config)), "x" * 2_100_000)
    assert "2.1 MB of text" in answer.error


def test_images_are_not_counted_as_text(generation, engine):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000}}
    answer = ask(generation, [{"role": "user", "content": [image]}])
    assert answer.text == "Hello you"


def test_system_prompt_counts_too(generation, engine):
    ask(generation, HELLO, sampling={"max_tokens": 1000}, system_prompt="word " * 4000)
    assert engine.requests[0][2]["max_tokens"] == 95


def test_short_prompts_are_not_tokenized(generation, engine):
    ask(generation, HELLO, sampling={"max_tokens": 100})
    assert "POST /tokenize" not in engine.request_lines
    assert engine.requests[0][2]["max_tokens"] == 100


def test_server_without_tokenize_decides(generation, engine):
    engine.tokenize = lambda body: (404, {})
    ask(generation, "word " * 4000, sampling={"max_tokens": 4096})
    assert engine.requests[0][2]["max_tokens"] == 4096


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (Request(HELLO, model="no-such"), "no model 'no-such'"),
        (Request(HELLO, sampling={"temperature": 9}), "temperature=9 is invalid"),
        (Request([{"role": "king", "content": "x"}]), "Each message"),
        (Request([{"role": "user", "content": 5}]), "Each message"),
        (Request([{"role": "user", "content": [{"type": "text"}]}]), "Each message"),
        (Request([{"role": "user"}]), "Each message"),
        (Request(5), "malformed"),
        (Request(HELLO, system_prompt=["x"]), "malformed"),
    ],
)
def test_invalid_requests_are_rejected(generation, engine, invalid, message):
    *_, answer = generation.answer(invalid, "visitor")
    assert message in answer.error
    assert answer.ended
    assert engine.requests == []


def test_one_bad_request_spares_the_others(generation):
    requests = [Request(HELLO), Request(HELLO, model="no-such"), Request("Once")]
    *_, answers = generation.answers(requests, "visitor")
    assert [answer.text for answer in answers] == ["Hello you", "", "Hello you"]
    assert [bool(answer.error) for answer in answers] == [False, True, False]


def test_visitor_limit_holds_under_threads(engine):
    """Of 40 concurrent requests from one visitor, exactly as many run as the limit allows."""
    running = threading.Semaphore(0)
    release = threading.Event()

    def hold(path, body):
        running.release()
        release.wait(20)
        yield from chat_stream("x")

    engine.script = hold
    generation = generation_for(engine, max_concurrency=16)
    generation.catalog.models()
    answers = []

    def run() -> None:
        answers.append(ask(generation, HELLO))

    threads = [threading.Thread(target=run) for _ in range(40)]
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
    assert (generation.streams.active, dict(generation.streams.visitors)) == (0, {})


def test_system_message_is_not_saved(generation, engine, monkeypatch):
    """What a fork adds in system_message reaches the engine, but no saved conversation."""
    addition = {"role": "system", "content": "Today is Friday. MARKED"}
    monkeypatch.setattr(
        "vllm_space.generation.system_message",
        lambda prompt: [addition, *system_message(prompt)],
    )
    history = [conversation.text_message("user", "Hello")]
    answer = ask(generation, conversation.to_messages(history), system_prompt="Be kind.")
    system_prompt = {"role": "system", "content": "Be kind."}
    assert engine.requests[0][2]["messages"][:2] == [addition, system_prompt]
    history += conversation.answer_messages(answer, ended=True)
    for saved in (
        conversation.to_stored(history, "Be kind.", "id"),
        conversation.to_markdown(history, "Be kind."),
    ):
        assert "Be kind." in str(saved)
        assert "MARKED" not in str(saved)
