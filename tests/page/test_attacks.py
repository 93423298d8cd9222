"""Attacks on the page over HTTP, by visitors and by a second user. See docs/security.md.

Attacks on sign-in are in test_login.py, on the API in unit/test_gateway.py, and those of other web
sites in test_other_sites.py.
"""

import http.client
import itertools
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from support.http_server import QuietHandler, serving
from support.programs import TESTS, Program, free_port, wait_for
from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space.bodies import BODY_LIMIT, MAX_VALUES, UPLOAD_LIMIT
from vllm_space.storage import QUOTA

JOIN = "/gradio_api/queue/join"
UPLOAD = "/gradio_api/upload"
JSON = {"Content-Type": "application/json"}
HELLO = ["Hi", [], "", "", 10, None, None, None, None]  # arguments of /chat
SESSIONS = itertools.count()


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    with ScriptedEngine(lambda path, body: chat_stream(*"abc", every=0.3)).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def app(shared_program, engine) -> Program:
    """An open page. Gradio takes every host for a public one, and its name for this machine."""
    port = free_port()
    app = shared_program(
        [sys.executable, "app.py", "--port", str(port)],
        MODEL_URL=engine.url,
        PYTHONPATH=str(TESTS / "support" / "all_hosts_are_here"),
    )
    app.url = f"http://127.0.0.1:{port}"
    app.wait_until_up(app.url, 60)
    return app


@pytest.fixture(scope="module")
def url(app) -> str:
    return app.url


def events_of(url: str, session: requests.Session | None = None) -> list[dict[str, Any]]:
    """The events that a request can start."""
    config = (session or requests).get(f"{url}/config", timeout=10).json()
    return [event for event in config["dependencies"] if event["backend_fn"]]


def chat_event_of(url: str, session: requests.Session) -> int:
    """The number of the event that answers /chat."""
    events = events_of(url, session)
    return next(event["id"] for event in events if event["api_name"] == "chat")


# -- bodies ----------------------------------------------------------------------------------------


def begin_post(url: str, path: str, **headers: str) -> http.client.HTTPConnection:
    """A connection that has sent a POST without its body."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.putrequest("POST", path)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    return connection


def answer_to_head(url: str, path: str, **headers: str) -> int:
    """The status that a POST gets before any of its body is sent."""
    connection = begin_post(url, path, **headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path", [JOIN, "/gradio_api/run/chat", "/gradio_api/call/chat", "/gradio_api/mcp/"]
)
def test_large_body_is_rejected_unread(url, path):
    assert answer_to_head(url, path, Content_Length=str(BODY_LIMIT + 1)) == 413


def test_large_upload_is_rejected_unread(url):
    multipart = {"Content_Type": "multipart/form-data; boundary=x"}
    size = {"Content_Length": str(UPLOAD_LIMIT + 1)}
    assert answer_to_head(url, UPLOAD, **multipart, **size) == 413
    assert answer_to_head(url, UPLOAD, **multipart, Transfer_Encoding="chunked") == 411


def test_endless_body_ends_at_the_limit(url):
    connection = begin_post(url, JOIN, Transfer_Encoding="chunked")
    connection.send(f"{BODY_LIMIT + 1:x}\r\n".encode() + b" " * (BODY_LIMIT + 1) + b"\r\n")
    assert connection.getresponse().status == 413  # though more could follow
    connection.close()


@pytest.mark.parametrize("value", ["{}", "[]", "0", '{"a":[{}]}', '"{[,"'])
def test_number_of_values_is_limited(url, value):
    def join(count: int) -> int:
        data = ",".join([value] * count)
        body = f'{{"data":[{data}],"fn_index":999,"session_hash":"z"}}'
        return requests.post(url + JOIN, data=body, headers=JSON, timeout=20).status_code

    assert join(MAX_VALUES + 1) == 413
    assert join(MAX_VALUES // 4) == 404  # it has been read: there is no such event


# -- routes and headers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "deep_link?session_hash=x",
        "openapi.json",
        "runs",
        "run-history/records",
        "vibe-code",
        "vibe-starter-queries",
        "dev/reload",
        "token",
        "queue/status",
        "component_server",
        "process_recording",
        "profiling/summary",
        "stream/x/1/1/playlist.m3u8",
        "custom_component/x/server/component/x.js",
        "proxy=http://localhost/x",
        "file/etc/passwd",
        "file=http://localhost/x",
        "file= http://localhost/x",
    ],
)
def test_unneeded_routes_are_closed(url, path):
    for method in ("GET", "POST", "PUT"):
        for prefix in ("/gradio_api/", "/"):
            response = requests.request(method, url + prefix + path, json={}, timeout=10)
            assert response.status_code in (404, 405), (method, prefix)


def test_other_methods_are_not_allowed(url):
    for path, allowed in (("/login", "GET, HEAD, POST"), (JOIN, "POST")):
        response = requests.delete(url + path, timeout=10)
        assert (response.status_code, response.headers["Allow"]) == (405, allowed)


def test_monitoring_and_docs_are_closed(url):
    for path in ("monitoring", "monitoring/summary", "docs", "redoc", "openapi.json", "pwa_icon"):
        assert requests.get(f"{url}/{path}", timeout=10).status_code == 404, path


def test_streams_are_not_buffered_by_proxies(url):
    for path in ("queue/data?session_hash=x", "heartbeat/x"):
        with requests.get(f"{url}/gradio_api/{path}", stream=True, timeout=10) as stream:
            assert stream.headers["X-Accel-Buffering"] == "no", path
            assert stream.headers["Cache-Control"] == "no-cache", path


def test_responses_are_neither_sniffed_nor_readable(url):
    for path in ("/", "/config", "/theme.css"):
        response = requests.get(url + path, headers={"Origin": url}, timeout=10)
        assert response.ok
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "same-origin"
        assert not [name for name in response.headers if name.startswith("Access-Control-")]
    assert "form-action 'none'" in response.headers["Content-Security-Policy"]
    assert "frame-ancestors" not in response.headers["Content-Security-Policy"]


# -- files -----------------------------------------------------------------------------------------


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def upload(url: str, session: requests.Session | None = None) -> requests.Response:
    files = {"files": ("a.txt", b"text")}
    return (session or requests).post(url + UPLOAD, files=files, timeout=30)


def test_broken_off_upload_leaves_one_line(app, url):
    folder = Path(upload(url).json()[0]).parent.parent
    logged = len(app.output)
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="b.txt"\r\n\r\n'
    )
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=10) as connection:
            connection.sendall(head.encode() + b"y" * 999)
            wait_for(lambda: len(files_in(folder)) == 2, 10, "the upload to begin")
        wait_for(lambda: files_in(folder) == ["a.txt"], 10, "the upload to be cleaned up")
    assert app.output[logged:].count("\n") <= 3


def test_broken_off_requests_log_one_line_each(app, url):
    logged = len(app.output)
    paths = (JOIN, "/gradio_api/run/chat", "/gradio_api/mcp/")
    for path in paths:
        with socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
            connection.sendall(head.encode())
    requests.get(f"{url}/healthz", timeout=10)
    time.sleep(0.2)
    assert app.output[logged:].count("\n") <= len(paths), app.output[logged:]
    assert "Traceback" not in app.output


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=5-2", "bytes=0-0,1-1"])
def test_file_response_has_no_request_headers(url, value):
    file = f"{url}/gradio_api/file={upload(url).json()[0]}"
    headers = {"Range": value, "Cookie": "x=MARKED", "X-Secret": "MARKED"}
    response = requests.get(file, headers=headers, timeout=10)
    assert (response.status_code, response.text) == (200, "text")
    assert "MARKED" not in str(response.headers)
    assert response.headers["Content-Security-Policy"].endswith("sandbox")


def test_server_downloads_nothing_for_any_event(app, url):
    requested = []

    class Site(QuietHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.reply(200, b"MARKED" * 9, "image/png")

    with serving(Site) as site:
        path = site.url.replace("127.0.0.1", "files.example")
        file = {"path": f"{path}/a.png", "url": f"{path}/b.png", "orig_name": "x.png"}
        file |= {"meta": {"_type": "gradio.FileData"}}
        message = {"role": "user", "content": [{"type": "file", "file": file}]}
        for event in events_of(url):
            for value in (file, [message], {"text": "Hi", "files": [file]}, [file]):
                body = {
                    "data": [value] * len(event["inputs"]),
                    "fn_index": event["id"],
                    "session_hash": f"download-{next(SESSIONS)}",
                    "event_data": {"index": 0, "value": file},
                }
                answer = requests.post(f"{url}/gradio_api/run/predict", json=body, timeout=10)
                assert "TUFSS0VE" not in answer.text  # MARKED in base64
    assert requested == []


# -- sessions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(shared_page, engine) -> tuple[str, requests.Session, requests.Session]:
    """(URL of a page that requires sign-in, alice's browser, bob's)."""
    url = shared_page(engine.url, APP_USERS="alice:pw-alice,bob:pw-bob")
    sessions = []
    for name in ("alice", "bob"):
        session = requests.Session()
        form = {"username": name, "password": f"pw-{name}"}
        assert session.post(f"{url}/login", data=form, timeout=10).ok
        sessions.append(session)
    return url, *sessions


def messages_of(stream: requests.Response) -> Iterator[dict[str, Any]]:
    for line in stream.iter_lines():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_session_belongs_to_who_began_it(users):
    url, alice, bob = users
    body = {"data": HELLO, "fn_index": chat_event_of(url, alice), "session_hash": "secret"}
    event = alice.post(url + JOIN, json=body, timeout=10).json()["event_id"]
    stolen = {"session_hash": "secret", "fn_index": body["fn_index"], "event_id": event}
    for path in ("queue/data?session_hash=secret", "heartbeat/secret", f"call/chat/{event}"):
        answer = bob.get(f"{url}/gradio_api/{path}", stream=True, timeout=10)
        assert answer.status_code == 403, path
    for path in ("cancel", "queue/join", "run/predict"):
        answer = bob.post(f"{url}/gradio_api/{path}", json=body | stolen, timeout=10)
        assert answer.status_code == 403, path
    disguises = [
        json.dumps(stolen | {"x": float("nan")}).encode(),
        json.dumps(stolen).encode("utf-16"),
        json.dumps(stolen).encode("utf-8-sig"),
        json.dumps({"session_hash": "bobs"}).encode()[:-1] + b"," + json.dumps(stolen).encode()[1:],
    ]
    for disguise in disguises:
        answer = bob.post(f"{url}/gradio_api/cancel", data=disguise, headers=JSON, timeout=10)
        assert answer.status_code in (400, 403), disguise
    own = stolen | {"session_hash": "bobs"}
    assert bob.post(f"{url}/gradio_api/cancel", json=own, timeout=10).status_code == 403
    stream = alice.get(f"{url}/gradio_api/queue/data?session_hash=secret", stream=True, timeout=20)
    last = [message for message in messages_of(stream) if message["msg"] == "process_completed"]
    assert last[-1]["output"]["data"] == ["abc"]


def test_call_belongs_to_who_began_it(users):
    url, alice, bob = users
    call = f"{url}/gradio_api/call/chat"
    event = alice.post(call, json={"data": HELLO}, timeout=10).json()["event_id"]
    assert bob.get(f"{call}/{event}", timeout=10).status_code == 403
    assert "abc" in alice.get(f"{call}/{event}", timeout=20).text


def test_user_has_a_quota_for_files(users):
    url, alice, bob = users
    cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in bob.cookies)
    head = {"Cookie": cookie, "Content_Type": "multipart/form-data; boundary=x"}
    size = {"Content_Length": str(UPLOAD_LIMIT)}
    connections = []
    for _ in range(QUOTA // UPLOAD_LIMIT):
        connections.append(begin_post(url, UPLOAD, **head, **size))
    wait_for(lambda: answer_to_head(url, UPLOAD, **head, **size) == 413, 10, "the quota to be used")
    assert upload(url, alice).ok
    for connection in connections:
        connection.close()
