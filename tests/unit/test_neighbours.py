"""What the servers in the field send, on a real socket, up to the answer that the page shows.

Neighbours of tests/cases, also some that must stay as they are: written after the documentation and
the bug reports of the servers that they are named for. Everything but Gradio is real.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from support import coroutines
from support.wire import JSON, SSE, Reply, Wire, delta, events
from vllm_space import client, errors, sampling
from vllm_space.catalog import Catalog
from vllm_space.generation import Generation, Request
from vllm_space.health import Health
from vllm_space.settings import VARIABLES, Settings, load
from vllm_space.streaming import Answer

LIST = {"object": "list", "data": [{"id": "toy", "object": "model", "owned_by": "me"}]}
CHAT = "POST /v1/chat/completions"
MODELS = "GET /v1/models"


def chatting(reply: Any, models: Any = LIST) -> Wire:
    """A server with one model. `reply` is how it answers chats."""
    return Wire({MODELS: Reply(body=models), CHAT: reply})


def settings(**values: Any) -> Settings:
    return Settings(**values)


def ask(wire: Wire, *turns: str, path: str = "", **values: Any) -> Answer:
    """The answer that the page shows to a conversation; a failure is its `error`."""
    config = settings(model_url=wire.url + path, **values)
    generation = Generation(config, Catalog.of(config))
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns or ["Hi"])]
    request = Request(messages, sampling=sampling.defaults(config))
    with closing(generation.answer(request, "me")) as answers:
        *_, answer = answers
    return answer


HI, STOP = delta(content="Hi"), delta("stop")


def check(answer: Answer, text: str = "", reasoning: str = "", error: str = "") -> None:
    assert (answer.text, answer.reasoning.strip()) == (text, reasoning)
    if error:
        assert answer.error and error in answer.error
        assert str(errors.internal()) != answer.error
    else:
        assert answer.error is None


# -- streams ---------------------------------------------------------------------------------------

WORDS = "The far engine went away"
STREAMS: dict[str, tuple[bytes, dict[str, str]]] = {
    # errors in mid-stream
    "openrouter: provider disconnected": (
        b": OPENROUTER PROCESSING\n\n"
        + events(
            HI,
            {
                "id": "gen-1",
                "error": {"code": 502, "message": WORDS},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            },
        ),
        {"text": "Hi", "error": WORDS},
    ),
    "lm studio: an event named error, a string": (
        events(HI, end=f'event: error\ndata: {{"error": "{WORDS}"}}\n\n'),
        {"text": "Hi", "error": WORDS},
    ),
    "an event named error, plain text": (
        events(HI, end=f"event: error\ndata: {WORDS}\n\n"),
        {"text": "Hi", "error": WORDS},
    ),
    "anthropic's form": (
        events(HI, {"type": "error", "error": {"type": "overloaded_error", "message": WORDS}}),
        {"text": "Hi", "error": WORDS},
    ),
    "localai: code 500, empty type": (
        events(HI, {"error": {"code": 500, "message": f"rpc error: {WORDS}", "type": ""}}),
        {"text": "Hi", "error": WORDS},
    ),
    "litellm: code as a string": (
        events(HI, {"error": {"message": WORDS, "type": "None", "param": "None", "code": "500"}}),
        {"text": "Hi", "error": WORDS},
    ),
    "fastapi: detail": (events(HI, {"detail": WORDS}), {"text": "Hi", "error": WORDS}),
    "fastapi: detail as a list": (
        events({"detail": [{"loc": ["body"], "msg": WORDS, "type": "value_error"}]}),
        {"error": WORDS},
    ),
    "qianfan: error_msg": (
        events({"error_code": 336003, "error_msg": WORDS, "id": "x"}, end=""),
        {"error": WORDS},
    ),
    "dashscope: code and message": (
        events(HI, {"code": "Throttling", "message": WORDS, "request_id": "1"}),
        {"text": "Hi", "error": WORDS},
    ),
    "minimax: base_resp": (
        events({"choices": None, "base_resp": {"status_code": 1008, "status_msg": WORDS}}),
        {"error": WORDS},
    ),
    "an array with an error": (events([{"error": {"message": WORDS}}]), {"error": WORDS}),
    "finish reason error, without words": (
        events(HI, delta("error", content="")),
        {"text": "Hi", "error": " "},
    ),
    "sglang, vllm: aborted": (events(HI, delta("abort")), {"text": "Hi", "error": " "}),
    "cut off after some text": (events(HI, end=""), {"text": "Hi", "error": "cut off"}),
    # what is no error
    "null, empty and false errors": (
        events(
            HI | {"error": None}, HI | {"error": {}}, HI | {"error": ""}, STOP | {"error": False}
        ),
        {"text": "HiHiHi"},
    ),
    "a text about an error": (
        events(delta(content='{"error": "x"} data: [DONE]\n\nerror: y'), STOP),
        {"text": '{"error": "x"} data: [DONE]\n\nerror: y'},
    ),
    "an answer with other fields named like errors": (
        events(HI | {"message": None, "detail": None, "code": 200, "status": "ok"}, STOP),
        {"text": "Hi"},
    ),
    # choices and deltas
    "azure: the prompt's filter results first": (
        events({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, HI, STOP),
        {"text": "Hi"},
    ),
    "together: text and delta": (
        events(
            {"choices": [{"index": 0, "text": "Hi", "delta": {"content": "Hi"}}]},
            delta("eos", content=""),
        ),
        {"text": "Hi"},
    ),
    "perplexity: the whole message beside the delta": (
        events(
            {"choices": [{"index": 0, "delta": {"content": "He"}, "message": {"content": "He"}}]},
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": "llo"},
                        "message": {"content": "Hello"},
                        "finish_reason": "stop",
                    }
                ]
            },
        ),
        {"text": "Hello"},
    ),
    "other choices": (
        events(HI, {"choices": [{"index": 1, "delta": {"content": "Ho"}}]}, STOP),
        {"text": "Hi"},
    ),
    "no index, no finish reason": (
        events({"choices": [{"delta": {"content": "Hi"}}]}),
        {"text": "Hi"},
    ),
    "null choices and deltas": (
        events({"choices": None}, {"choices": [{"index": 0, "delta": None}]}, HI, STOP),
        {"text": "Hi"},
    ),
    "a choice that is null": (events({"choices": [None]}, HI, STOP), {"text": "Hi"}),
    "usage on each event": (
        events(HI | {"usage": {"completion_tokens": 1}}, STOP | {"usage": None}),
        {"text": "Hi"},
    ),
    "gemini: upper case": (events(HI, delta("STOP", content="")), {"text": "Hi"}),
    "events after the end": (
        events(HI, STOP) + events(delta(content="more")),
        {"text": "Hi"},
    ),
    "only tool calls": (
        events(delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]), delta("tool_calls")),
        {},
    ),
    # content and reasoning
    "mistral: parts, references": (
        events(
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            delta(content=[{"type": "text", "text": "Hi"}, {"type": "reference", "ids": [1]}]),
            STOP,
        ),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "responses: output_text": (
        events(delta(content=[{"type": "output_text", "text": "Hi", "annotations": []}]), STOP),
        {"text": "Hi"},
    ),
    "a single part": (events(delta(content={"type": "text", "text": "Hi"}), STOP), {"text": "Hi"}),
    "openrouter: reasoning twice": (
        events(
            delta(
                content="",
                reasoning="hm",
                reasoning_details=[{"type": "reasoning.text", "text": "hm", "index": 0}],
            ),
            HI,
            STOP,
        ),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "openrouter: summary and encrypted": (
        events(
            delta(reasoning_details=[{"type": "reasoning.summary", "summary": "hm"}]),
            delta(reasoning_details=[{"type": "reasoning.encrypted", "data": "AAAA"}]),
            HI,
            STOP,
        ),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "ollama: thinking": (
        events(delta(content="", thinking="hm"), HI, STOP),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "deepseek: nulls": (
        b": keep-alive\n\n"
        + events(
            delta(content=None, reasoning_content="hm"),
            delta(content="Hi", reasoning_content=None),
            STOP,
        ),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "vllm 0.29: both names": (
        events(delta(reasoning="hm", reasoning_content="hm"), HI, STOP),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "a refusal": (
        events(delta(content=None, refusal="I must not."), delta("stop")),
        {"text": "I must not."},
    ),
    # the form of events
    "named message": (
        b"event: message\nid: 1\nretry: 3000\n" + events(HI, STOP),
        {"text": "Hi"},
    ),
    "ping events": (
        b"event: ping\ndata: {}\n\n" + events(HI, "ping", "", '{"type": "ping"}', STOP),
        {"text": "Hi"},
    ),
    "byte order mark": (b"\xef\xbb\xbf" + events(HI, STOP), {"text": "Hi"}),
    "no blank line at the end": (events(HI, STOP, end="").rstrip(b"\n"), {"text": "Hi"}),
    "an event over several lines": (
        b"".join(b"data: %s\n" % line for line in json.dumps(HI, indent=1).encode().split(b"\n"))
        + b"\n"
        + events(STOP),
        {"text": "Hi"},
    ),
    "bytes that are no UTF-8": (
        events(HI, end="")
        + b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'
        + events(STOP),
        {"text": "Hi\ufffd"},
    ),
    "lines of JSON": (
        (json.dumps(HI) + "\n" + json.dumps(STOP) + "\n").encode(),
        {"text": "Hi"},
    ),
    "a whole answer in one event": (
        events({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}),
        {"text": "Hi"},
    ),
    "nothing at all": (b"", {"error": "cut off"}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_stream_becomes_the_right_answer(name):
    body, right = STREAMS[name]
    with chatting(Reply(body=body, content_type=SSE)).running() as wire:
        check(ask(wire), **right)


# -- whole bodies ----------------------------------------------------------------------------------

WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>x</body></html>"
BODIES: dict[str, tuple[Reply, dict[str, str]]] = {
    "pretty-printed": (Reply(body=json.dumps(WHOLE, indent=2).encode()), {"text": "Hi"}),
    "as text": (Reply(body=WHOLE, content_type="text/plain; charset=utf-8"), {"text": "Hi"}),
    "deepseek: blank lines first": (
        Reply(body=b"\n\n\n" + json.dumps(WHOLE).encode()),
        {"text": "Hi"},
    ),
    "whole, with reasoning": (
        Reply(body={"choices": [{"message": {"content": "Hi", "reasoning_content": "hm"}}]}),
        {"text": "Hi", "reasoning": "hm"},
    ),
    "a stream that says it is JSON": (Reply(body=events(HI, STOP)), {"text": "Hi"}),
    "200, an error string": (Reply(body={"error": WORDS}), {"error": WORDS}),
    "openrouter: whole, with an error in the choice": (
        Reply(body={"choices": [{"error": {"code": 502, "message": WORDS}, "message": {}}]}),
        {"error": WORDS},
    ),
    "200, cloudflare's errors": (
        Reply(
            body={"success": False, "errors": [{"code": 7003, "message": WORDS}], "result": None}
        ),
        {"error": WORDS},
    ),
    "200, minimax's base_resp": (
        Reply(body={"choices": None, "base_resp": {"status_code": 1008, "status_msg": WORDS}}),
        {"error": WORDS},
    ),
    "200, plain words": (Reply(body=WORDS.encode(), content_type="text/plain"), {"error": WORDS}),
    "200, a page": (Reply(body=HTML, content_type="text/html"), {"error": "MODEL_URL"}),
    "200, null": (Reply(body=b"null"), {"error": " "}),
    "gemini: an array": (
        Reply(400, [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}]),
        {"error": WORDS},
    ),
    "mistral: a message that is an object": (
        Reply(422, {"object": "error", "message": {"detail": [{"msg": WORDS, "loc": ["body"]}]}}),
        {"error": WORDS},
    ),
    "cloudflare's errors": (
        Reply(400, {"success": False, "errors": [{"code": 7003, "message": WORDS}]}),
        {"error": WORDS},
    ),
    "aws: Message": (Reply(400, {"Message": WORDS}), {"error": WORDS}),
    "tgi: error and type": (
        Reply(422, {"error": WORDS, "error_type": "validation"}),
        {"error": WORDS},
    ),
    "plain text": (Reply(500, WORDS.encode(), "text/plain"), {"error": WORDS}),
    "502, a page": (Reply(502, HTML, "text/html"), {"error": " "}),
    "quota, with advice": (
        Reply(429, {"error": {"message": f"{WORDS}. Please try again in 7.66s."}}),
        {"error": f"{WORDS}. Please try again in 7.66s."},
    ),
    "429 without words": (Reply(429, b"", "text/plain"), {"error": "busy"}),
    "billing": (Reply(402, {"error": {"message": WORDS, "code": 402}}), {"error": WORDS}),
    "llama.cpp: still loading": (
        Reply(503, {"error": {"message": "Loading model", "type": "unavailable_error"}}),
        {"error": "Loading model"},
    ),
    "hugging face: loading": (
        Reply(503, {"error": "Model toy is currently loading", "estimated_time": 20.0}),
        {"error": "currently loading"},
    ),
    "region": (
        Reply(403, {"error": {"message": WORDS, "code": "unsupported_country_region_territory"}}),
        {"error": WORDS},
    ),
    "a wrong key": (
        Reply(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}),
        {"error": "MODEL_API_KEY"},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_body_becomes_the_right_answer(name):
    reply, right = BODIES[name]
    with chatting(reply).running() as wire:
        answer = ask(wire)
    check(answer, **right)
    assert "<html" not in (answer.error or "").lower()


def test_key_in_the_servers_words_is_masked():
    reply = Reply(401, {"error": {"message": "Incorrect API key provided: sk-0123456789abcdef."}})
    with chatting(reply).running() as wire:
        answer = ask(wire, model_api_key="sk-0123456789abcdef")
    assert "sk-0123456789abcdef" not in answer.error


# -- lists of models -------------------------------------------------------------------------------

LISTS: dict[str, tuple[Any, list[str]]] = {  # names that are offered for chat
    "together: a bare list with types": (
        [
            {"id": "a", "type": "chat"},
            {"id": "b", "type": "embedding"},
            {"id": "c", "type": "image"},
        ],
        ["a"],
    ),
    "ollama": ({"models": [{"name": "llama3:8b", "model": "llama3:8b", "size": 1}]}, ["llama3:8b"]),
    "lm studio": (
        {"data": [{"id": "a", "type": "llm"}, {"id": "b", "type": "embeddings"}]},
        ["a"],
    ),
    "openrouter": (
        {"data": [{"id": "a/b", "architecture": {"modality": "text+image->text"}}]},
        ["a/b"],
    ),
    "mistral": (
        {
            "data": [
                {"id": "a", "capabilities": {"completion_chat": True, "vision": False}},
                {"id": "b", "capabilities": {"completion_chat": False}},
            ]
        },
        ["a"],
    ),
    "github: an id that is an address": (
        [
            {
                "id": "azureml://registries/x/models/a/versions/2",
                "name": "a",
                "task": "chat-completion",
            }
        ],
        ["a"],
    ),
    "cohere": (
        {"models": [{"name": "a", "endpoints": ["chat"]}, {"name": "b", "endpoints": ["rerank"]}]},
        ["a"],
    ),
    "entries without ids": ({"data": [{}, None, 5, {"id": None}, {"id": "a"}]}, ["a"]),
    "names twice": ({"data": [{"id": "a"}, {"id": "a"}]}, ["a"]),
    "names alone": (["a", "b"], ["a", "b"]),
    "llama.cpp: both": (
        {"models": [{"name": "a.gguf"}], "object": "list", "data": [{"id": "a.gguf"}]},
        ["a.gguf"],
    ),
    "the usual": (LIST, ["toy"]),
    "a name that only sounds like another use": (
        {"data": [{"id": "embedding-expert-chat"}]},
        ["embedding-expert-chat"],
    ),
}


def catalog_of(wire: Wire, path: str = "", **values: Any) -> Catalog:
    return Catalog.of(settings(model_url=wire.url + path, **values))


@pytest.mark.parametrize("name", LISTS)
def test_list_offers_the_models_that_chat(name):
    body, names = LISTS[name]
    with chatting(Reply(), models=body).running() as wire:
        catalog = catalog_of(wire)
        assert [model.name for model in catalog.chat_models()] == names
        assert not catalog.problems()


NO_LISTS: dict[str, tuple[Reply, str]] = {  # words of the reason
    "a page": (Reply(body=HTML, content_type="text/html"), "list"),
    "null": (Reply(body=b"null"), "list"),
    "a sentence": (Reply(body="Unauthorized"), "list"),
    "empty": (Reply(), "list"),
    "no models": (Reply(body={"object": "list", "data": []}), "lists no models"),
    "an error": (Reply(body={"error": {"message": WORDS}}), WORDS),
    "a success that is none": (Reply(body={"success": False, "msg": WORDS}), WORDS),
    "not found": (Reply(404, {"detail": "Not Found"}), "There is no model list at"),
    "forbidden": (Reply(403, {"error": {"message": WORDS}}), WORDS),
    "quota": (Reply(429, {"error": {"message": WORDS}}), WORDS),
    "down": (Reply(502, HTML, "text/html"), ""),
    "loading": (Reply(503, {"error": {"message": "Loading model"}}), "Loading model"),
    "deep": (Reply(body=b"[" * 100_000), "list"),
}


def health_of(catalog: Catalog, config: Settings) -> tuple[int, str]:
    response = coroutines.run(Health(config, catalog)._response())
    return response.status_code, json.loads(response.body).get("reason", "")


@pytest.mark.parametrize("name", NO_LISTS)
def test_broken_list_is_told_everywhere(name, caplog):
    reply, words = NO_LISTS[name]
    with (
        Wire({MODELS: reply}).running() as wire,
        Wire({MODELS: Reply(body=LIST)}).running() as good,
    ):
        config = settings(model_url=wire.url)
        catalog = Catalog.of(config)
        assert catalog.models() == []
        (problem,) = catalog.problems().values()
        assert words in problem
        status, reason = health_of(catalog, config)
        assert status == 503
        assert words in reason
        assert ask(wire).error == problem
        both = settings(models={"good": good.url, "bad": wire.url})
        catalog = Catalog.of(both)
        assert [model.label for model in catalog.models()] == ["toy (good)"]
        assert health_of(catalog, both)[0] == 200
    assert "Traceback" not in caplog.text
    assert str(errors.internal()) not in caplog.text


# -- addresses -------------------------------------------------------------------------------------

ADDRESSES: dict[str, tuple[str, str]] = {  # the path in MODEL_URL -> the base that answers
    "root": ("", "/v1"),
    "slashes": ("//v1///", "/v1"),
    "completions": ("/v1/completions", "/v1"),
    "chat, with a slash": ("/v1/chat/completions/", "/v1"),
    "openrouter, open webui": ("/api/v1", "/api/v1"),
    "groq, azure": ("/openai/v1/", "/openai/v1"),
    "deepinfra": ("/v1/openai", "/v1/openai"),
    "gemini, from curl": ("/v1beta/openai/chat/completions", "/v1beta/openai"),
    "cloudflare": ("/client/v4/accounts/0/ai/v1", "/client/v4/accounts/0/ai/v1"),
    "fireworks": ("/inference/v1", "/inference/v1"),
    "qianfan": ("/v2", "/v2"),
    "docker": ("/engines/v1", "/engines/v1"),
    "open webui, without a version": ("/api", "/api"),
    "open webui, from curl": ("/api/chat/completions", "/api"),
    "behind a path": ("/llm", "/llm/v1"),
    "behind a path that has a version": ("/team-v2/llm", "/team-v2/llm/v1"),
    "models": ("/openai/v1/models/", "/openai/v1"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_address_leads_to_the_api(name):
    path, base = ADDRESSES[name]
    answer = Reply(body=events(HI, STOP), content_type=SSE)
    wire = Wire({f"GET {base}/models": Reply(body=LIST), f"POST {base}/chat/completions": answer})
    with wire.running():
        check(ask(wire, path=path), text="Hi")
        config = settings(model_url=wire.url + path)
        assert health_of(Catalog.of(config), config)[0] == 200


def test_query_of_the_address_stays():
    answer = Reply(body=events(HI, STOP), content_type=SSE)
    base = "/openai/v1"
    wire = Wire({f"GET {base}/models": Reply(body=LIST), f"POST {base}/chat/completions": answer})
    with wire.running():
        check(ask(wire, path=f"{base}/chat/completions?api-version=preview"), text="Hi")
    assert all(line.endswith("?api-version=preview") for line in wire.asked if base in line)


def test_password_in_the_address_is_sent(caplog):
    with chatting(Reply(body=events(HI, STOP), content_type=SSE)).running() as wire:
        address = wire.url.replace("http://", "http://me:p%40ss%3Aw@")
        config = settings(model_url=address)
        assert [model.name for model in Catalog.of(config).models()] == ["toy"]
        assert wire.headers[-1]["Authorization"] == "Basic bWU6cEBzczp3"
    catalog = Catalog.of(settings(model_url=address))  # which is down now
    (problem,) = catalog.problems().values()
    assert not re.search("p%40ss|p@ss", problem + caplog.text)


def test_azure_deployment_needs_only_a_name():
    """There is a chat, but no list below a deployment."""
    base = "/openai/deployments/d"
    answer = Reply(body=events(HI, STOP), content_type=SSE)
    with Wire({f"POST {base}/chat/completions": answer}).running() as wire:
        path = f"{base}/chat/completions?api-version=2024-10-21"
        assert "MODEL_ID" in ask(wire, path=path).error
        check(ask(wire, path=path, model_id="gpt"), text="Hi")


def test_only_generate_makes_a_legacy_server():
    allow = Reply(405, {"detail": "Method Not Allowed"}, headers={"Allow": "POST"})
    legacy = {"GET /health": Reply(body=b""), "GET /generate": allow}
    with Wire(legacy).running() as wire:
        assert [model.protocol for model in catalog_of(wire).models()] == ["generate"]
    # TGI up to 1.4 has both, but also /v1/chat/completions
    tgi = legacy | {"GET /v1/chat/completions": allow, CHAT: Reply(body=events(HI, STOP))}
    with Wire(tgi).running() as wire:
        assert all(model.protocol == "openai" for model in catalog_of(wire).models())
    with Wire({"GET /health": Reply(body=b"")}).running() as wire:
        assert catalog_of(wire).models() == []


# -- servers that refuse a field -------------------------------------------------------------------

MAX_TOKENS = "Unsupported parameter: 'max_tokens' is not supported with this model."
REFUSALS: dict[str, tuple[str, int, Any]] = {  # the field, and how it is refused
    "openai": ("max_tokens", 400, {"error": {"message": MAX_TOKENS, "param": "max_tokens"}}),
    "openai: an extra": (
        "top_k",
        400,
        {"error": {"message": "Unrecognized request argument supplied: top_k"}},
    ),
    "groq": ("top_k", 400, {"error": {"message": "property 'top_k' is unsupported"}}),
    "gemini": (
        "min_p",
        400,
        [{"error": {"message": 'Invalid payload. Unknown name "min_p": Cannot find field.'}}],
    ),
    "mistral": (
        "repetition_penalty",
        422,
        {
            "object": "error",
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "repetition_penalty"],
                        "msg": "Extra inputs are not permitted",
                        "input": 1.1,
                    }
                ]
            },
        },
    ),
    "azure: stream_options": (
        "stream_options",
        400,
        {"error": {"code": "BadRequest", "message": "Unknown field: stream_options"}},
    ),
    "cohere": ("seed", 400, {"message": "unknown field: parameter 'seed' is not a valid field"}),
    "a string": ("top_k", 400, {"error": "top_k is not supported by this model"}),
    "openai: a reasoning model": (
        "temperature",
        400,
        {
            "error": {
                "message": "Unsupported value: 'temperature' does not support 0.5 with this model. "
                "Only the default (1) value is supported.",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
    ),
}
SAMPLING = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 1, "temperature": 0.5}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_field_is_left_out(name):
    refused, status, body = REFUSALS[name]

    def chat(request: dict) -> Reply:
        if refused in request:
            return Reply(status, body)
        return Reply(body=events(HI, STOP), content_type=SSE)

    with chatting(chat).running() as wire:
        check(ask(wire, **SAMPLING), text="Hi")
        assert [refused in request for request in wire.bodies] == [True, False]
        if refused == "max_tokens":
            assert wire.bodies[-1]["max_completion_tokens"] == wire.bodies[0]["max_tokens"]
        check(ask(wire, **SAMPLING), text="Hi")
        assert len(wire.bodies) <= 4
    kept = SAMPLING.keys() - {refused}
    assert kept <= wire.bodies[-1].keys()


@pytest.mark.parametrize(
    "words",
    [
        "temperature must be less than or equal to 2",
        "top_k must be -1 (disable), or at least 1, got 0.",
        "Invalid 'seed': integer above maximum value.",
        "Rate limit reached for requests with temperature and top_k",
        "This model's maximum context length is 10 tokens, max_tokens is too large",
    ],
)
def test_refused_value_stays_an_error(words):
    with chatting(Reply(400, {"error": {"message": words}})).running() as wire:
        assert words in ask(wire, **SAMPLING).error
    assert len(wire.bodies) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "Jinja Exception: System role not supported"),
        (400, "Developer instruction is not enabled for models/gemma-3-27b-it"),
        (400, "'messages[0].role' does not support 'system' with this model."),
    ],
)
def test_refused_system_prompt_is_followed(status, words):
    def chat(request: dict) -> Reply:
        if request["messages"][0]["role"] == "system":
            return Reply(status, {"error": {"message": words}})
        return Reply(body=events(HI, STOP), content_type=SSE)

    with chatting(chat).running() as wire:
        config = settings(model_url=wire.url)
        generation = Generation(config, Catalog.of(config))
        request = Request([{"role": "user", "content": "Hi"}], system_prompt="Be brief.")
        *_, answer = generation.answer(request, "me")
    check(answer, text="Hi")
    assert "Be brief." in wire.bodies[-1]["messages"][0]["content"]


def test_unanswered_questions_are_joined():
    turns = [("user", "One"), ("assistant", ""), ("user", "Two"), ("user", "Three")]

    def chat(request: dict) -> Reply:
        roles = [message["role"] for message in request["messages"]]
        if roles != ["system", "user"]:
            return Reply(400, {"error": {"message": "Conversation roles must alternate"}})
        return Reply(body=events(HI, STOP), content_type=SSE)

    with chatting(chat).running() as wire:
        config = settings(model_url=wire.url)
        generation = Generation(config, Catalog.of(config))
        messages = [{"role": role, "content": text} for role, text in turns]
        *_, answer = generation.answer(Request(messages, system_prompt="Be brief."), "me")
    check(answer, text="Hi")
    assert "Three" in wire.bodies[0]["messages"][1]["content"]


def test_usual_conversation_is_sent_as_it_is():
    with chatting(Reply(body=events(HI, STOP), content_type=SSE)).running() as wire:
        check(ask(wire, "One", "1", "Two"), text="Hi")
    turns = [("user", "One"), ("assistant", "1"), ("user", "Two")]
    sent = wire.bodies[0]["messages"]
    assert [(message["role"], message["content"]) for message in sent] == turns


# -- reasoning between tags ------------------------------------------------------------------------

TAGGED: dict[str, tuple[str, str, str]] = {  # text -> (reasoning, answer)
    "deepseek": ("<think>\nplan\n</think>\n\nreply", "plan", "reply"),
    "qwen: the opening tag is in the prompt": ("plan\n</think>\n\nreply", "plan", "reply"),
    "nothing thought": ("<think>\n\n</think>\n\nreply", "", "reply"),
    "granite-like": ("<reasoning>plan</reasoning>reply", "plan", "reply"),
    "upper case": ("<THINK>plan</THINK>reply", "plan", "reply"),
    "openthinker": (
        "<|begin_of_thought|>\nplan\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\nreply\n<|end_of_solution|>",
        "plan",
        "reply",
    ),
    "gpt-oss: commentary too": (
        "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>"
        "reply<|return|>",
        "plan",
        "reply",
    ),
    "gpt-oss: final alone": ("<|channel|>final<|message|>reply", "", "reply"),
    "magistral": ("[THINK]plan[/THINK]reply", "plan", "reply"),
    "never closed": ("<think>plan", "plan", ""),
    "white space before": ("\n\n  <think>plan</think>reply", "plan", "reply"),
    # what must stay
    "in backticks": ("Use `<think>` and `</think>`.", "", "Use `<think>` and `</think>`."),
    "in a fence": (
        "```xml\n<think>\nplan\n</think>\n```\nSo.",
        "",
        "```xml\n<think>\nplan\n</think>\n```\nSo.",
    ),
    "in a tilde fence": ("~~~\n</think>\n~~~", "", "~~~\n</think>\n~~~"),
    "in mid-sentence": ("The tag <think> opens it.", "", "The tag <think> opens it."),
    "a pair in one sentence": (
        "Models emit <think> ... </think> before they answer.",
        "",
        "Models emit <think> ... </think> before they answer.",
    ),
    "another tag": ("<thinker>a</thinker>", "", "<thinker>a</thinker>"),
    "a generic": ("vector<thought> v;", "", "vector<thought> v;"),
    "a comparison": ("1 < 2 and [THINKING]", "", "1 < 2 and [THINKING]"),
    "mathematics": ("a ◁ b ▷ c", "", "a ◁ b ▷ c"),
    "backticks in the reasoning": ("<think>use `x` </think>reply", "use `x`", "reply"),
    "an open fence in the reasoning": ("<think>```py\nx\n</think>reply", "```py\nx", "reply"),
    "a lone backtick in the reasoning": ("it's ` here\n</think>\nreply", "it's ` here", "reply"),
    "tags in the answer's code": (
        "<think>plan</think>Write:\n```\n<think>x</think>\n```",
        "plan",
        "Write:\n```\n<think>x</think>\n```",
    ),
    "an html tag first": ("<b>bold</b> reply", "", "<b>bold</b> reply"),
}


@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_tags_are_separated_from_the_answer(name, size):
    text, reasoning, reply = TAGGED[name]
    deltas = [delta(content=text[at : at + size]) for at in range(0, len(text), size)]
    body = events(*deltas, STOP)
    with chatting(Reply(body=body, content_type=SSE)).running() as wire:
        check(ask(wire), text=reply, reasoning=reasoning)


# -- the owner's environment -----------------------------------------------------------------------

LOGIN = {"APP_USERNAME": "owner"}
READ: dict[str, tuple[dict[str, str], Any]] = {  # variables -> the value of the first
    "a key with a line break and quotes": ({"MODEL_API_KEY": '"sk-abc"\n'}, "sk-abc"),
    "a key with Bearer": ({"MODEL_API_KEY": "Bearer sk-abc"}, "sk-abc"),
    "a key with a zero-width space": ({"MODEL_API_KEY": "\u200bsk-abc"}, "sk-abc"),
    "a key from Windows": ({"MODEL_API_KEY": "sk-abc\r\n"}, "sk-abc"),
    "a key with other characters": ({"MODEL_API_KEY": "sk-a+b/c_d.e=="}, "sk-a+b/c_d.e=="),
    "a token with quotes": ({"HF_TOKEN": "'hf_abc'"}, "hf_abc"),
    "the token's old name": ({"HF_TOKEN": " ", "HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_old"),
    "the token's new name first": ({"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_a"),
    "keys with names": ({"API_KEYS": "phone: k-1 , 'k-2'"}, ["phone:k-1", "k-2"]),
    "keys with Bearer": ({"API_KEYS": "phone: Bearer k-1,Bearer k-2"}, ["phone:k-1", "k-2"]),
    "logins": ({"APP_USERS": "al: p w, bo:a:b"}, ["al:p w", "bo:a:b"]),
    "an address with quotes": ({"MODEL_URL": " 'http://h:8000/v1' "}, "http://h:8000/v1"),
    "a page of the Hub": ({"MODEL_ID": "https://huggingface.co/org/name"}, "org/name"),
    "its files": ({"MODEL_ID": "https://huggingface.co/org/name/tree/main"}, "org/name"),
    "its short address": ({"MODEL_ID": "hf.co/org/name?library=vllm"}, "org/name"),
    "a model with quotes": ({"MODEL_ID": '"org/name" '}, "org/name"),
    "a name at a server stays": (
        {"MODEL_ID": "hf.co/org/name:Q4_K_M", "MODEL_URL": "http://h"},
        "hf.co/org/name:Q4_K_M",
    ),
    "flags over several lines": (
        {"ENGINE_ARGS": "--seed 1 \\\n  --max-num-seqs 2 \\\r\n"},
        ("--seed", "1", "--max-num-seqs", "2"),
    ),
    "a number with quotes": ({"MAX_TOKENS": '"100"'}, 100),
    # what must stay
    "a password with inner quotes": (LOGIN | {"APP_PASSWORD": 'ha"rb"our'}, 'ha"rb"our'),
    "a password with a lone quote": (LOGIN | {"APP_PASSWORD": '"harbour'}, '"harbour'),
    "a password with unequal quotes": (LOGIN | {"APP_PASSWORD": "'harbour\""}, "'harbour\""),
    "a password of two words": (LOGIN | {"APP_PASSWORD": "grey  harbour"}, "grey  harbour"),
    "a password in another script": (LOGIN | {"APP_PASSWORD": "Гавань für"}, "Гавань für"),
    "a password with Bearer": (LOGIN | {"APP_PASSWORD": "Bearer harbour"}, "Bearer harbour"),
    "a title with quotes": ({"APP_TITLE": '"Grey"'}, '"Grey"'),
    "stop sequences": ({"STOP": ' \n"\n'}, (" ", '"')),
}
SECRET = "sk-secret-0123"
UNREADABLE: dict[str, tuple[dict[str, str], str]] = {  # variables -> words of the error
    "a typographic quote": ({"MODEL_API_KEY": f"{SECRET}’"}, "U+2019"),
    "an ellipsis": ({"API_KEYS": f"phone:{SECRET}…"}, "U+2026"),
    "a line break in a key": ({"MODEL_API_KEY": f"{SECRET}\n{SECRET}"}, "MODEL_API_KEY"),
    "a zero-width space in a token": ({"HF_TOKEN": f"hf_\u200b{SECRET}"}, "U+200B"),
    "a line break in a password": (LOGIN | {"APP_PASSWORD": f"{SECRET}\nx"}, "APP_PASSWORD"),
    "a login without a password": ({"APP_USERS": f"al:{SECRET},bo"}, "APP_USERS"),
    "no scheme": ({"MODEL_URL": "localhost:8000"}, "http"),
    "another scheme": ({"MODEL_URL": "ftp://me:sk-secret-0123@h"}, "MODEL_URL"),
    "a port that is none": ({"MODEL_URL": "http://me:sk-secret-0123@h:99999"}, "MODEL_URL"),
    "an open quote": ({"ENGINE_ARGS": "--seed '1"}, "ENGINE_ARGS"),
    "neither true nor false": ({"MODEL_IMAGES": "maybe"}, "MODEL_IMAGES"),
}


def load_settings(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    patch.setenv("HF_HOME", "/nowhere")
    for name, value in variables.items():
        patch.setenv(name, value)
    return load([])


def revealed(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], SecretStr):
        return [item.get_secret_value() for item in value]
    return value.get_secret_value() if isinstance(value, SecretStr) else value


@pytest.mark.parametrize("name", READ)
def test_variable_is_read_as_it_is_meant(monkeypatch, name):
    variables, right = READ[name]
    config = load_settings(monkeypatch, variables)
    field = "app_password" if "APP_PASSWORD" in variables else next(iter(variables)).lower()
    assert revealed(getattr(config, field)) == right


@pytest.mark.parametrize("name", UNREADABLE)
def test_wrong_variable_is_named_not_shown(monkeypatch, name):
    variables, words = UNREADABLE[name]
    with pytest.raises(errors.SettingsError) as raised:
        load_settings(monkeypatch, variables)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


# -- any split, any noise, any garbage -------------------------------------------------------------

ALL = st.sampled_from(
    ["Hi", " there", "\n", "ü", "🙂", "`", "data: ", ": x", "\r", "\u2028", "[DONE]"]
)
NOISE = st.sampled_from(
    [
        ": keep-alive\n\n",
        ":\n\n",
        "\n",
        "data:\n\n",
        "event: ping\ndata: {}\n\n",
        "id: 7\n",
        'data: {"choices": []}\n\n',
        f"data: {json.dumps(delta(content=''))}\n\n",
        f"data: {json.dumps(delta(content=None))}\n\n",
        'data: {"choices": [{"index": 0, "delta": {}}], "x": {"error": 1}}\n\n',
    ]
)
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with chatting(Reply()).running() as wire:
        yield wire


@pytest.fixture(scope="module")
def generation(wire: Wire) -> Generation:
    config = settings(model_url=wire.url, max_concurrency=1000)
    return Generation(config, Catalog.of(config))


def answer_of(generation: Generation) -> Answer:
    request = Request([{"role": "user", "content": "Hi"}])
    *_, answer = generation.answer(request, "me")
    return answer


@hypothesis_settings(max_examples=100, **QUIET)
@given(
    texts=st.lists(ALL, min_size=1, max_size=8),
    noise=st.lists(NOISE, min_size=9, max_size=9),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    field=st.sampled_from(["data: ", "data:"]),
    size=st.sampled_from([1, 2, 3, 7, 64, 65536]),
    done=st.booleans(),
    ascii=st.booleans(),
)
def test_noise_does_not_change_the_answer(
    wire, generation, texts, noise, newline, field, size, done, ascii
):
    parts = [*(delta(content=text) for text in texts), STOP]
    body = "".join(
        f"{before}{field}{json.dumps(part, ensure_ascii=ascii)}\n\n"
        for before, part in zip(noise, parts, strict=False)
    )
    body += "data: [DONE]\n\n" if done else ""
    wire.replies[CHAT] = Reply(body=body.replace("\n", newline).encode(), content_type=SSE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "READ_SIZE", size)
        answer = answer_of(generation)
    assert answer.error is None
    assert answer.text.lstrip() == "".join(texts).lstrip()
    assert answer.finish_reason == "stop"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "choices index delta message content text reasoning reasoning_details thinking "
                "finish_reason error code detail type usage object status data id models "
                "completion_tokens max_model_len owned_by name".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BYTES = (
    st.binary(max_size=60)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.lists(VALUES, max_size=3).map(lambda values: events(*values, end=""))
    | st.lists(VALUES, max_size=3).map(lambda values: events(HI, *values))
)
REPLIES = st.builds(
    Reply,
    status=st.sampled_from(
        [200, 200, 200, 201, 204, 301, 304, 400, 401, 404, 422, 429, 500, 503, 999]
    ),
    body=BYTES,
    content_type=st.sampled_from([SSE, JSON, "text/plain", "text/html", "x", ""]),
)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What is logged with a traceback."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                found.append(record)

    handler = Keep()
    logging.getLogger().addHandler(handler)
    yield found
    logging.getLogger().removeHandler(handler)


@hypothesis_settings(max_examples=300, **QUIET)
@given(reply=REPLIES)
def test_no_answer_reaches_the_catch_all(wire, generation, records, reply):
    wire.replies[CHAT] = reply
    answer = answer_of(generation)
    assert answer.error != str(errors.internal())
    assert not records


@hypothesis_settings(max_examples=150, **QUIET)
@given(reply=REPLIES)
def test_no_list_reaches_the_catch_all(wire, records, reply):
    config = settings(model_url=wire.url)
    wire.replies[MODELS] = reply
    try:
        catalog = Catalog.of(config)
        assert catalog.models() or catalog.problems()
        status, reason = health_of(Catalog.of(config), config)
        assert (status == 200) == bool(catalog.models())
        assert str(errors.internal()) not in reason
    finally:
        wire.replies[MODELS] = Reply(body=LIST)
    assert not records
