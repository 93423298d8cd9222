"""Server-sent events by the standard, and what model servers send besides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_space import errors, sse

JSON = b'{"a": 1}'


def parse(*blocks: bytes) -> list[tuple[str, bytes]]:
    return list(sse.events(blocks))


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_way(ending):
    stream = ending.join([b"data: one", b"data: two", b"", b"data: three", b"", b""])
    assert parse(stream) == [("message", b"one\ntwo"), ("message", b"three")]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data:one\n\n", [("message", b"one")]),
        (b"data:  one \n\n", [("message", b" one ")]),
        (b"data\n\n", [("message", b"")]),
        (b"data: a\ndata\ndata: b\n\n", [("message", b"a\n\nb")]),
        (b"\n\n: ping\n\nid: 7\nretry: 10\n\ndata: one\n\n", [("message", b"one")]),
        (b"event: error\ndata: one\n\ndata: two\n\n", [("error", b"one"), ("message", b"two")]),
        (b"event: ping\n\ndata: one\n\n", [("message", b"one")]),
        (b"data: one\nevent: late\n\n", [("late", b"one")]),
        (b"data: one\nnonsense: two\nnonsense\n\n", [("message", b"one")]),
        (b"\xef\xbb\xbfdata: one\n\n", [("message", b"one")]),
        (b"data: \xef\xbb\xbf\n\n", [("message", b"\xef\xbb\xbf")]),
        (b"data: one\n\ndatabase: two\n\n", [("message", b"one")]),
        (b"", []),
    ],
)
def test_fields_are_read_by_the_standard(stream, expected):
    assert parse(stream) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: one\n\ndata: two", [("message", b"one"), ("message", b"two")]),
        (b"error: " + JSON + b"\n\ndata: [DONE]\n\n", [("error", JSON), ("message", b"[DONE]")]),
        (b"data: " + JSON + b"\ndata: " + JSON + b"\n", [("message", JSON)] * 2),
        (b'data: {"a":\ndata: 1}\n\n', [("message", b'{"a":\n1}')]),
        (JSON + b"\n" + JSON + b"\n", [("message", JSON)] * 2),
        (b"data: one\n\n" + JSON + b"\n", [("message", b"one"), ("message", JSON)]),
        (b"\n  \n" + JSON, [("message", JSON)]),
        (b'{\n"a": 1\n}\n', [("", b'{\n"a": 1\n}')]),
        (b'{\n"a": 1\n}\ndata: [DONE]\n\n', [("", b'{\n"a": 1\n}'), ("message", b"[DONE]")]),
        (b"<html>\n\n<p>Hi: you</p>", [("", b"<html>\n<p>Hi: you</p>")]),
    ],
)
def test_other_forms_are_understood(stream, expected):
    assert parse(stream) == expected


def test_events_come_as_soon_as_complete():
    arrived = []

    def blocks():
        for block in (b"data: one\r\n\r", b"\ndata: two\n", b"\n", JSON + b"\n", b"data: "):
            yield block
            arrived.append(len(seen))

    seen: list[bytes] = []
    for _, data in sse.events(blocks()):
        seen.append(data)
    assert arrived == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("prefix", [b"data: ", b"", b"data: x\ndata: "])
def test_an_event_may_not_be_endless(prefix):
    def endless():
        yield prefix
        while True:
            yield b"x" * 65536

    with pytest.raises(errors.ModelError):
        list(sse.events(endless()))


def test_many_lines_of_data_are_bounded():
    def endless():
        while True:
            yield b"data: " + b"x" * 65536 + b"\n"

    with pytest.raises(errors.ModelError):
        list(sse.events(endless()))


def test_events_need_no_blank_lines_between_them():
    line = b'data: {"text": "' + b"x" * 2**20 + b'"}\n'
    assert len(parse(*[line] * 20)) == 20  # together longer than one event may be


LINES = [b"data: one", b"data:two", b"data", b"", b": hi", b"event: e", b"error: x", b"id: 1", JSON]


@settings(deadline=None, database=None)
@given(st.lists(st.sampled_from(LINES)), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_cuts_and_endings_change_nothing(lines, ending, data):
    stream = b"".join(line + ending for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    blocks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    assert parse(*blocks) == parse(*(line + b"\n" for line in lines))


@settings(deadline=None, database=None)
@given(st.lists(st.binary()))
def test_any_bytes_can_be_read(blocks):
    assert parse(*blocks) == parse(b"".join(blocks))
