"""Requests that fail, and hostile ones: what /chat and /v1 say of them, and that the page and the engine go on.

Where an engine fails in the middle of an answer, the text that had arrived is kept.
"""

import json
import resource
import socket
import time
from collections.abc import Iterator

import gradio_client
import pytest
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import Cut, ScriptedEngine, chat_stream, event

# -- an engine that fails a request ----------------------------------------------------------------------------------


def broken(*after: bytes, cut: bool = False) -> Iterator[bytes]:
    """A stream that begins well."""
    yield event(
        choices=[{"index": 0, "delta": {"content": "The first half"}, "finish_reason": None}]
    )
    yield from after
    if cut:
        raise Cut


def silent() -> Iterator[bytes]:
    yield event(
        choices=[{"index": 0, "delta": {"content": "The first half"}, "finish_reason": None}]
    )
    time.sleep(3)


def refused(status: int, said: object):
    return lambda: (status, said)


# What is asked -> (how the engine answers, what the page says, whether text had arrived, the status of /v1)
REQUESTS = {
    "prompt too long": (
        refused(400, {"error": {"message": "This model's maximum context length is 4096 tokens."}}),
        "does not fit the model's context",
        False,
        400,
    ),
    "bad parameter": (
        refused(400, {"error": {"message": "temperature must be non-negative"}}),
        "refused the request: temperature must be non-negative.",
        False,
        400,
    ),
    "no chat template": (
        refused(400, {"message": "default chat template is no longer allowed"}),
        "Use the Completion tab",
        False,
        400,
    ),
    "wrong key": (refused(401, {"error": "Unauthorized"}), "Set MODEL_API_KEY", False, 502),
    "forbidden": (refused(403, {"error": "Forbidden"}), "Set MODEL_API_KEY", False, 502),
    "model gone": (
        refused(404, {"error": {"message": "The model `x` does not exist."}}),
        "Reload",
        False,
        404,
    ),
    "busy": (refused(429, {"detail": "slow down"}), "busy. Try again in a minute", False, 429),
    "server error": (refused(500, "Internal Server Error"), "failed (HTTP 500)", False, 500),
    "core dead": (
        refused(
            500, {"error": {"message": "EngineCore encountered an issue. See stack trace (above)"}}
        ),
        "The model's engine has died",
        False,
        500,
    ),
    "not ready": (refused(503, {"detail": "loading"}), "failed (HTTP 503): loading.", False, 503),
    "connection lost": (lambda: broken(cut=True), "The answer was cut off", True, 200),
    "ended without an end": (lambda: broken(), "The answer was cut off", True, 200),
    "not JSON": (
        lambda: broken(b"data: {oops\n\n"),
        "sent something that is not an answer",
        True,
        200,
    ),
    "error in mid-stream": (
        lambda: broken(event(error={"message": "CUDA error", "code": 500})),
        "(HTTP 500): CUDA error.",
        True,
        200,
    ),
    "core dead in mid-stream": (
        lambda: broken(
            event(error={"message": "EngineCore encountered an issue. See", "code": 500})
        ),
        "The model's engine has died",
        True,
        200,
    ),
    "silent in mid-stream": (silent, "sent nothing for 1 seconds", True, 200),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    def script(path: str, body: dict):
        asked = body["messages"][-1]["content"] if "messages" in body else body.get("prompt")
        return REQUESTS[asked][0]() if asked in REQUESTS else chat_stream("Hello")

    with ScriptedEngine(script).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine) -> str:
    return shared_page(engine.url, REQUEST_TIMEOUT="1", API_KEYS=API_KEY)


@pytest.fixture(scope="module")
def client(url) -> gradio_client.Client:
    return gradio_client.Client(url, verbose=False)


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_request_that_fails_is_a_sentence_and_what_had_arrived_is_kept(
    url, client, engine, asked
):
    _, says, partial, status = REQUESTS[asked]
    job = client.submit(asked, api_name="/chat")
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        job.result(timeout=20)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert [text for text in job.outputs()[-1:] if text] == (["The first half"] if partial else [])

    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": asked}]}
    with requests.post(
        f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=20, stream=True
    ) as answer:
        assert answer.status_code == status
        got = b""
        try:
            for data in answer.iter_content(None):
                got += data
        except requests.exceptions.ChunkedEncodingError:
            assert partial
    assert (b"The first half" in got) is partial
    assert client.predict("And now?", api_name="/chat") == "Hello"


# -- a request that is hostile -----------------------------------------------------------------------------------------


def join(url: str, data: list, name: str = "chat") -> dict:
    """What the queue makes of an event with this data: the last message of its stream."""
    session = f"s{time.monotonic_ns()}"
    config = requests.get(f"{url}/config", timeout=10).json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session})
    answer = requests.post(
        f"{url}/gradio_api/queue/join",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=20,
    )
    assert answer.status_code < 500, answer.text
    if not answer.ok:
        return {"msg": "refused", "status": answer.status_code}
    last: dict = {}
    with requests.get(
        f"{url}/gradio_api/queue/data?session_hash={session}", stream=True, timeout=20
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith(b"data: "):
                last = json.loads(line[6:])
                if last["msg"] in ("process_completed", "close_stream"):
                    break
    return last


SENT_AS_IT_IS = {
    "lone surrogates": "\ud800 and \udfff",
    "NUL": "a\0b",
    "control characters": "".join(map(chr, range(1, 32))),
    "right to left": "\u202eabc\u2066 \u05e9\u05dc\u05d5\u05dd",
    "zalgo": "e" + "\u0301\u0317\u0489" * 500,
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "10 MB": "word " * 2 * 2**20,
}


@pytest.mark.parametrize("kind", SENT_AS_IT_IS)
def test_strange_text_reaches_the_model_as_it_is(url, engine, kind):
    engine.requests.clear()
    last = join(url, [SENT_AS_IT_IS[kind], [], "", "", 10, None, None, None, None])
    assert last["success"], last
    assert last["output"]["data"] == ["Hello"]
    assert engine.requests[-1][2]["messages"][-1]["content"] == SENT_AS_IT_IS[kind]


HOSTILE = {
    "temperature a word": ["Hi", [], "", "", 10, "x"],
    "temperature NaN": ["Hi", [], "", "", 10, float("nan")],
    "max_tokens infinite": ["Hi", [], "", "", float("inf")],
    "max_tokens of 400 digits": ["Hi", [], "", "", 10**400],
    "seed negative": ["Hi", [], "", "", 10, None, None, None, -5],
    "unknown model": ["Hi", [], "", "no-such-model"],
    "model a list": ["Hi", [], "", ["scripted"]],
    "message a number": [5],
    "message an object": [{"text": "Hi"}],
    "message null": [None],
    "history a word": ["Hi", "history"],
    "history of words": ["Hi", ["a", "b"]],
    "history of a king": ["Hi", [{"role": "king", "content": "x"}]],
    "history with a tool": ["Hi", [{"role": "tool", "content": "x", "tool_call_id": "1"}]],
    "history with a picture": [
        "Hi",
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}],
            }
        ],
    ],
    "system prompt an object": ["Hi", [], {"a": 1}],
    "stop a list of objects": ["Hi", [], "", "", 10, None, None, [{}]],
    "nothing": [],
    "too much": ["Hi"] * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_and_does_not_reach_the_engine(url, client, engine, kind):
    engine.requests.clear()
    last = join(url, HOSTILE[kind])
    assert not last.get("success"), last
    assert engine.requests == []
    assert client.predict("And now?", api_name="/chat") == "Hello"


def post(url: str, path: str, data: bytes, **headers: str) -> int:
    headers = {"Content-Type": "application/json"} | headers
    return requests.post(url + path, data=data, headers=headers, timeout=30).status_code


RAW = {
    "nested": b'{"data": '
    + b"[" * 100_000
    + b"]" * 100_000
    + b', "fn_index": 0, "session_hash": "x"}',
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no JSON": b"{",
    "an array": b"[1]",
    "NUL": b'{"data": ["\\u0000"], "fn_index": "\\u0000", "session_hash": null}',
    "surrogates": b'{"data": ["\\ud800"], "fn_index": 0, "session_hash": "\\udfff"}',
    "not UTF-8": b'{"data": ["\xff\xfe"]}',
    "a function that is not there": b'{"data": [], "fn_index": 99999, "session_hash": "x"}',
    "huge": b'{"data": [1e999999, ' + b"9" * 5000 + b'], "fn_index": 0, "session_hash": "x"}',
}
PATHS = (
    "/gradio_api/queue/join",
    "/gradio_api/run/predict",
    "/gradio_api/call/chat",
    "/v1/chat/completions",
)


@pytest.mark.parametrize("kind", RAW)
def test_a_body_that_is_hostile_is_no_error_of_ours(url, client, kind):
    for path in PATHS:
        assert post(url, path, RAW[kind], **KEY) < 500, path
    assert client.predict("And now?", api_name="/chat") == "Hello"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "app.py",
        ".env",
        "vllm_space/settings.py",
        "../app.py",
        "/proc/self/environ",
        "{tmp}/x.txt",
    ],
)
def test_gradios_file_route_opens_no_file_of_this_machine(url, tmp_path, path):
    (tmp_path / "x.txt").write_text("MARKED")
    for form in (path, path.replace("/", "%2F"), path.replace("/", "//")):
        form = form.replace("{tmp}", str(tmp_path))
        assert requests.get(f"{url}/gradio_api/file={form}", timeout=10).status_code in (403, 404)


@pytest.mark.parametrize(
    "meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["without meta", "with meta"]
)
def test_no_handler_reads_a_file_that_a_forged_event_names(url, client, engine, tmp_path, meta):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"MARKED" * 9)
    engine.requests.clear()
    file = {"path": str(secret), "mime_type": "image/png", "orig_name": "x.png"} | meta
    history = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "file", "file": file}],
        }
    ]
    forged = {
        "chatbot": history,
        "multimodaltextbox": {"text": "Hi", "files": [file]},
        "uploadbutton": file,
    }
    config = requests.get(f"{url}/config", timeout=10).json()
    kinds = {one["id"]: one["type"] for one in config["components"]}
    tried = 0
    for function in config["dependencies"]:
        if any(kinds[one] in forged for one in function["inputs"]):
            tried += 1
            data = [forged.get(kinds[one], "") for one in function["inputs"]]
            event = {"event_data": {"index": 0, "value": "Hi"}}
            body = {
                "data": data,
                "fn_index": function["id"],
                "session_hash": f"forged-{tried}",
            } | event
            answer = requests.post(f"{url}/gradio_api/run/predict", json=body, timeout=10)
            joined = requests.post(f"{url}/gradio_api/queue/join", json=body, timeout=10)
            if not function["backend_fn"]:  # it happens in the browser alone
                assert (answer.status_code, joined.status_code) == (404, 404)
                continue
            assert answer.status_code == 400
            assert joined.status_code < 500
            stream = f"{url}/gradio_api/queue/data?session_hash={body['session_hash']}"
            with requests.get(stream, stream=True, timeout=10) as events:
                said = next(
                    (line for line in events.iter_lines() if b"process_completed" in line), b""
                )
            assert b'"success":false' in said, function
            assert b"TUFSS0VE" not in said + answer.content  # MARKED in base64
    assert tried >= 5
    assert engine.requests == []


def test_an_upload_that_is_too_large_is_refused_and_one_of_a_wrong_type_is_never_shown_as_a_page(
    url, tmp_path
):
    def upload(name: str, content: bytes) -> requests.Response:
        return requests.post(
            f"{url}/gradio_api/upload", files={"files": (name, content)}, timeout=30
        )

    assert upload("x.txt", b"x" * (11 * 2**20)).status_code == 413
    for name in ("../../x.html", "x.svg", "\0.html", "x" * 300 + ".html"):
        answer = upload(name, b"<script>alert(1)</script>")
        assert answer.status_code < 500, name
        if answer.ok:
            shown = requests.get(f"{url}/gradio_api/file={answer.json()[0]}", timeout=10)
            assert shown.headers["Content-Disposition"].startswith("attachment")


def test_half_open_and_slow_connections_keep_nobody_out(url, client):
    """2 000 connections: ones that say nothing, that stop in mid-request, and that never read their answer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port = url.removeprefix("http://").split(":")
    half = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    openings = [*[b"", b"GET / HT", half] * 10, b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n"]
    held = []
    try:
        for number in range(2000):
            held.append(socket.create_connection((host, int(port)), timeout=10))
            held[-1].sendall(openings[number % len(openings)])
        began = time.monotonic()
        assert client.predict("And now?", api_name="/chat") == "Hello"
        assert requests.get(f"{url}/healthz", timeout=10).ok
        assert time.monotonic() - began < 10
        assert len(held) == 2000
    finally:
        for one in held:
            one.close()
    assert client.predict("And now?", api_name="/chat") == "Hello"
