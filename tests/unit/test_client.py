"""The client against a scripted engine on a real socket: protocols, failures, closing."""

import json
import threading
from contextlib import closing

import pytest

from support.scripted_engine import ScriptedEngine, chat_event, chat_stream, completion_stream
from vllm_space import client, discovery, errors, tokenizer
from vllm_space.catalog import Catalog
from vllm_space.server import Model, Server

MESSAGES = [{"role": "user", "content": "Hi"}]
DOWN = "http://127.0.0.1:9"


def model_of(engine: ScriptedEngine) -> Model:
    return discovery.models(Server.from_url(engine.url))[0]


def read_all(stream: client.Stream) -> str:
    return "".join(chunk.text for chunk in stream)


def test_chat_streams_text_and_usage():
    with ScriptedEngine(lambda path, body: chat_stream("Hel", "lo ", "wörld")).running() as engine:
        chunks = list(client.chat(model_of(engine), MESSAGES, {"max_tokens": 5}))
    assert "".join(chunk.text for chunk in chunks) == "Hello wörld"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert chunks[-1].usage["completion_tokens"] == 3
    path, _, body = engine.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "scripted",
        "messages": MESSAGES,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_completion_streams_text():
    def script(path, body):
        return completion_stream(" upon", " a time")

    with ScriptedEngine(script).running() as engine:
        assert read_all(client.complete(model_of(engine), "Once", {})) == " upon a time"
    assert engine.requests[0][0] == "/v1/completions"
    assert engine.requests[0][2]["prompt"] == "Once"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_separate_from_text(field):
    def script(path, body):
        yield chat_event(**{field: "Hmm"})
        yield from chat_stream("Yes")

    with ScriptedEngine(script).running() as engine:
        chunks = list(client.chat(model_of(engine), MESSAGES, {}))
    assert "".join(chunk.reasoning for chunk in chunks) == "Hmm"
    assert "".join(chunk.text for chunk in chunks) == "Yes"


@pytest.mark.parametrize("size", [1, 7])
def test_events_split_anywhere_are_parsed(size):
    def script(path, body):
        data = b"".join(chat_stream("one ", "zwölf ", "三")) + b": keep-alive comment\n\n"
        for start in range(0, len(data), size):
            yield data[start : start + size]

    with ScriptedEngine(script).running() as engine:
        assert read_all(client.chat(model_of(engine), MESSAGES, {})) == "one zwölf 三"


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_legacy_server_is_understood(separator):
    def script(path, body):
        for text in ("H", "Hel", "Hello \ufffd", "Hello \U0001f600"):
            yield json.dumps({"text": [body["prompt"] + text]}).encode() + separator

    with ScriptedEngine(script, models=None).running() as engine:
        model = discovery.models(Server.from_url(f"{engine.url}/generate"))[0]
        assert model.protocol == "generate"
        completion = client.complete(model, "Say: ", {"temperature": 0})
        assert read_all(completion) == "Hello \U0001f600"
        assert read_all(client.chat(model, MESSAGES, {})) == "Hello \U0001f600"
    (path, _, completion_body), (_, _, chat_body) = engine.requests
    assert path == "/generate"
    assert completion_body == {"prompt": "Say: ", "stream": True, "temperature": 0}
    assert chat_body["prompt"] == "User: Hi\nAssistant:"
    assert chat_body["stop"] == ["\nUser:"]


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/v1", "{}/v1/", "{}/generate"])
def test_url_is_accepted_in_any_form(form):
    with ScriptedEngine().running() as engine:
        assert discovery.models(Server.from_url(form.format(engine.url)))[0].name == "scripted"


def test_api_key_is_sent_but_not_printed():
    with ScriptedEngine(lambda path, body: chat_stream("ok")).running() as engine:
        server = Server.from_url(engine.url, api_key="key-marked")
        list(client.chat(discovery.models(server)[0], MESSAGES, {}))
    assert engine.requests[0][1]["Authorization"] == "Bearer key-marked"
    assert "marked" not in repr(server)


def test_missing_server_is_unreachable():
    with pytest.raises(errors.Unreachable, match="cannot be reached"):
        discovery.models(Server.from_url(DOWN))


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31mred", "\u202eright to left", "x" * 501, "", None, 5, {"a": 1}]
)
def test_unprintable_model_names_are_left_out(name):
    with ScriptedEngine(models=["fine", name]).running() as engine:
        assert [model.name for model in discovery.models(Server.from_url(engine.url))] == ["fine"]


def test_close_closes_the_connection():
    def script(path, body):
        return chat_stream(*["x"] * 1000, every=0.01)

    with ScriptedEngine(script).running() as engine:
        with closing(client.chat(model_of(engine), MESSAGES, {})) as chunks:
            next(chunks)
            next(chunks)
        assert engine.client_left.wait(1)


def test_catalog_omits_servers_that_are_down():
    with ScriptedEngine(models=["one", "two"]).running() as engine:
        up, down = Server.from_url(engine.url, label="up"), Server.from_url(DOWN, label="off")
        catalog = Catalog([up, down])
        assert [model.label for model in catalog.models()] == ["one (up)", "two (up)"]
        assert list(catalog.problems()) == ["off"]
        assert catalog.find("two (up)").name == "two"
        assert catalog.find().name == "one"
        with pytest.raises(errors.Rejected, match="no model 'three'"):
            catalog.find("three")


def test_tokens_are_counted_one_at_a_time(monkeypatch):
    """Whoever does not get their turn goes on without a count."""
    begun, release = threading.Semaphore(0), threading.Event()

    def tokenize(body):
        begun.release()
        release.wait(10)
        return 200, {"count": len(body["prompt"])}

    counts: list[int | None] = []
    with ScriptedEngine(tokenize=tokenize).running() as engine:
        model = model_of(engine)

        def count(text: str) -> None:
            counts.append(tokenizer.count_tokens(model, text))

        threads = [threading.Thread(target=count, args=(text,)) for text in ("x", "xx", "xxx")]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=5)
        assert not begun.acquire(timeout=0.3)
        monkeypatch.setattr(tokenizer, "COUNT_WAIT", 0.1)
        assert tokenizer.count_tokens(model, "xxxx") is None
        release.set()
        for thread in threads:
            thread.join()
    assert sorted(counts) == [1, 2, 3]
