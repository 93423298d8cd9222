"""client.py against a scripted engine on a real socket: protocols, faults, closing."""

import json
from contextlib import closing

import pytest

from support.scripted_engine import ScriptedEngine, chat_stream, completion_stream, event
from vllm_space import client, errors
from vllm_space.catalog import Catalog

MESSAGES = [{"role": "user", "content": "Hi"}]


def collect(engine: ScriptedEngine, sampling: dict | None = None, prompt: str | None = None) -> str:
    model = client.models(client.Server.from_url(engine.url))[0]
    stream = (
        client.complete(model, prompt, sampling or {})
        if prompt
        else client.chat(model, MESSAGES, sampling or {})
    )
    return "".join(chunk.text for chunk in stream)


def test_chat_streams_what_the_engine_sent_with_its_end_and_its_numbers():
    with ScriptedEngine(lambda path, body: chat_stream("Hel", "lo ", "wörld")).running() as engine:
        model = client.models(client.Server.from_url(engine.url))[0]
        chunks = list(client.chat(model, MESSAGES, {"max_tokens": 5}))
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


def test_completion_streams_from_its_own_path():
    with ScriptedEngine(
        lambda path, body: completion_stream(" upon", " a time")
    ).running() as engine:
        assert collect(engine, prompt="Once") == " upon a time"
    assert engine.requests[0][0] == "/v1/completions"
    assert engine.requests[0][2]["prompt"] == "Once"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_comes_apart_from_the_answer(field):
    def script(path, body):
        yield event(choices=[{"delta": {field: "Hmm"}, "finish_reason": None}])
        yield from chat_stream("Yes")

    with ScriptedEngine(script).running() as engine:
        chunks = list(
            client.chat(client.models(client.Server.from_url(engine.url))[0], MESSAGES, {})
        )
    assert "".join(chunk.reasoning for chunk in chunks) == "Hmm"
    assert "".join(chunk.text for chunk in chunks) == "Yes"


@pytest.mark.parametrize("size", [1, 7])
def test_events_may_arrive_in_any_chunks(size):
    def script(path, body):
        data = b"".join(chat_stream("one ", "zwölf ", "三")) + b": keep-alive comment\n\n"
        for start in range(0, len(data), size):
            yield data[start : start + size]

    with ScriptedEngine(script).running() as engine:
        assert collect(engine) == "one zwölf 三"


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_the_legacy_server_echoes_the_prompt_and_sends_everything_so_far(separator):
    def script(path, body):
        for text in ("H", "Hel", "Hello \ufffd", "Hello \U0001f600"):
            yield json.dumps({"text": [body["prompt"] + text]}).encode() + separator

    with ScriptedEngine(script, models=None).running() as engine:
        assert (
            client.models(client.Server.from_url(f"{engine.url}/generate"))[0].protocol
            == "generate"
        )
        assert collect(engine, prompt="Say: ", sampling={"temperature": 0}) == "Hello \U0001f600"
        assert collect(engine) == "Hello \U0001f600"
    (path, _, completion), (_, _, chat) = engine.requests
    assert path == "/generate"
    assert completion == {"prompt": "Say: ", "stream": True, "temperature": 0}
    assert chat["prompt"] == "User: Hi\nAssistant:"
    assert chat["stop"] == ["\nUser:"]


@pytest.mark.parametrize("address", ["{}", "{}/", "{}/v1", "{}/v1/", "{}/generate"])
def test_every_form_of_the_address_works(address):
    with ScriptedEngine(lambda path, body: chat_stream("ok")).running() as engine:
        assert (
            client.models(client.Server.from_url(address.format(engine.url)))[0].name == "scripted"
        )


def test_the_key_is_sent_and_never_shown():
    with ScriptedEngine(lambda path, body: chat_stream("ok")).running() as engine:
        server = client.Server.from_url(engine.url, api_key="key-marked")
        list(client.chat(client.models(server)[0], MESSAGES, {}))
    assert engine.requests[0][1]["Authorization"] == "Bearer key-marked"
    assert "marked" not in repr(server)


def test_an_engine_that_is_not_there_is_unreachable():
    with pytest.raises(errors.Unreachable, match="cannot be reached"):
        client.models(client.Server.from_url("http://127.0.0.1:9"))


def test_closing_the_stream_closes_the_connection():
    with ScriptedEngine(
        lambda path, body: chat_stream(*["x"] * 1000, every=0.01)
    ).running() as engine:
        with closing(
            client.chat(client.models(client.Server.from_url(engine.url))[0], MESSAGES, {})
        ) as chunks:
            next(chunks)
            next(chunks)
        assert engine.left.wait(1)


def test_a_catalog_leaves_out_a_server_that_is_down_and_says_so():
    with ScriptedEngine(models=["one", "two"]).running() as engine:
        catalog = Catalog(
            [
                client.Server.from_url(engine.url, label="up"),
                client.Server.from_url("http://127.0.0.1:9", label="off"),
            ]
        )
        assert [model.label for model in catalog.models()] == ["one (up)", "two (up)"]
        assert list(catalog.problems()) == ["off"]
        assert catalog.find("two (up)").name == "two"
        assert catalog.find().name == "one"
        with pytest.raises(errors.Rejected, match="no model 'three'"):
            catalog.find("three")
