"""Failing and hostile requests: what /chat and /v1 return, and that the page keeps working.

If an engine fails in the middle of an answer, the text received so far is kept.
"""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio_client
import pytest
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream, event

JSON = {"Content-Type": "application/json"}

# -- failing engines -----------------------------------------------------------------------

PARTIAL = "The first half"


def returning(status: int, body: object) -> Callable[[], tuple[int, object]]:
    return lambda: (status, body)


def error(status: int, message: str) -> Callable[[], tuple[int, object]]:
    return returning(status, {"error": {"message": message}})


def streaming(*rest: bytes) -> Callable[[], Iterator[bytes]]:
    """A stream that starts well, continues with `rest`, and has no proper end."""
    return lambda: iter([chat_event(content=PARTIAL), *rest])


def cut() -> Iterator[bytes]:
    yield chat_event(content=PARTIAL)
    raise Cut


def silent() -> Iterator[bytes]:
    yield chat_event(content=PARTIAL)
    time.sleep(3)


CRASH = "EngineCore encountered an issue. See stack trace (above)"

# Prompt -> (what the engine answers, the message on the page, whether text arrives, status of /v1)
FAILURES: dict[str, tuple[Callable[[], Any], str, bool, int]] = {
    "prompt too long": (
        error(400, "This model's maximum context length is 4096 tokens."),
        "does not fit into the model's context",
        False,
        400,
    ),
    "bad parameter": (
        error(400, "temperature must be non-negative"),
        "rejected the request: temperature must be non-negative.",
        False,
        400,
    ),
    "no chat template": (
        returning(400, {"message": "default chat template is no longer allowed"}),
        "Use the Completion tab",
        False,
        400,
    ),
    "wrong key": (returning(401, {"error": "Unauthorized"}), "Set MODEL_API_KEY", False, 502),
    "forbidden": (returning(403, {"error": "Forbidden"}), "Set MODEL_API_KEY", False, 502),
    "no such model": (error(404, "The model `x` does not exist."), "Reload", False, 404),
    "busy": (returning(429, {"detail": "slow down"}), "The server says: slow down.", False, 429),
    "server error": (returning(500, "Internal Server Error"), "failed (HTTP 500)", False, 500),
    "crash": (error(500, CRASH), "The engine has crashed", False, 500),
    "not ready": (returning(503, {"detail": "loading"}), "failed (HTTP 503): loading.", False, 503),
    "connection lost": (cut, "The answer was cut off", True, 200),
    "no finish reason": (streaming(), "The answer was cut off", True, 200),
    "not JSON": (streaming(b"data: {oops\n\n"), "sent an invalid response", True, 200),
    "error in mid-stream": (
        streaming(event(error={"message": "CUDA error", "code": 500})),
        "(HTTP 500): CUDA error.",
        True,
        200,
    ),
    "crash in mid-stream": (
        streaming(event(error={"message": CRASH, "code": 500})),
        "The engine has crashed",
        True,
        200,
    ),
    "silence in mid-stream": (silent, "sent nothing for 1 s", True, 200),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    def script(path: str, body: dict):
        prompt = body["messages"][-1]["content"] if "messages" in body else body.get("prompt")
        return FAILURES[prompt][0]() if prompt in FAILURES else chat_stream("Hello")

    with ScriptedEngine(script).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine) -> str:
    return shared_page(engine.url, REQUEST_TIMEOUT="1", API_KEYS=API_KEY)


@pytest.fixture(scope="module")
def client(url) -> gradio_client.Client:
    return gradio_client.Client(url, verbose=False)


def check_page_works(client: gradio_client.Client) -> None:
    assert client.predict("And now?", api_name="/chat") == "Hello"


@pytest.mark.parametrize("prompt", FAILURES)
def test_failure_on_the_page_is_explained(client, prompt):
    _, message, is_partial, _ = FAILURES[prompt]
    job = client.submit(prompt, api_name="/chat")
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        job.result(timeout=20)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")
    assert [text for text in job.outputs()[-1:] if text] == ([PARTIAL] if is_partial else [])
    check_page_works(client)


@pytest.mark.parametrize("prompt", FAILURES)
def test_failure_at_v1_has_its_status(url, prompt):
    _, _, is_partial, status = FAILURES[prompt]
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    path = f"{url}/v1/chat/completions"
    with requests.post(path, json=body, headers=KEY, timeout=20, stream=True) as response:
        assert response.status_code == status
        received = b""
        try:
            for chunk in response.iter_content(None):
                received += chunk
        except requests.exceptions.ChunkedEncodingError:
            assert is_partial
    assert (PARTIAL.encode() in received) is is_partial


# -- hostile requests ----------------------------------------------------------------------


def page_config(url: str) -> dict[str, Any]:
    return requests.get(f"{url}/config", timeout=10).json()


def queue_events(url: str, session: str) -> Iterator[dict]:
    """The events of a queue session, until that of its result."""
    path = f"{url}/gradio_api/queue/data?session_hash={session}"
    with requests.get(path, stream=True, timeout=20) as stream:
        for line in stream.iter_lines():
            if line.startswith(b"data: "):
                message = json.loads(line[6:])
                yield message
                if message["msg"] in ("process_completed", "close_stream"):
                    return


def run_chat(url: str, *data: object) -> dict:
    """Run the chat endpoint with these arguments: the last event that the queue sends."""
    session = f"s{time.monotonic_ns()}"
    dependencies = page_config(url)["dependencies"]
    chat = next(event["id"] for event in dependencies if event["api_name"] == "chat")
    body = json.dumps({"data": data, "fn_index": chat, "session_hash": session})
    response = requests.post(f"{url}/gradio_api/queue/join", data=body, headers=JSON, timeout=20)
    assert response.status_code < 500, response.text
    if not response.ok:
        return {"msg": "rejected", "status": response.status_code}
    *_, last = queue_events(url, session)
    return last


STRANGE_TEXTS = {
    "lone surrogates": "\ud800 and \udfff",
    "NUL": "a\0b",
    "control characters": "".join(map(chr, range(1, 32))),
    "right to left": "\u202eabc\u2066 \u05e9\u05dc\u05d5\u05dd",
    "zalgo": "e" + "\u0301\u0317\u0489" * 500,
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "30 kB": "word " * 6_000,
}


@pytest.mark.parametrize("kind", STRANGE_TEXTS)
def test_strange_text_is_sent_unchanged(url, engine, kind):
    engine.requests.clear()
    last = run_chat(url, STRANGE_TEXTS[kind], [], "", "", 10, None, None, None, None)
    assert last["success"], last
    assert last["output"]["data"] == ["Hello"]
    assert engine.requests[-1][2]["messages"][-1]["content"] == STRANGE_TEXTS[kind]


IMAGE_URL = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}
INVALID_ARGUMENTS = {
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
    "history with an image": ["Hi", [{"role": "user", "content": [IMAGE_URL]}]],
    "system prompt an object": ["Hi", [], {"a": 1}],
    "stop a list of objects": ["Hi", [], "", "", 10, None, None, [{}]],
    "no arguments": [],
    "100 arguments": ["Hi"] * 100,
}


@pytest.mark.parametrize("kind", INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected(url, client, engine, kind):
    engine.requests.clear()
    last = run_chat(url, *INVALID_ARGUMENTS[kind])
    assert not last.get("success"), last
    assert engine.requests == []
    check_page_works(client)


MALFORMED_BODIES = {
    "nested": b'{"data": ' + b"[" * 10**5 + b"]" * 10**5 + b', "fn_index": 0, "session_hash": "x"}',
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no JSON": b"{",
    "an array": b"[1]",
    "NUL": b'{"data": ["\\u0000"], "fn_index": "\\u0000", "session_hash": null}',
    "surrogates": b'{"data": ["\\ud800"], "fn_index": 0, "session_hash": "\\udfff"}',
    "not UTF-8": b'{"data": ["\xff\xfe"]}',
    "unknown event": b'{"data": [], "fn_index": 99999, "session_hash": "x"}',
    "huge": b'{"data": [1e999999, ' + b"9" * 5000 + b'], "fn_index": 0, "session_hash": "x"}',
}


@pytest.mark.parametrize("kind", MALFORMED_BODIES)
def test_malformed_body_is_not_a_500(url, client, kind):
    for path in (
        "/gradio_api/queue/join",
        "/gradio_api/run/predict",
        "/gradio_api/call/chat",
        "/v1/chat/completions",
    ):
        body = MALFORMED_BODIES[kind]
        response = requests.post(url + path, data=body, headers=JSON | KEY, timeout=30)
        assert response.status_code < 500, path
    check_page_works(client)


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
def test_file_route_serves_no_local_files(url, tmp_path, path):
    (tmp_path / "x.txt").write_text("MARKED")
    for form in (path, path.replace("/", "%2F"), path.replace("/", "//")):
        form = form.replace("{tmp}", str(tmp_path))
        assert requests.get(f"{url}/gradio_api/file={form}", timeout=10).status_code in (403, 404)


@pytest.mark.parametrize(
    "meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["without meta", "with meta"]
)
def test_forged_events_read_no_files(url, client, engine, tmp_path, meta):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"MARKED" * 9)
    engine.requests.clear()
    file = {"path": str(secret), "mime_type": "image/png", "orig_name": "x.png"} | meta
    content = [{"type": "text", "text": "Hi"}, {"type": "file", "file": file}]
    forged = {
        "chatbot": [{"role": "user", "content": content}],
        "multimodaltextbox": {"text": "Hi", "files": [file]},
        "uploadbutton": file,
    }
    config = page_config(url)
    types = {component["id"]: component["type"] for component in config["components"]}
    count = 0
    for dependency in config["dependencies"]:
        inputs = [types[component] for component in dependency["inputs"]]
        if not forged.keys() & set(inputs):
            continue
        count += 1
        body = {
            "data": [forged.get(kind, "") for kind in inputs],
            "fn_index": dependency["id"],
            "session_hash": f"forged-{count}",
            "event_data": {"index": 0, "value": "Hi"},
        }
        response = requests.post(f"{url}/gradio_api/run/predict", json=body, timeout=10)
        joined = requests.post(f"{url}/gradio_api/queue/join", json=body, timeout=10)
        if not dependency["backend_fn"]:  # it only runs in the browser
            assert (response.status_code, joined.status_code) == (404, 404)
            continue
        assert response.status_code == 400
        assert joined.status_code < 500
        *_, last = queue_events(url, body["session_hash"])
        assert last["msg"] == "process_completed"
        assert last["success"] is False, dependency
        assert "TUFSS0VE" not in json.dumps(last) + response.text  # MARKED in base64
    assert count >= 5
    assert engine.requests == []


def test_uploads_are_limited_and_never_run(url):
    def upload(name: str, content: bytes) -> requests.Response:
        files = {"files": (name, content)}
        return requests.post(f"{url}/gradio_api/upload", files=files, timeout=30)

    assert upload("x.txt", b"x" * (11 * 2**20)).status_code == 413
    for name in ("../../x.html", "x.svg", "\0.html", "x" * 300 + ".html"):
        uploaded = upload(name, b"<script>alert(1)</script>")
        assert uploaded.status_code < 500, name
        if uploaded.ok:
            file = requests.get(f"{url}/gradio_api/file={uploaded.json()[0]}", timeout=10)
            assert file.headers["Content-Disposition"].startswith("attachment")


def test_idle_connections_block_nobody(url, client):
    """2,000 connections that send nothing, stop in mid-request or never read the response."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    host, port = url.removeprefix("http://").split(":")
    partial = (
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    )
    openings = [
        *[b"", b"GET / HT", partial] * 10,
        b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    connections = []
    try:
        for number in range(2000):
            connection = socket.create_connection((host, int(port)), timeout=10)
            connections.append(connection)
            connection.sendall(openings[number % len(openings)])
        started_at = time.monotonic()
        check_page_works(client)
        assert requests.get(f"{url}/healthz", timeout=10).ok
        assert time.monotonic() - started_at < 10
    finally:
        for connection in connections:
            connection.close()
    check_page_works(client)
