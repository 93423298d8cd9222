"""Answers under the name that the client asked for, and as a stream if it asked for one."""

import gzip
import itertools
import json
from collections.abc import Iterator

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.gateway import CHAT, CHAT_PATH, post, serving
from support.http_server import QuietHandler
from support.http_server import serving as http_serving
from support.programs import API_KEY
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream, event
from vllm_space.api_answer import MAX_LINE, AnswerForm

LABEL = "shared (b)"
ASKED = {"model": LABEL, "messages": [{"role": "user", "content": "Hi"}]}
WHOLE = {
    "id": "x",
    "object": "chat.completion",
    "model": "shared",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": 'A "model":"shared" REPLY'},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
}


def named(path: str, body: dict) -> object:
    """Answers in each protocol, with the engine's own name for the model."""
    model = body["model"]
    if not body.get("stream"):
        return 200, WHOLE | {"model": model}
    if path == "/v1/messages":
        return messages_events(model)
    if path == "/v1/responses":
        return response_events(model)
    return chat_events(model)


def chat_events(model: str) -> Iterator[bytes]:
    for text in ("Hel", "lo"):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        yield event(id="x", object="chat.completion.chunk", model=model, choices=[choice])
    yield b"data: [DONE]\n\n"


def messages_events(model: str) -> Iterator[bytes]:
    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": model}
    message |= {"usage": {"input_tokens": 1, "output_tokens": 1}}
    yield b"event: message_start\n" + event(type="message_start", message=message)
    yield b"event: message_stop\n" + event(type="message_stop")


def response_events(model: str) -> Iterator[bytes]:
    for kind in ("response.created", "response.completed"):
        response = {"id": "r", "object": "response", "model": model, "output": []}
        yield f"event: {kind}\n".encode() + event(type=kind, response=response)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The gateway in front of two servers with a model of the same name."""
    with (
        ScriptedEngine(named, models=["shared"]).running() as first,
        ScriptedEngine(named, models=["shared", "own"]).running() as second,
        serving({"a": first.url, "b": second.url}) as url,
    ):
        yield url


def test_whole_answers_name_the_asked_model(url):
    for path in (CHAT_PATH, "/v1/completions", "/v1/responses", "/v1/messages"):
        fields = post(url, path, ASKED | {"input": "x", "prompt": "x", "max_tokens": 5}).json()
        assert fields == WHOLE | {"model": LABEL}, path


def test_streams_name_the_asked_model(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert [(chunk.model, chunk.choices[0].delta.content) for chunk in chunks] == [
        (LABEL, "Hel"),
        (LABEL, "lo"),
    ]
    events = list(client.responses.create(model=LABEL, input="Hi", stream=True))
    assert [each.response.model for each in events] == [LABEL, LABEL]
    claude = anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0)
    events = list(claude.messages.create(**ASKED, max_tokens=5, stream=True))
    assert events[0].message.model == LABEL


def test_own_names_pass_byte_for_byte(url):
    for stream in (False, True):
        body = {"model": "own", "messages": [], "stream": stream}
        expected = b"".join(chat_events("own")) if stream else json.dumps(WHOLE | {"model": "own"})
        response = post(url, body=body)
        assert response.content == (expected if stream else expected.encode())


@given(cuts=st.lists(st.integers(0, 400)), ending=st.sampled_from([b"\n", b"\r\n"]))
def test_any_split_of_a_stream_is_renamed(cuts, ending):
    stream = b": note\n\nevent: x\n" + b"".join(chat_events("shared")) + b'data: {"model": "cut'
    stream = stream.replace(b"\n", ending)
    form = AnswerForm(CHAT_PATH, LABEL, True)
    bounds = [0, *sorted(cuts), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise(bounds)]
    renamed = b"".join(map(form.part, parts)) + form.end()
    assert renamed == stream.replace(b'"model": "shared"', f'"model": "{LABEL}"'.encode())


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"choices": [{"delta": {"content": "\\"model\\": 1"}}]}',
        b'data: "model"',
        b'data: {"model": ',
        b'{"model": "shared"}',
        b': "model"',
        b'data: ["model"]',
    ],
)
def test_other_lines_stay_as_they_are(line):
    form = AnswerForm(CHAT_PATH, LABEL, True)
    assert form.part(line + b"\n") == line + b"\n"
    assert form.part(line) + form.end() == line


def test_endless_lines_are_not_collected():
    form = AnswerForm(CHAT_PATH, LABEL, True)
    line = b"x" * MAX_LINE
    assert form.part(line) == b""
    assert form.part(line) == line * 2


# -- streams -------------------------------------------------------------------------------


def stream_of(answer: object, path: str = CHAT_PATH, **fields: object) -> tuple[str, str]:
    """The content type and the text of a client's stream if the server answers so."""
    engine = ScriptedEngine(lambda path, _: (200, answer))
    with engine.running(), serving(engine.url) as url:
        response = post(url, path, CHAT | {"stream": True} | fields)
        return response.headers["Content-Type"], response.text


def test_whole_chat_answer_becomes_a_stream():
    engine = ScriptedEngine(lambda path, _: (200, WHOLE))
    with engine.running(), serving(engine.url) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ['A "model":"shared" REPLY']
    assert (chunks[0].object, chunks[0].choices[0].finish_reason) == (
        "chat.completion.chunk",
        "stop",
    )
    assert chunks[0].usage.total_tokens == 4


def test_whole_tool_calls_become_a_stream():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    _, text = stream_of({"choices": [{"index": 0, "message": message}]})
    choice = json.loads(text.split("\n\n")[0].removeprefix("data: "))["choices"][0]
    assert [each["index"] for each in choice["delta"]["tool_calls"]] == [0, 1]


def test_whole_completion_becomes_a_stream():
    answer = {"object": "text_completion", "choices": [{"index": 0, "text": "REPLY"}]}
    kind, text = stream_of(answer, "/v1/completions", prompt="x")
    assert kind == "text/event-stream"
    assert text == f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("answer", [{"text": "x"}, [1], {"choices": None}, {"choices": [1]}, "x"])
def test_other_answers_to_streams_pass(answer):
    _, text = stream_of(answer)
    assert text == (answer if isinstance(answer, str) else json.dumps(answer))


def test_answers_without_stream_stay_whole():
    engine = ScriptedEngine(lambda path, _: (200, WHOLE))
    with engine.running(), serving(engine.url) as url:
        for stream in (False, None):
            assert post(url, body=CHAT | {"stream": stream}).content == json.dumps(WHOLE).encode()


def test_compressed_answers_pass_unchanged():
    class Server(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(200, gzip.compress(json.dumps(WHOLE).encode()), Content_Encoding="gzip")

    with http_serving(Server) as server, serving(server.url) as url:
        response = post(url, body=CHAT | {"stream": True})
    assert response.json() == WHOLE
    assert response.headers["Content-Encoding"] == "gzip"


def test_cut_stream_of_a_label_is_an_error():
    def script(path: str, body: dict) -> Iterator[bytes]:
        yield chat_event(content="partial")
        yield b'data: {"model": "sha'
        raise Cut

    with (
        ScriptedEngine(script, models=["shared"]).running() as first,
        ScriptedEngine(lambda path, body: chat_stream("x"), models=["shared"]).running() as second,
        serving({"b": first.url, "c": second.url}) as url,
    ):
        events = post(url, body=ASKED | {"stream": True}).text.split("\n\n")
    assert "partial" in events[0]
    assert "cut off" in events[1]
    assert events[2:] == [""]
