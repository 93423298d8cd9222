"""Answers in every form that chat servers stream, and the errors among them."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_space import chunks, errors
from vllm_space.chunks import Chunk

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
DONE = b"data: [DONE]\n\n"
HELLO = {"content": "Hello"}


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(finish_reason: object = None, index: object = 0, **fields: object) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish_reason}])


def joined(received: list[Chunk]) -> Chunk:
    reasons = [chunk.finish_reason for chunk in received if chunk.finish_reason]
    usages = [chunk.usage for chunk in received if chunk.usage]
    return Chunk(
        "".join(chunk.text for chunk in received),
        "".join(chunk.reasoning for chunk in received),
        reasons[-1] if reasons else None,
        usages[-1] if usages else None,
    )


def read(*blocks: bytes) -> Chunk:
    return joined(list(chunks.read(blocks)))


def failure(*blocks: bytes) -> tuple[str, str]:
    """(the text before the error, the message of the error)."""
    received = []
    with pytest.raises(errors.ModelError) as caught:
        for chunk in chunks.read(blocks):
            received.append(chunk)
    return joined(received).text, str(caught.value)


STOP = delta("stop")
SURE = delta(content="Sure, ")


@pytest.mark.parametrize(
    "stream",
    [
        delta(content="Hello") + STOP + DONE,
        delta(content="Hello") + STOP,
        delta(content="Hello") + DONE,
        event(error=None, choices=[{"delta": HELLO, "finish_reason": None}]) + STOP,
        event(error={}, choices=[{"delta": HELLO}]) + STOP,
        event(error={"code": None, "message": ""}, choices=[{"delta": HELLO}]) + STOP,
        event(choices=None) + event(choices=[]) + event() + delta(content="Hello") + STOP,
        event(choices=[{"index": 0, "delta": None, "finish_reason": None}])
        + delta(content="Hello")
        + delta(content=None, finish_reason="stop"),
        event(choices=[{"index": 0, "text": "Hel"}]) + event(choices=[{"text": "lo"}]) + DONE,
        event(choices=[{"text": None}]) + event(choices=[{"text": "Hello"}]) + DONE,
        delta(content="Hel") + b"data: \n\n" + delta(content="lo") + STOP,
        delta(content="Hel") + b"data: ping\n\n" + delta(content="lo") + STOP,
        delta(content="Hel") + b"data: null\n\ndata: 1\n\n" + delta(content="lo") + STOP,
        delta(content="Hel") + event(type="ping") + delta(content="lo") + STOP,
        event(status="queued", message="You are third.") + delta(content="Hello") + STOP,
        delta(content="Hel") + delta(content="No", index=1) + delta(content="lo") + STOP,
        event(choices=[{"index": 1, "delta": {"content": "No"}}, {"index": 0, "delta": HELLO}])
        + STOP,
        delta(index=1, content="Hello") + delta("stop", 1),
        delta(index=None, content="Hello") + STOP,
        delta(index="0", content="Hello") + delta("stop", "0"),
        b"data:[DONE]".join([delta(content="Hello"), b""]),
        delta(content="Hello") + b"data:   [DONE]  \n\n",
        delta(content="Hello") + b'data: "[DONE]"\n\n',
        delta(content=[{"type": "text", "text": "Hel"}, {"type": "output_text", "text": "lo"}])
        + STOP,
        delta(content=["Hel", "lo"]) + STOP,
        delta(content="Hel", x="a\tb").replace(rb"\t", b"\t") + delta("stop", content="lo"),
        delta(content={"type": "text", "text": "Hello"}) + STOP,
        delta(content=[{"type": "reference", "ids": [1]}, {"type": "text", "text": "Hello"}])
        + STOP,
        delta(content=None, refusal="Hello") + STOP,
        delta(content=[{"type": "refusal", "refusal": "Hello"}]) + STOP,
        delta(content="Hello", refusal=None) + STOP,
        delta(content=5) + delta(content="Hello") + delta(content=True) + STOP,
        event(choices=[{"message": HELLO, "finish_reason": "stop"}]),
        delta(content="Hello") + event(choices=[{"message": HELLO, "finish_reason": "stop"}]),
        delta(content="Hello").replace(b"data: ", b"") + STOP.replace(b"data: ", b""),
    ],
)
def test_all_forms_give_the_same_answer(stream):
    answer = read(stream)
    assert answer.text == "Hello"
    assert answer.reasoning == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "Hm."},
        {"reasoning_content": "Hm."},
        {"thinking": "Hm."},
        {"reasoning": "Hm.", "reasoning_content": "Hm."},
        {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}]},
        {"reasoning": {"content": "Hm."}},
        {"reasoning": {"summary": [{"type": "summary_text", "text": "Hm."}]}},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}]},
        {"content": [{"type": "reasoning", "text": "Hm."}]},
    ],
)
def test_reasoning_is_found_by_any_name(fields):
    answer = read(delta(**fields), delta(content="Yes"), STOP, DONE)
    assert answer == Chunk("Yes", "Hm.", "stop", None)


def test_repeated_reasoning_is_shown_once():
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "x"}]
    stream = delta(reasoning="Hm.") + delta(content="Yes", reasoning_details=details) + STOP
    assert read(stream).reasoning == "Hm."


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"content": [{"type": "redacted_thinking", "data": "x"}]},
        {"reasoning": {"effort": "high"}, "thinking": True},
        {"reasoning": 5, "tool_calls": [{"function": {"arguments": "{"}}]},
    ],
)
def test_other_fields_are_not_reasoning(fields):
    assert read(delta(**fields), delta(content="Yes"), STOP).reasoning == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("STOP", "stop"),
        ("eos", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("FinishReason.STOP", "stop"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ({"type": "length", "length": 5}, "length"),
        ("SAFETY", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("<|eot_id|>", "<|eot_id|>"),
    ],
)
def test_finish_reasons_are_recognized(value, expected):
    assert read(delta(value, content="Hi")).finish_reason == expected


@pytest.mark.parametrize("value", [None, "", "null", 0, False, [], {}, "FINISH_REASON_UNSPECIFIED"])
def test_answer_without_reason_is_cut_off(value):
    text, message = failure(delta(value, content="Hi"))
    assert (text, message) == ("Hi", str(errors.cut_off()))


@pytest.mark.parametrize("value", ["error", "ERROR", "abort", "network_error"])
def test_failed_answer_is_not_finished(value):
    text, message = failure(delta(value, content="Hi") + DONE)
    assert (text, message) == ("Hi", str(errors.aborted()))


WHOLE = {
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "All of\nit"}}],
    "usage": USAGE,
}
WHOLE_TEXT = {"object": "text_completion", "choices": [{"text": "All of\nit"}]}


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("body", [WHOLE, WHOLE_TEXT])
@pytest.mark.parametrize("form", ["{}", "\n \n{}\n", "data: {}\n\n", "{}\ndata: [DONE]\n\n"])
def test_whole_answers_are_read(form, body, indent, reason):
    body = body | {"choices": [body["choices"][0] | {"finish_reason": reason}]}
    text = json.dumps(body, indent=indent)
    if form.startswith("data"):
        text = text.replace("\n", "\ndata:")
    answer = read(form.format(text).encode())
    assert answer.text == "All of\nit"
    assert answer.finish_reason == reason


def test_whole_answer_needs_no_reason():
    assert read(json.dumps(WHOLE).encode()) == Chunk("All of\nit", "", None, USAGE)
    half = json.dumps(WHOLE).encode()[:-40]
    assert failure(half) == ("", str(errors.cut_off()))


@pytest.mark.parametrize(
    "end",
    [
        event(error={"message": "Out of memory", "type": None, "code": "408"}),
        event(error={"message": "Out of memory", "code": 500}, choices=[]),
        event(error={"message": "Out of memory", "code": "engine_unavailable"}) + DONE,
        event(
            error={"code": "server_error", "message": "Out of memory"},
            choices=[{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        ),
        delta("error") + event(error={"message": "Out of memory"}),
        event(
            choices=[{"delta": {}, "finish_reason": "error", "error": {"message": "Out of memory"}}]
        )
        + DONE,
        delta({"type": "abort", "message": "Out of memory"}) + DONE,
        event(error="Out of memory", error_type="generation"),
        event(error="Out of memory") + STOP + DONE,
        event(error=["Out of memory"]),
        event(error=True, message="Out of memory"),
        event(error={"code": "oom", "metadata": {"raw": "Out of memory"}}),
        event(error={"message": json.dumps({"error": {"message": "Out of memory"}})}),
        event(object="error", message="Out of memory", type="InternalServerError", code=500) + DONE,
        event(type="error", error={"type": "overloaded_error", "message": "Out of memory"}),
        event(message="Out of memory", code=500),
        event(message="Out of memory", code="server_error") + DONE,
        event(status="failed", message="Out of memory") + STOP + DONE,
        event(error_type="oom", message="Out of memory") + STOP + DONE,
        event(detail="Out of memory"),
        event(detail={"message": "Out of memory"}) + DONE,
        event(detail=[{"loc": ["body"], "msg": "Out of memory", "type": "oom"}]),
        event(error_code=17, error_msg="Out of memory"),
        event(choices=None, base_resp={"status_code": 1008, "status_msg": "Out of memory"}),
        b'data: [{"error": {"code": 500, "message": "Out of memory", "status": "INTERNAL"}}]\n\n',
        b'error: {"code":500,"message":"Out of memory","type":"server_error"}\n\n' + DONE,
        b"error: Out of memory\n\n",
        b'event: error\ndata: {"message": "Out of memory"}\n\n',
        b"event: error\ndata: Out of memory\n\n" + DONE,
        b'{"error": "Out of memory"}\n',
        b"data: Out of memory\n\n",
    ],
)
@pytest.mark.parametrize("start", [b"", SURE])
def test_errors_of_every_form_are_shown(start, end):
    text, message = failure(start, end)
    assert text == ("Sure, " if start else "")
    assert message.count("Out of memory") == 1
    assert re.match(r"The model server (failed|rejected)", message)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "used up", "code": 402}}', "used up"),
        (b'{"code":429,"message":"Quota exhausted","details":"RESOURCE_EXHAUSTED"}', "a limit"),
        (b'[{"error": {"code": 400, "message": "unknown name"}}]', "rejected the request: unknown"),
        (b'[{\n "error": {"code": 400, "message": "unknown name"}\n}]', "rejected the request: un"),
        (b'{"detail": "no such thing"}', "no such thing"),
        (b'{"message": "no such thing"}', "no such thing"),
        (b"upstream request timeout", "upstream request timeout"),
        (b"Error: too many requests\n", "Error: too many requests"),
        (b"<html><h1>Welcome</h1></html>", "invalid response"),
        (b"<!DOCTYPE html>\n<html>\n\n<p>data</p>", "invalid response"),
        (b'{"status": "ok"}', "invalid response"),
        (b"[]", "invalid response"),
        (b"\x00\xff\xfe \x01", "invalid response"),
        (b"", "cut off"),
        (b": keep-alive\n\n", "cut off"),
    ],
)
def test_other_bodies_are_not_answers(body, expected):
    text, message = failure(body)
    assert text == ""
    assert expected in message


def test_own_gateway_error_is_passed_on():
    words = str(errors.cut_off())
    error = {"message": words, "type": "server_error", "param": None, "code": "engine_unavailable"}
    assert failure(SURE, event(error=error)) == ("Sure, ", f"The model server failed: {words}")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (b"data: {oops\n\n", errors.malformed_response()),
        (b"data: ping\n\n", errors.malformed_response()),
        (b'data: {"choices": [{"ind', errors.cut_off()),
        (b'data: {"choices": [\n\n', errors.cut_off()),
        (event(type="ping"), errors.cut_off()),
        (b"", errors.cut_off()),
    ],
)
def test_unreadable_end_is_told_apart(end, expected):
    assert failure(SURE, end) == ("Sure, ", str(expected))


def test_connection_may_break_after_the_end():
    def broken(*blocks: bytes):
        yield from blocks
        raise errors.unreachable()

    answer = joined(list(chunks.read(broken(SURE, STOP))))
    assert (answer.text, answer.finish_reason) == ("Sure, ", "stop")
    with pytest.raises(errors.ModelError, match="Out of memory"):
        list(chunks.read(broken(SURE, event(message="Out of memory"))))
    for blocks in ([SURE], [SURE, delta(role="assistant")], [SURE, DONE[:-4]]):
        with pytest.raises(errors.Unreachable):
            list(chunks.read(broken(*blocks)))


def test_unreadable_events_are_logged_once(caplog):
    stream = SURE + b"data: key-marked\n\n" * 3 + STOP
    assert joined(list(chunks.read([stream], secrets=["key-marked"]))).finish_reason == "stop"
    assert [record.getMessage() for record in caplog.records] == [
        "the model server sent something that is not a JSON object: '***'"
    ]


def test_empty_answers_are_no_errors():
    assert read(DONE) == read(event(choices=[]), DONE) == Chunk()
    assert read(delta(role="assistant"), STOP, DONE) == Chunk(finish_reason="stop")


def test_usage_may_come_with_any_event():
    choice = {"index": 0, "delta": HELLO, "finish_reason": None}
    stream = event(choices=[choice], usage=None) + event(
        choices=[choice], usage={"total_tokens": 1}
    )
    final = event(choices=[], usage=USAGE | {"prompt_tokens_details": None, "cost": 0.1, "x": "y"})
    assert read(stream, STOP, final, DONE).usage == USAGE
    in_choice = event(choices=[{"delta": {}, "finish_reason": "stop", "usage": USAGE}])
    assert read(stream, in_choice).usage == USAGE


def test_halves_of_characters_are_joined():
    stream = delta(content="a\ud83d") + delta(content="\ude00b\ud83d") + delta(content="c") + STOP
    assert read(stream).text == "a\U0001f600b\ufffdc"
    assert read(delta(content="zwölf 三 \U0001f600") + STOP).text == "zwölf 三 \U0001f600"


def test_secrets_are_masked():
    stream = event(error={"message": "Incorrect API key: key-marked.", "code": "invalid_api_key"})
    with pytest.raises(errors.KeyRejected, match=r"Incorrect API key: \*\*\*\."):
        list(chunks.read([stream], secrets=["key-marked"]))


NOISE = st.sampled_from(
    [
        b": keep-alive\n\n",
        b"\n",
        b"data: \n\n",
        b"unknown: field\n",
        b"data: ping\n\n",
        b"event: ping\ndata: {}\n\n",
        delta(content=""),
        delta(content=None),
        delta(),
        event(choices=[]),
        event(choices=None, usage=None),
        event(choices=[{"delta": {}, "index": 0}], service_tier="x"),
    ]
)
ANSWERS = [
    [delta(role="assistant"), delta(reasoning="Hm"), delta(content="Hé"), STOP, DONE],
    [delta(content="Hé"), delta("length"), event(choices=[], usage=USAGE), DONE],
    [event(choices=[{"text": "Hé"}]), event(choices=[{"text": "\U0001f600"}]), DONE],
    [SURE, event(error={"message": "Out of memory"})],
    [SURE],
]


def outcome(blocks: list[bytes]) -> object:
    received = []
    try:
        for chunk in chunks.read(blocks):
            received.append(chunk)
    except errors.ModelError as error:
        return joined(received), str(error)
    return joined(received)


@settings(deadline=None, database=None)
@given(st.sampled_from(ANSWERS), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_form_of_a_stream_changes_nothing(events, ending, data):
    noisy = b""
    for number, part in enumerate(events):
        if number:  # so that the answer is known to have begun
            noisy += b"".join(data.draw(st.lists(NOISE, max_size=2)))
        noisy += part
    noisy = noisy.replace(b"\n", ending)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(noisy)), max_size=8)))
    blocks = [noisy[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    assert outcome(blocks) == outcome([b"".join(events)])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(
    "choices delta message content text reasoning thinking reasoning_details type index error code "
    "finish_reason usage completion_tokens detail status object refusal loc metadata raw".split()
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["error", "stop", "text", "thinking"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES, values, max_size=4),
    max_leaves=12,
)
CHOICES = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=2)
EVENTS = st.dictionaries(NAMES, VALUES, max_size=4) | st.builds(
    lambda choices, rest: rest | {"choices": choices},
    CHOICES,
    st.dictionaries(NAMES, VALUES, max_size=2),
)


@settings(deadline=None, database=None)
@given(st.lists(EVENTS | VALUES, max_size=4), st.booleans())
def test_any_json_is_an_answer_or_an_error(values, done):
    stream = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    outcome([stream + (DONE if done else b"")])


@settings(deadline=None, database=None)
@given(st.lists(st.binary() | st.sampled_from([b"data: ", b"\n\n", b"{", b'"', b"[", b"error: "])))
def test_any_bytes_are_an_answer_or_an_error(blocks):
    outcome(blocks)


def test_deeply_nested_json_is_skipped():
    deep = b"data: " + b"[" * 100_000 + b"\n\n"
    assert read(SURE, deep, STOP).finish_reason == "stop"
    nested: object = "x"
    for _ in range(400):
        nested = {"error": [nested]}
    assert "Out" not in failure(event(error=nested))[1]


def test_error_of_groq_is_no_end():
    failed = event(choices=[{"index": 0, "delta": {}}], x_groq={"error": "over capacity"})
    received = chunks.read([delta(content="Half") + failed + DONE])
    assert next(received).text == "Half"
    with pytest.raises(errors.ModelError, match="over capacity"):
        list(received)
