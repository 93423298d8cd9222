"""gateway.py in front of scripted engines, over real sockets: keys, paths, limits, faults, several engines."""

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
from support.scripted_engine import Cut, ScriptedEngine, chat_stream, event
from vllm_space import gateway, health, settings
from vllm_space.catalog import Catalog
from vllm_space.ingress import Ingress

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
MESSAGES = CHAT | {"max_tokens": 5}


@contextmanager
def api(servers: str | dict[str, str], **variables: object) -> Iterator[str]:
    """The API gateway alone, without the page, in front of running servers: its address."""
    where = {"models": servers} if isinstance(servers, dict) else {"model_url": servers}
    variables = {"api_keys": "phone:key-of-the-tests,other-key"} | variables
    config = settings.Settings(
        _env_file=None, model_api_key="engine-key-marked", **where, **variables
    )
    catalog = Catalog.of(config)
    the_gateway = gateway.Gateway(config, catalog)
    parts = {"health": health.Health(config, catalog), "gateway": the_gateway, "development": False}
    app = Starlette(
        lifespan=lambda _: the_gateway.lifespan(), middleware=[Middleware(Ingress, **parts)]
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_for(lambda: running.started, 10, "the gateway")
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    """An engine that answers everything with the same JSON."""
    with ScriptedEngine(lambda path, body: (200, {"said": "hello"})).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine) -> Iterator[str]:
    with api(engine.url) as url:
        yield url


@pytest.fixture(autouse=True)
def nothing_asked_yet(engine):
    engine.asked.clear()
    engine.requests.clear()


def post(
    url: str, path: str = "/v1/chat/completions", body: object = CHAT, **options
) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body)
    headers = KEY | {"Content-Type": "application/json"} | options.pop("headers", {})
    return requests.post(url + path, data=data, headers=headers, timeout=20, **options)


# -- keys ----------------------------------------------------------------------------------------------------


def test_without_keys_the_api_is_closed_and_health_is_open(engine):
    with api(engine.url, api_keys="") as url:
        for path in [*gateway.ALLOWED, "/v1", "/v1/x"]:
            answer = post(url, path)
            assert answer.status_code == 404
            assert "API_KEYS" in answer.json()["error"]["message"]
        assert engine.asked == []
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
def test_a_key_opens_and_nothing_else_does(url, engine, headers, status):
    answer = requests.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers, timeout=5)
    assert answer.status_code == status
    assert len(engine.asked) == (status == 200)
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_engine_gets_its_own_key_and_neither_the_clients_nor_its_cookies(url, engine):
    post(
        url,
        headers={"Cookie": "session=marked", "X-API-Key": "marked", "X-Data-Parallel-Rank": "1"},
    )
    _, headers, _ = engine.requests[0]
    assert headers["Authorization"] == "Bearer engine-key-marked"
    assert "marked" not in str(headers).replace("engine-key-marked", "")
    assert "X-Data-Parallel-Rank" not in headers


def test_each_keys_requests_are_counted_and_its_name_is_in_the_log(engine, caplog):
    caplog.set_level("INFO")
    config = settings.Settings(_env_file=None, model_url=engine.url, api_keys="phone:one,two")
    assert gateway.Gateway(config, Catalog.of(config)).counts == {"phone": {}, "key 2": {}}
    with api(engine.url) as url:
        post(url)
    assert "POST /v1/chat/completions by phone" in caplog.text
    assert "key-of-the-tests" not in caplog.text


# -- paths ---------------------------------------------------------------------------------------------------


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
def test_no_spelling_of_a_path_opens_anything(url, engine, method, target):
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection._validate_path = lambda path: None
    connection.putrequest(method, target, skip_accept_encoding=True)
    connection.putheader("Authorization", KEY["Authorization"])
    connection.putheader("Content-Length", "2")
    connection.endheaders(b"{}")
    assert connection.getresponse().status in (400, 404, 405)
    assert engine.asked == []


@pytest.mark.parametrize("path", gateway.ALLOWED)
def test_each_path_takes_its_one_method(url, engine, path):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"):
        if method != gateway.ALLOWED[path]:
            answer = requests.request(method, url + path, headers=KEY, timeout=5)
            assert answer.status_code == 405, method
            assert answer.headers["Allow"] == gateway.ALLOWED[path]
    assert engine.asked == []


# -- what passes ---------------------------------------------------------------------------------------------


def test_request_and_answer_pass_byte_for_byte():
    raw = '{ "model":"scripted" , "x": 1.0e0, "é": "\\u00e9\\ud83d\\ude00", "messages": [] }\n'.encode()
    said = '{"b":1,  "a": "ü"}\n'
    with ScriptedEngine(lambda path, body: (418, said)).running() as engine, api(engine.url) as url:
        answer = post(url, "/v1/messages?beta=true", raw, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.content) == (418, said.encode())
    assert answer.headers["Content-Type"] == "text/plain"
    path, headers, body = engine.requests[0]
    assert path == "/v1/messages?beta=true"
    assert int(headers["Content-Length"]) == len(raw)
    assert headers["x-request-id"] == "mine"
    assert body == json.loads(raw)


def test_a_stream_arrives_as_it_is_made():
    events, arrived = list(chat_stream(*"abcde")), threading.Semaphore(0)

    def script(path, body):
        for made in events:
            yield made
            assert arrived.acquire(timeout=5)  # the next is made only when this one has arrived

    with (
        ScriptedEngine(script).running() as engine,
        api(engine.url) as url,
        post(url, stream=True) as answer,
    ):
        lines = []
        for line in filter(None, answer.iter_lines(chunk_size=1)):
            lines.append(line)
            arrived.release()
    assert lines == [made.strip() for made in events]


def test_a_client_that_leaves_is_felt_by_the_engine_at_once():
    endless = ScriptedEngine(lambda path, body: chat_stream(*["x"] * 500, every=0.01))
    with endless.running(), api(endless.url) as url:
        with post(url, stream=True) as answer:
            next(answer.iter_content(10))
        assert endless.left.wait(1)


# -- limits --------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_nobody_gets_more_tokens_than_the_limit(engine, limited, path, body):
    answer = post(limited, path, body)
    assert answer.status_code == 400
    assert "ask for at most 100" in answer.json()["error"]["message"]
    assert engine.requests == []


@pytest.fixture(scope="module")
def limited(engine) -> Iterator[str]:
    with api(engine.url, max_tokens_limit="100", max_tokens="10") as url:
        yield url


@pytest.mark.parametrize(
    "body", [b'{"max_tokens": 100}', b'{"max_tokens": null}', b'{"max_tokens": [200]}', b"{}"]
)
def test_what_is_within_the_limit_or_no_number_is_for_the_engine_to_judge(engine, limited, body):
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
def test_what_cannot_be_read_is_not_passed_on(engine, url, body):
    assert post(url, body=body).status_code == 400
    assert engine.requests == []


def test_a_body_that_is_too_large_is_refused_told_or_not(engine, url):
    def pieces():
        for _ in range(gateway.BODY_LIMIT // 2**20 + 1):
            yield b"x" * 2**20

    told = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    told.putrequest("POST", "/v1/messages")
    told.putheader("X-API-Key", "other-key")
    told.putheader("Content-Length", str(gateway.BODY_LIMIT + 1))
    told.endheaders()
    answer = told.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["type"] == "request_too_large"
    assert (
        requests.post(f"{url}/v1/responses", data=pieces(), headers=KEY, timeout=20).status_code
        == 413
    )
    assert engine.asked == []


def test_each_key_may_make_so_many_requests_a_minute(engine):
    with api(engine.url, api_rate_limit="3") as url:
        assert [post(url).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = post(url)
        assert 50 < int(refused.headers["Retry-After"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert post(url, headers={"Authorization": "Bearer other-key"}).status_code == 200
        client = anthropic.Anthropic(base_url=url, api_key="key-of-the-tests", max_retries=0)
        with pytest.raises(anthropic.RateLimitError, match="3 requests a minute"):
            client.messages.create(**MESSAGES)
    assert len(engine.requests) == 4


# -- an engine that fails --------------------------------------------------------------------------------------


def clients(url: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    key = API_KEY
    return (
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0),
        anthropic.Anthropic(base_url=url, api_key=key, max_retries=0),
    )


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        pytest.param(
            lambda p, b: (401, {"error": "bad key engine-key-marked"}),
            502,
            "MODEL_API_KEY",
            id="wrong key",
        ),
        pytest.param(
            lambda p, b: (503, {"error": {"message": "loading"}}), 503, "loading", id="not ready"
        ),
        pytest.param(lambda p, b: time.sleep(2) or (200, {}), 504, "REQUEST_TIMEOUT", id="silent"),
        pytest.param(None, 503, "cannot be reached", id="down"),
    ],
)
def test_an_engine_that_fails_is_a_json_error_that_tells_to_come_back(script, status, says):
    failing = ScriptedEngine(script)
    with (
        failing.running(),
        api(failing.url if script else "http://127.0.0.1:9", request_timeout=1) as url,
    ):
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = post(url, path)
            assert answer.status_code == status
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.headers["Retry-After"] == "5"
            assert says in answer.text
            assert "marked" not in answer.text
        chat, messages = clients(url)
        with pytest.raises(openai.InternalServerError, match=says):
            chat.chat.completions.create(**CHAT)
        with pytest.raises(anthropic.InternalServerError, match=says):
            messages.messages.create(**MESSAGES)


@pytest.mark.parametrize(
    ("status", "becomes"), [(502, 503), (503, 503), (500, 502), (200, 502), (404, 502), (307, 502)]
)
def test_a_web_page_or_a_redirect_is_never_passed_on(status, becomes):
    page = ScriptedEngine(
        lambda path, body: (status, "<html>nginx</html>"), text_type="text/html; charset=utf-8"
    )
    with page.running(), api(page.url) as url:
        answer = post(url, allow_redirects=False)
    assert answer.status_code == becomes
    assert answer.json()["error"]["message"].endswith(".")
    assert "html" not in answer.text


def test_the_right_class_of_error_is_raised(url):
    chat, messages = clients(url)
    with pytest.raises(openai.AuthenticationError):
        chat.with_options(api_key="x").models.list()
    with pytest.raises(anthropic.AuthenticationError):
        messages.with_options(api_key="x").messages.create(**MESSAGES)
    with pytest.raises(openai.BadRequestError, match="at most 4096"):
        chat.chat.completions.create(**CHAT, max_tokens=5000)
    with pytest.raises(anthropic.BadRequestError, match="at most 4096"):
        messages.messages.create(**MESSAGES | {"max_tokens": 5000})
    with pytest.raises(openai.NotFoundError):
        chat.files.list()


def test_a_kept_connection_that_was_closing_is_no_failure():
    def script(path, body):
        if len(closing.requests) == 2:
            raise Cut
        return 200, {"request": len(closing.requests)}

    closing = ScriptedEngine(script)
    with closing.running(), api(closing.url) as url:
        assert [post(url).json()["request"] for _ in range(3)] == [1, 3, 4]


def test_an_engine_that_hangs_up_on_every_request_is_down():
    def script(path, body):
        raise Cut

    rude = ScriptedEngine(script)
    with rude.running(), api(rude.url) as url:
        assert post(url).status_code == 503
    assert len(rude.requests) == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_that_breaks_off_says_so(path):
    def script(path, body):
        yield event(choices=[{"index": 0, "delta": {"content": "partial"}, "finish_reason": None}])
        raise Cut

    with ScriptedEngine(script).running() as engine, api(engine.url) as url:
        events = post(url, path).text.split("\n\n")
    assert "partial" in events[0]
    assert "cut off" in events[1]
    assert events[1].startswith("event: error\ndata: " if path == "/v1/messages" else "data: ")
    assert events[2:] == [""]


def test_a_stream_that_breaks_off_within_an_event_ends_the_connection():
    def script(path, body):
        yield b'data: {"choices": [{"del'
        raise Cut

    breaking = ScriptedEngine(script)
    with (
        breaking.running(),
        api(breaking.url) as url,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        post(url)


def test_the_legacy_server_has_no_openai_api():
    def script(path, body):
        return 404, {"detail": "Not Found"}

    with (
        ScriptedEngine(script, models=None).running() as engine,
        api(f"{engine.url}/generate") as url,
    ):
        answer = post(url)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "legacy_server"


def test_without_an_engine_that_is_what_it_says():
    with api({}) as url:
        for path, method in gateway.ALLOWED.items():
            answer = requests.request(method, url + path, headers=KEY, json=CHAT, timeout=5)
            assert answer.status_code == 503, path
            assert "There is no engine" in answer.text
        assert "There is no engine" in requests.get(f"{url}/healthz", timeout=5).json()["reason"]


# -- health --------------------------------------------------------------------------------------------------


def test_however_many_ask_for_health_the_engine_is_asked_once_a_second(url, engine):
    time.sleep(health.FRESH)
    engine.asked.clear()
    began = time.monotonic()
    for _ in range(100):
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
    assert len(engine.asked) <= 1 + (time.monotonic() - began) / health.FRESH


def test_health_is_503_with_the_reason_when_no_engine_answers():
    with api({"a": "http://127.0.0.1:9", "b": "http://127.0.0.1:9"}) as url:
        answer = requests.get(f"{url}/healthz", timeout=5)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["reason"]


# -- several engines -------------------------------------------------------------------------------------------


def naming(name: str):
    """An engine that says its own name and the model it was asked for."""
    return lambda path, body: (200, {"engine": name, "model": body.get("model")})


def test_each_request_goes_to_the_engine_that_has_its_model():
    one = ScriptedEngine(naming("one"), models=["big", "shared"])
    two = ScriptedEngine(naming("two"), models=["small", "shared"])
    old = ScriptedEngine(naming("old"), models=None)
    with one.running(), two.running(), old.running(), ExitStack() as stack:
        url = stack.enter_context(
            api({"fast": one.url, "slow": f"{two.url}/v1", "old": f"{old.url}/generate"})
        )
        listed = requests.get(f"{url}/v1/models", headers=KEY, timeout=5).json()
        assert [model["id"] for model in listed["data"]] == [
            "big",
            "shared (fast)",
            "small",
            "shared (slow)",
        ]

        def ask(model: str | None) -> dict:
            return post(url, body=CHAT | {"model": model}).json()

        assert ask("big") == {"engine": "one", "model": "big"}
        assert ask("small") == {"engine": "two", "model": "small"}
        assert ask("shared (slow)") == {"engine": "two", "model": "shared"}
        assert ask("shared (fast)") == {"engine": "one", "model": "shared"}
        assert ask("shared") == {"engine": "one", "model": "shared"}
        assert ask("small (slow)") == {"engine": "two", "model": "small"}
        assert ask(None) == {"engine": "one", "model": None}
        assert ask("none")["error"]["code"] == "model_not_found"
        assert ask("old")["error"]["code"] == "legacy_server"
    assert old.requests == []


def test_one_engine_down_leaves_the_others_and_its_models_are_to_come_back():
    up = ScriptedEngine(naming("up"), models=["up"])
    with up.running(), api({"up": up.url, "off": "http://127.0.0.1:9"}) as url:
        assert post(url, body=CHAT | {"model": "up"}).json()["engine"] == "up"
        gone = post(url, body=CHAT | {"model": "gone"})
        assert gone.status_code == 503
        assert gone.headers["Retry-After"]
        assert "off" in gone.json()["error"]["message"]
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
