"""Servers that refuse fields, on real sockets: asked again without them, and only then."""

import json

import pytest

from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space import client, dialect, discovery, errors
from vllm_space.server import Server

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
FIELDS = {"max_tokens": 9, "top_k": 5, "min_p": 0.1, "seed": 1, "temperature": 0.5}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(dialect, "_dialects", {})


def openai(message: str, **fields: object) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}


def extra(*path: str) -> dict:
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", *path], "msg": "Not permitted"}]}


def ask(engine: ScriptedEngine, fields: dict = FIELDS, messages: list = MESSAGES) -> str:
    model = discovery.models(Server.from_url(engine.url))[0]
    return "".join(chunk.text for chunk in client.chat(model, messages, fields))


def refusing(refusals: dict[str, tuple[int, object]]) -> ScriptedEngine:
    """An engine that refuses requests with any of these fields, each with its response."""

    def script(path, body):
        return next(
            (answer for name, answer in refusals.items() if name in body), chat_stream("ok")
        )

    return ScriptedEngine(script)


@pytest.mark.parametrize(
    ("field", "status", "body"),
    [
        ("stream_options", 422, extra("stream_options", "include_usage")),
        ("top_k", 400, openai("property 'top_k' is unsupported, did you mean 'top_p'?")),
        ("min_p", 400, openai("Unrecognized request argument supplied: min_p")),
        ("seed", 400, {"error": {"message": 'Unknown name "seed": Cannot find field.'}}),
        ("seed", 400, openai("Unsupported parameter.", param="seed")),
        (
            "temperature",
            400,
            openai(
                "'temperature' does not support 0.5 with this model. Only 1 is supported.",
                param="temperature",
                code="unsupported_value",
            ),
        ),
        ("top_k", 400, {"message": "Argument not supported on this model: topK"}),
        ("min_p", 500, {"error": "unexpected keyword argument 'min_p'"}),
    ],
)
def test_refused_field_is_left_out(field, status, body):
    with refusing({field: (status, body)}).running() as engine:
        assert ask(engine) == "ok"
        assert ask(engine) == "ok"
    refused, *answered = [body for _, _, body in engine.requests]
    assert len(answered) == 2  # the second question was not refused any more
    assert refused.keys() - answered[0].keys() == {field}


def test_max_tokens_gets_its_other_name():
    message = "Parameter 'max_tokens' cannot be used: send 'max_completion_tokens'."
    with refusing({"max_tokens": (400, openai(message, param="max_tokens"))}).running() as engine:
        assert ask(engine) == "ok"
    assert engine.requests[-1][2]["max_completion_tokens"] == 9


def test_many_fields_are_refused_one_by_one():
    refusals = {name: (400, openai(f"Unknown field {name}")) for name in FIELDS}
    refusals["max_completion_tokens"] = (400, openai("Unknown field max_completion_tokens"))
    with refusing(refusals).running() as engine:
        assert ask(engine) == "ok"


def test_refusal_without_a_name_costs_the_extras():
    answer = (400, openai("Extra inputs are not permitted"))
    with refusing({"top_k": answer, "min_p": answer}).running() as engine:
        assert ask(engine) == "ok"
    assert {"temperature", "seed", "max_tokens"} <= engine.requests[-1][2].keys()


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Developer instruction is not enabled for this model",
    ],
)
def test_system_prompt_moves_into_the_question(message):
    def script(path, body):
        has_system = any(message["role"] == "system" for message in body["messages"])
        return (400, openai(message)) if has_system else chat_stream("ok")

    with ScriptedEngine(script).running() as engine:
        assert ask(engine) == "ok"
    assert engine.requests[-1][2]["messages"] == [{"role": "user", "content": "Be kind.\n\nHi"}]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "temperature must be at most 1, not allowed: 0.5"),
        (400, "max_tokens is too large: 9. This model supports at most 4."),
        (400, "This model does not support images"),
        (401, "Unknown key: seed"),
        (404, "Unknown model; seed"),
        (429, "top_k is not supported for you"),
        (503, "unexpected seed"),
    ],
)
def test_other_errors_are_not_asked_twice(status, message):
    with (
        ScriptedEngine(lambda path, body: (status, openai(message))).running() as engine,
        pytest.raises(errors.ModelError),
    ):
        ask(engine)
    assert len(engine.requests) == 1


def test_server_that_refuses_all_is_left_alone():
    with (
        ScriptedEngine(lambda path, body: (400, openai("Unknown field model"))).running() as engine,
        pytest.raises(errors.Rejected, match="Unknown field model"),
    ):
        ask(engine)
    assert len(engine.requests) <= dialect.MAX_CHANGES


def test_what_did_not_help_is_forgotten():
    message = "Cannot load the image 'unsupported max_tokens, max_completion_tokens'"

    def script(path, body):
        is_bad = body["messages"][-1]["content"] == "bad"
        return (400, openai(message)) if is_bad else chat_stream("ok")

    with ScriptedEngine(script).running() as engine:
        with pytest.raises(errors.Rejected, match="Cannot load the image"):
            ask(engine, messages=[{"role": "user", "content": "bad"}])
        assert ask(engine) == "ok"
    assert engine.requests[-1][2]["max_tokens"] == 9


def test_images_stay_beside_a_moved_prompt():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    messages = [MESSAGES[0], {"role": "user", "content": [image]}]
    moved = dialect.without_system_role(messages)
    assert moved == [{"role": "user", "content": [{"type": "text", "text": "Be kind."}, image]}]
    assert json.dumps(messages).count("Be kind.") == 1  # the conversation itself is unchanged
