"""What people read when a model server returns an error, in its own words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_space import errors

KEY = "The model server rejected the API key. Set MODEL_API_KEY to that server's key."
BUSY = "The model server is busy. Try again in a minute."
LOG = " Try again; the server's log has the details."


def message(status: object, body: object, *secrets: str) -> str:
    return str(errors.from_response(status, body, secrets))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "No such field", "type": "x", "code": 1}}, "No such field."),
        ({"error": "No such field"}, "No such field."),
        ({"message": "No such field", "code": "x"}, "No such field."),
        ({"detail": "No such field"}, "No such field."),
        (
            {"detail": [{"type": "extra", "loc": ["body", "top_k"], "msg": "Not permitted"}]},
            "body.top_k: Not permitted.",
        ),
        ([{"error": {"message": "No such field", "status": "INVALID"}}], "No such field."),
        ({"error": "Bad Request", "message": "No such field"}, "Bad Request: No such field."),
        ({"title": "Bad Request", "detail": "No such field"}, "Bad Request: No such field."),
        ({"errors": [{"message": "One"}, {"message": "Two"}]}, "One; Two."),
        ({"error": {"message": "It failed.", "metadata": {"raw": "Why"}}}, "It failed: Why."),
        ({"error": {"type": "bad_field"}}, "bad_field."),
        ({"error": {"message": '{"error": {"message": "Inside"}}'}}, "Inside."),
        ({"error": {"message": "参数错误。"}}, "参数错误。"),
        ('data: {"error": {"message": "No such field"}}\n\n', "No such field."),
        ("No such\n\x1b[31mfield\u202e!", "No such [31mfield !"),
        ("x" * 400, "x" * 299 + "…"),
        ({"failure": "x"}, "{'failure': 'x'}."),
        ({}, "no reason given."),
        ("", "no reason given."),
        ("<html><h1>400 Bad Request</h1></html>", "no reason given."),
        (None, "no reason given."),
    ],
)
def test_server_words_are_found_in_any_form(body, words):
    assert message(400, body) == f"The model server rejected the request: {words}"


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (401, "Wrong key.", f"{KEY} The server says: Wrong key."),
        (401, "", KEY),
        (401, "Unauthorized", KEY),
        (403, "Forbidden", KEY),
        (403, "Invalid API key.", f"{KEY} The server says: Invalid API key."),
        (
            403,
            "Your region is not served.",
            "The model server denied access. The server says: Your region is not served.",
        ),
        (
            402,
            "Top up first.",
            "The model server's account has no credit left, or needs a plan. "
            "The server says: Top up first.",
        ),
        (
            429,
            "Your quota is used up.",
            "The model server is busy, or a limit has been reached. "
            "The server says: Your quota is used up.",
        ),
        (429, "", BUSY),
        (429, "Too Many Requests", BUSY),
        (
            404,
            "Not Found",
            "The model server did not find the model or endpoint. Reload the page and try again.",
        ),
        (
            404,
            "No model x.",
            "The model server did not find the model or endpoint: No model x. "
            "Reload the page and try again.",
        ),
        (503, "Loading.", f"The model server failed (HTTP 503): Loading.{LOG}"),
        (503, "Please try again.", "The model server failed (HTTP 503): Please try again."),
    ],
)
@pytest.mark.parametrize("form", ["error", "detail", "text"])
def test_sentence_fits_the_status(status, words, expected, form):
    assert message(status, words if form == "text" else {form: words}) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, "a limit has been reached"),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, "a limit has been reached"),
        ({"code": 429}, "a limit has been reached"),
        ({"code": "429"}, "a limit has been reached"),
        ({"status": "RESOURCE_EXHAUSTED"}, "a limit has been reached"),
        ({"code": "invalid_api_key"}, KEY),
        ({"type": "authentication_error"}, KEY),
        ({"type": "BadRequestError"}, "rejected the request: Words."),
        ({"code": "context_length_exceeded"}, "does not fit into the model's context"),
        ({"code": "server_error"}, f"failed: Words.{LOG}"),
        ({"code": 7}, f"failed: Words.{LOG}"),
        ({}, f"failed: Words.{LOG}"),
    ],
)
def test_error_in_a_stream_names_its_status(error, expected):
    assert expected in message(None, {"error": error | {"message": "Words."}})


@pytest.mark.parametrize("status", [None, 0, 200, 302, 999, -1, True, "server_error", [], 10**30])
def test_status_of_any_kind_is_accepted(status):
    assert message(status, {"error": "Words"}) == f"The model server failed: Words.{LOG}"


CRASH = "EngineCore encountered an issue. See stack trace (above)"
TOO_LONG = [
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
    "max_tokens=1024 cannot be greater than max_model_len=max_total_tokens=512.",
    "The decoder prompt (length 600) is longer than the maximum model length of 512.",
    "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it",
]
NO_TEMPLATE = [
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide "
    "a chat template if the tokenizer does not define one.",
    "Cannot use chat template functions because tokenizer.chat_template is not set.",
    "This model has no chat template.",
]


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (500, CRASH, "The engine has crashed"),
        (None, CRASH, "The engine has crashed"),
        *((400, words, "does not fit into the model's context") for words in TOO_LONG),
        (500, TOO_LONG[3], "does not fit into the model's context"),
        *((400, words, "Use the Completion tab") for words in NO_TEMPLATE),
    ],
)
def test_known_causes_are_explained(status, words, expected):
    assert expected in message(status, {"error": {"message": words, "code": status}})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, CRASH),
        (400, f"Invalid value: '{CRASH}'"),
        (400, "Extra inputs are not permitted: max_model_len"),
        (400, "context_window is not a field of this request"),
        (400, 'Cannot parse "the maximum context length is too long"'),
        (400, "The chat template could not be rendered: roles must alternate."),
        (400, "chat_template is not supported with this tokenizer."),
        (400, "Chat template is passed with request, but that is not allowed."),
        (400, "Invalid text: 'this has no chat template'"),
    ],
)
def test_words_that_look_alike_are_shown(status, words):
    assert message(status, words).startswith(f"The model server rejected the request: {words}")


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (429, "The context window limit of your plan is exceeded.", "a limit has been reached"),
        (403, "Your plan's maximum context length is 8k.", "denied access"),
        (402, "This context size needs credit: limit exceeded.", "no credit left"),
    ],
)
def test_limits_of_a_plan_are_not_the_context(status, words, expected):
    assert expected in message(status, words)


@pytest.mark.parametrize(
    ("words", "secret", "expected"),
    [
        ("Incorrect API key provided: sk-marked-1.", "sk-marked-1", "key provided: ***."),
        ("Bad url /v1?key=sk-marked-1&x=y", "sk-marked-1", "key=***&x=y."),
        ("x" * 295 + " sk-marked-1", "sk-marked-1", "x ***."),
        ("The value a is not a name", "a", "The value *** is not *** name."),
        ("Nothing secret here", "", "Nothing secret here."),
    ],
)
def test_secrets_are_masked_in_server_words(words, secret, expected):
    for body in (words, {"error": {"message": words}}, [words]):
        assert message(400, body, secret).endswith(expected)
    assert "marked" not in message(400, {"unknown": words}, secret)


FIELDS = st.sampled_from("error message detail code type loc metadata raw".split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(FIELDS, values),
)


@settings(deadline=None, database=None)
@given(VALUES, VALUES)
def test_any_error_becomes_one_line(status, body):
    sentence = message(status, body)
    assert sentence.isprintable()
    assert len(sentence) < 600
    assert sentence[-1] in ".!?…。！？"
