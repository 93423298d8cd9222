"""The API gateway in front of scripted engines: keys, paths, limits, failures, several engines."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anthropic
import openai
import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from support.programs import API_KEY, KEY, wait_for
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream
from vllm_space import health
from vllm_space.catalog import Catalog
from vllm_space.gateway import BODY_LIMIT, ENDPOINTS, Gateway
from vllm_space.ingress import Ingress
from vllm_space.settings import Settings

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
MESSAGES = CHAT | {"max_tokens": 5}
CHAT_PATH = "/v1/chat/completions"
DOWN = "http://127.0.0.1:9"


@contextmanager
def serving(servers: str | dict[str, str], **variables: object) -> Iterator[str]:
    """Run the gateway without the page, in front of running servers; yields its URL."""
    source = {"models": servers} if isinstance(servers, dict) else {"model_url": servers}
    variables = {"api_keys": "phone:key-of-the-tests,other-key"} | variables
    config = Settings(_env_file=None, model_api_key="engine-key-marked", **source, **variables)
    catalog = Catalog.of(config)
    gateway = Gateway(config, catalog)
    ingress = Middleware(
        Ingress, health=health.Health(config, catalog), gateway=gateway, development=False
    )
    app = Starlette(lifespan=lambda _: gateway.lifespan(), middleware=[ingress])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started, 10, "the gateway")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    """An engine that answers everything with the same JSON."""
    with ScriptedEngine(lambda path, body: (200, {"text": "hello"})).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine) -> Iterator[str]:
    with serving(engine.url) as url:
        yield url


@pytest.fixture(autouse=True)
def forget_requests(engine):
    engine.request_lines.clear()
    engine.requests.clear()


def post(
    url: str, path: str = CHAT_PATH, body: object = CHAT, headers: dict | None = None, **options
) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body)
    headers = KEY | {"Content-Type": "application/json"} | (headers or {})
    return requests.post(url + path, data=data, headers=headers, timeout=20, **options)


# -- keys ----------------------------------------------------------------------------------


def test_api_is_disabled_without_keys(engine):
    with serving(engine.url, api_keys="") as url:
        for path in [*ENDPOINTS, "/v1", "/v1/x"]:
            response = post(url, path)
            assert response.status_code == 404
            assert "API_KEYS" in response.json()["error"]["message"]
        assert engine.request_lines == []
        assert requests.get(f"{url}/healthz", timeout=5).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer key-of-the-tests"}, 200),
        ({"Authorization": "bearer  other-key "}, 200),
        ({"X-API-Key": "key-of-the-tests"}, 200),
        ({"Authorization": "Bearer hf_token_of_a_private_space", "X-API-Key": "other-key"}, 200),
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer key-of-the-test"}, 401),
        ({"Authorization": "Bearer phone:key-of-the-tests"}, 401),
        ({"Authorization": "Bearer phone"}, 401),
        ({"Authorization": "Bearer engine-key-marked"}, 401),
        ({"Authorization": "key-of-the-tests"}, 401),
        ({"Authorization": "Basic key-of-the-tests"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"Cookie": "key-of-the-tests"}, 401),
    ],
)
def test_only_a_valid_key_is_accepted(url, engine, headers, status):
    response = requests.post(url + CHAT_PATH, json=CHAT, headers=headers, timeout=5)
    assert response.status_code == status
    assert len(engine.request_lines) == (status == 200)
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_client_secrets_are_not_forwarded(url, engine):
    private = {"Cookie": "session=marked", "X-API-Key": "marked", "X-Data-Parallel-Rank": "1"}
    post(url, headers=private)
    _, headers, _ = engine.requests[0]
    assert headers["Authorization"] == "Bearer engine-key-marked"
    assert "marked" not in str(headers).replace("engine-key-marked", "")
    assert "X-Data-Parallel-Rank" not in headers


def test_requests_are_counted_by_key_name(engine, caplog):
    caplog.set_level("INFO")
    config = Settings(_env_file=None, model_url=engine.url, api_keys="phone:one,two")
    assert Gateway(config, Catalog.of(config)).counts == {"phone": {}, "key 2": {}}
    with serving(engine.url) as url:
        post(url)
    assert "POST /v1/chat/completions by phone" in caplog.text
    assert "key-of-the-tests" not in caplog.text


# -- paths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v1",
        "/v1/",
        "/v1//models",
        "//v1/models",
        "/v1/models/",
        "/v1/./models",
        "/v1/../v1/models",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1/..%2fmetrics",
        "/v1%2Fmodels",
        "/v1/%6dodels",
        "/v1/models%00",
        "/v1/models%20",
        "/v1/models;a=b",
        "/V1/models",
        "/v1/MODELS",
        "/./v1/models",
        "/../metrics",
        "/metrics",
        "/tokenize/../metrics",
        "/v1/load_lora_adapter",
        "/sleep",
        "/v1\\models",
        "/v1/models%3Fx",
        "/v1/models%23",
        "/%76%31/models",
        "http://engine/metrics",
        "http://127.0.0.1/v1/../metrics",
        "*",
        "/v1/models/scripted",
        "/v1/responses/x/cancel",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_unlisted_paths_are_blocked(url, engine, method, target):
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection._validate_path = lambda path: None
    connection.putrequest(method, target, skip_accept_encoding=True)
    connection.putheader("Authorization", KEY["Authorization"])
    connection.putheader("Content-Length", "2")
    connection.endheaders(b"{}")
    assert connection.getresponse().status in (400, 404, 405)
    assert engine.request_lines == []


@pytest.mark.parametrize("path", ENDPOINTS)
def test_each_path_accepts_one_method(url, engine, path):
    for method in "GET POST PUT PATCH DELETE HEAD OPTIONS TRACE PROPFIND".split():
        if method != ENDPOINTS[path]:
            response = requests.request(method, url + path, headers=KEY, timeout=5)
            assert response.status_code == 405, method
            assert response.headers["Allow"] == ENDPOINTS[path]
    assert engine.request_lines == []


# -- relaying ------------------------------------------------------------------------------


def test_bodies_pass_byte_for_byte():
    sent = '{ "model":"scripted" , "x": 1.0e0, "é": "\\u00e9\\ud83d\\ude00", "y": [] }\n'.encode()
    received = '{"b":1,  "a": "ü"}\n'
    teapot = ScriptedEngine(lambda path, body: (418, received))
    with teapot.running(), serving(teapot.url) as url:
        response = post(url, "/v1/messages?beta=true", sent, {"X-Request-ID": "mine"})
    assert (response.status_code, response.content) == (418, received.encode())
    assert response.headers["Content-Type"] == "text/plain"
    path, headers, body = teapot.requests[0]
    assert path == "/v1/messages?beta=true"
    assert int(headers["Content-Length"]) == len(sent)
    assert headers["x-request-id"] == "mine"
    assert body == json.loads(sent)


def test_stream_is_not_buffered():
    events, arrived = list(chat_stream(*"abcde")), threading.Semaphore(0)

    def script(path, body):
        for event in events:
            yield event
            assert arrived.acquire(timeout=5)  # send the next only when this one has arrived

    with (
        ScriptedEngine(script).running() as engine,
        serving(engine.url) as url,
        post(url, stream=True) as response,
    ):
        lines = []
        for line in filter(None, response.iter_lines(chunk_size=1)):
            lines.append(line)
            arrived.release()
    assert lines == [event.strip() for event in events]


def test_disconnect_reaches_the_engine():
    endless = ScriptedEngine(lambda path, body: chat_stream(*["x"] * 500, every=0.01))
    with endless.running(), serving(endless.url) as url:
        with post(url, stream=True) as response:
            next(response.iter_content(10))
        assert endless.client_left.wait(1)


# -- limits --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(engine) -> Iterator[str]:
    with serving(engine.url, max_tokens_limit="100", max_tokens="10") as url:
        yield url


@pytest.mark.parametrize(
    "body",
    [
        b'{"max_tokens": 101}',
        b'{"max_completion_tokens": 101}',
        b'{"max_output_tokens": 101}',
        b'{"max_tokens": 101.0}',
        b'{"max_tokens": 1.01e2}',
        b'{"max_tokens": "101"}',
        b'{"max_tokens": " 1_01 "}',
        b'{"max_tokens": Infinity}',
        b'{"max_tokens": 1' + b"0" * 400 + b"}",
        '{"max_tokens": 101}'.encode("utf-16"),
        b'{"max_tokens": 1, "max_completion_tokens": 101}',
        b'{"m\\u0061x_tokens": 101}',
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_max_tokens_limit_is_enforced(engine, limited, path, body):
    response = post(limited, path, body)
    assert response.status_code == 400
    assert "at most 100" in response.json()["error"]["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    "body", [b'{"max_tokens": 100}', b'{"max_tokens": null}', b'{"max_tokens": [200]}', b"{}"]
)
def test_other_max_tokens_are_forwarded(engine, limited, body):
    assert post(limited, body=body).status_code == 200
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"max_tokens": 1, "max_tokens": 2}',
        b'{"a": \xff}',
        b'"x"',
    ],
)
def test_invalid_json_is_rejected(engine, url, body):
    assert post(url, body=body).status_code == 400
    assert engine.requests == []


def test_oversized_bodies_are_rejected(engine, url):
    declared = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    declared.putrequest("POST", "/v1/messages")
    declared.putheader("X-API-Key", "other-key")
    declared.putheader("Content-Length", str(BODY_LIMIT + 1))
    declared.endheaders()
    response = declared.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["type"] == "request_too_large"

    chunks = (b"x" * 2**20 for _ in range(BODY_LIMIT // 2**20 + 1))
    chunked = requests.post(f"{url}/v1/responses", data=chunks, headers=KEY, timeout=20)
    assert chunked.status_code == 413
    assert engine.request_lines == []


def test_rate_limit_applies_per_key(engine):
    with serving(engine.url, api_rate_limit="3") as url:
        assert [post(url).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        rejected = post(url)
        assert 50 < int(rejected.headers["Retry-After"]) <= 60
        assert rejected.json()["error"]["code"] == "rate_limit_exceeded"
        assert post(url, headers={"Authorization": "Bearer other-key"}).status_code == 200
        client = anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0)
        with pytest.raises(anthropic.RateLimitError, match="3 requests per minute"):
            client.messages.create(**MESSAGES)
    assert len(engine.requests) == 4


# -- engine failures -----------------------------------------------------------------------


def clients(url: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    return (
        openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0),
        anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0),
    )


def wrong_key(path, body):
    return 401, {"error": "bad key engine-key-marked"}


def not_ready(path, body):
    return 503, {"error": {"message": "loading"}}


def silent(path, body):
    time.sleep(2)
    return 200, {}


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (wrong_key, 502, "MODEL_API_KEY"),
        (not_ready, 503, "loading"),
        (silent, 504, "REQUEST_TIMEOUT"),
        (None, 503, "cannot be reached"),
    ],
)
def test_failing_engine_is_a_json_error(script, status, message):
    failing = ScriptedEngine(script)
    with (
        failing.running(),
        serving(failing.url if script else DOWN, request_timeout=1) as url,
    ):
        for path in (CHAT_PATH, "/v1/messages"):
            response = post(url, path)
            assert response.status_code == status
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["Retry-After"] == "5"
            assert message in response.text
            assert "marked" not in response.text
        openai_client, anthropic_client = clients(url)
        with pytest.raises(openai.InternalServerError, match=message):
            openai_client.chat.completions.create(**CHAT)
        with pytest.raises(anthropic.InternalServerError, match=message):
            anthropic_client.messages.create(**MESSAGES)


@pytest.mark.parametrize(
    ("status", "expected"), [(502, 503), (503, 503), (500, 502), (200, 502), (404, 502), (307, 502)]
)
def test_html_and_redirects_are_not_relayed(status, expected):
    html = ScriptedEngine(
        lambda path, body: (status, "<html>nginx</html>"), text_type="text/html; charset=utf-8"
    )
    with html.running(), serving(html.url) as url:
        response = post(url, allow_redirects=False)
    assert response.status_code == expected
    assert response.json()["error"]["message"].endswith(".")
    assert "html" not in response.text


def test_clients_raise_the_right_error(url):
    openai_client, anthropic_client = clients(url)
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="x").models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="x").messages.create(**MESSAGES)
    with pytest.raises(openai.BadRequestError, match="at most 4096"):
        openai_client.chat.completions.create(**CHAT, max_tokens=5000)
    with pytest.raises(anthropic.BadRequestError, match="at most 4096"):
        anthropic_client.messages.create(**MESSAGES | {"max_tokens": 5000})
    with pytest.raises(openai.NotFoundError):
        openai_client.files.list()


def test_stale_connection_is_retried():
    def script(path, body):
        if len(engine.requests) == 2:
            raise Cut
        return 200, {"request": len(engine.requests)}

    with ScriptedEngine(script).running() as engine, serving(engine.url) as url:
        assert [post(url).json()["request"] for _ in range(3)] == [1, 3, 4]


def test_retries_end_after_three_tries():
    def script(path, body):
        raise Cut

    with ScriptedEngine(script).running() as engine, serving(engine.url) as url:
        assert post(url).status_code == 503
    assert len(engine.requests) == 3


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/messages"])
def test_broken_stream_ends_with_an_error(path):
    def script(path, body):
        yield chat_event(content="partial")
        raise Cut

    with ScriptedEngine(script).running() as engine, serving(engine.url) as url:
        events = post(url, path).text.split("\n\n")
    assert "partial" in events[0]
    assert "cut off" in events[1]
    assert events[1].startswith("event: error\ndata: " if path == "/v1/messages" else "data: ")
    assert events[2:] == [""]


def test_break_within_an_event_disconnects():
    def script(path, body):
        yield b'data: {"choices": [{"del'
        raise Cut

    with (
        ScriptedEngine(script).running() as engine,
        serving(engine.url) as url,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        post(url)


def test_legacy_server_has_no_openai_api():
    legacy = ScriptedEngine(lambda path, body: (404, {"detail": "Not Found"}), models=None)
    with legacy.running(), serving(f"{legacy.url}/generate") as url:
        response = post(url)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "legacy_server"


def test_missing_engine_is_reported():
    with serving({}) as url:
        for path, method in ENDPOINTS.items():
            response = requests.request(method, url + path, headers=KEY, json=CHAT, timeout=5)
            assert response.status_code == 503, path
            assert "No model is running" in response.text
        assert "No model is running" in requests.get(f"{url}/healthz", timeout=5).json()["reason"]


# -- health --------------------------------------------------------------------------------


def test_health_checks_are_cached(url, engine):
    time.sleep(health.MAX_AGE)
    engine.request_lines.clear()
    started_at = time.monotonic()
    for _ in range(100):
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
    assert len(engine.request_lines) <= 1 + (time.monotonic() - started_at) / health.MAX_AGE


def test_health_is_503_when_all_are_down():
    with serving({"a": DOWN, "b": DOWN}) as url:
        response = requests.get(f"{url}/healthz", timeout=5)
    assert response.status_code == 503
    assert "cannot be reached" in response.json()["reason"]


# -- several engines -----------------------------------------------------------------------


def named_engine(name: str, models: list[str] | None) -> ScriptedEngine:
    """An engine that answers with its own name and the requested model."""
    return ScriptedEngine(
        lambda path, body: (200, {"engine": name, "model": body.get("model")}), models=models
    )


def test_requests_are_routed_by_model():
    fast = named_engine("fast", ["big", "shared"])
    slow = named_engine("slow", ["small", "shared"])
    old = named_engine("old", None)
    with fast.running(), slow.running(), old.running(), ExitStack() as stack:
        servers = {"fast": fast.url, "slow": f"{slow.url}/v1", "old": f"{old.url}/generate"}
        url = stack.enter_context(serving(servers))
        models = requests.get(f"{url}/v1/models", headers=KEY, timeout=5).json()["data"]
        ids = [model["id"] for model in models]
        assert ids == ["big", "shared (fast)", "small", "shared (slow)"]

        def ask(model: str | None) -> dict:
            return post(url, body=CHAT | {"model": model}).json()

        assert ask("big") == {"engine": "fast", "model": "big"}
        assert ask("small") == {"engine": "slow", "model": "small"}
        assert ask("shared (slow)") == {"engine": "slow", "model": "shared"}
        assert ask("shared (fast)") == {"engine": "fast", "model": "shared"}
        assert ask("shared") == {"engine": "fast", "model": "shared"}
        assert ask("small (slow)") == {"engine": "slow", "model": "small"}
        assert ask(None) == {"engine": "fast", "model": None}
        assert ask("none")["error"]["code"] == "model_not_found"
        assert ask("old")["error"]["code"] == "legacy_server"
    assert old.requests == []


def test_one_engine_down_spares_the_others():
    up = named_engine("up", ["up"])
    with up.running(), serving({"up": up.url, "off": DOWN}) as url:
        assert post(url, body=CHAT | {"model": "up"}).json()["engine"] == "up"
        missing = post(url, body=CHAT | {"model": "gone"})
        assert missing.status_code == 503
        assert missing.headers["Retry-After"]
        assert "off" in missing.json()["error"]["message"]
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
