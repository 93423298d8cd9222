"""Gradio's endpoints called with whatever Hypothesis comes up with: no 500, no hang, no damage."""

import json
import re
from collections import Counter

import gradio_client
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.scripted_engine import ScriptedEngine, chat_stream, completion_stream

TIMEOUT = 20  # seconds that one call may take on a busy machine

NUMBERS = (
    st.integers()
    | st.floats()
    | st.integers(10**15, 10**400)
    | st.sampled_from([-1, 0, 2**31, 2**63, 2**64])
)
TEXTS = (
    st.text(st.characters())
    | st.sampled_from(["\ud800", "\udfff", "a\0b", "\u202e", "e\u0301" * 50])
    | st.just("x").map(lambda text: text * 10_000)
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "king", "", None, 5])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file", "input_audio"])},
    optional={
        "text": TEXTS,
        "image_url": st.fixed_dictionaries(
            {"url": st.sampled_from(["http://127.0.0.1:9/x", "file:///etc/passwd", "data:,"])}
        ),
        "file": st.fixed_dictionaries(
            {"path": st.sampled_from(["/etc/passwd", "app.py", "../x", "http://127.0.0.1:9/"])},
            optional={"meta": st.just({"_type": "gradio.FileData"}), "url": TEXTS},
        ),
    },
)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES,
        "content": TEXTS | st.lists(PARTS, max_size=3),
        "metadata": st.none() | st.dictionaries(TEXTS, TEXTS),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | TURNS | PARTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
HISTORIES = st.lists(TURNS, max_size=4) | VALUES
# The fields of /chat in their order, so that strange values get as far as possible.
CHAT = st.tuples(
    TEXTS,
    HISTORIES,
    TEXTS,
    st.just("") | VALUES,
    *[st.none() | NUMBERS | VALUES] * 3,
    st.none() | VALUES,
)
DATA = CHAT.map(list) | st.lists(VALUES, max_size=12) | VALUES


@pytest.fixture(scope="module")
def engine():
    def script(path, body):
        return chat_stream("Hello") if "messages" in body else completion_stream("Hello")

    with ScriptedEngine(script).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine):
    return shared_page(engine.url)


class Caller:
    """Calls Gradio's endpoints, and checks that none of them fails."""

    def __init__(self, url: str):
        self.url = url
        self.session = requests.Session()
        self.statuses = Counter()

    def post(self, path: str, body: object) -> requests.Response:
        data = json.dumps(body).encode()  # surrogates as \ud800, NaN and Infinity by name
        headers = {"Content-Type": "application/json"}
        answer = self.session.post(self.url + path, data=data, headers=headers, timeout=TIMEOUT)
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, f"{path} {data[:500]!r}: {answer.text[:500]}"
        return answer

    def last_event(self, path: str) -> str:
        last = ""
        with self.session.get(self.url + path, stream=True, timeout=TIMEOUT) as stream:
            assert stream.status_code < 500
            try:
                for line in stream.iter_lines(decode_unicode=True):
                    last = line or last
                    if "process_completed" in line or "close_stream" in line:
                        break
            except requests.exceptions.ChunkedEncodingError:
                assert "unexpected_error" in last  # Gradio ends the stream after an error
        return last

    def call(self, name: str, data: object) -> None:
        """As gradio_client and curl do."""
        path = f"/gradio_api/call/{name}"
        answer = self.post(path, {"data": data})
        if answer.ok:
            assert self.last_event(f"{path}/{answer.json()['event_id']}")

    def join(self, function: int, data: object) -> None:
        """As the page does for events that queue."""
        session = f"fuzz-{self.statuses.total()}"
        body = {"data": data, "fn_index": function, "session_hash": session}
        if self.post("/gradio_api/queue/join", body).ok:
            last = self.last_event(f"/gradio_api/queue/data?session_hash={session}")
            assert re.search("process_completed|unexpected_error", last)

    def run(self, function: int, data: object) -> None:
        """As the page does for events that do not queue."""
        body = {"data": data, "fn_index": function, "session_hash": "fuzz"}
        self.post("/gradio_api/run/predict", body)


@pytest.mark.parametrize(
    "calls", [500, pytest.param(20_000, marks=[pytest.mark.release, pytest.mark.timeout(5400)])]
)
def test_gradio_answers_whatever_it_is_sent(url, engine, calls):
    config = requests.get(f"{url}/config", timeout=TIMEOUT).json()
    functions = [function["id"] for function in config["dependencies"]]
    caller = Caller(url)

    @settings(
        max_examples=calls,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(["call", "join", "run"]),
        st.sampled_from(["chat", "complete"]),
        st.sampled_from(functions),
        DATA,
    )
    def fuzz(way: str, name: str, function: int, data: object) -> None:
        if way == "call":
            caller.call(name, data)
        elif way == "join":
            caller.join(function, data)
        else:
            caller.run(function, data)

    fuzz()
    print(dict(caller.statuses))
    assert caller.statuses.total() >= calls
    assert requests.get(f"{url}/healthz", timeout=TIMEOUT).json() == {"status": "ok"}
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"
    for path, _, body in engine.requests:  # what reached the engine is valid
        assert path in ("/v1/chat/completions", "/v1/completions")
        assert 1 <= body["max_tokens"] <= 4096
        assert "/etc/passwd" not in str(body.get("messages", "")) or "file" not in str(body)
