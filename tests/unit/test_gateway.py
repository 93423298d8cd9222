"""The API gateway in front of scripted engines: keys, paths, limits, failures, several engines."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import anthropic
import openai
import pytest
import requests

from support.gateway import CHAT, CHAT_PATH, post, serving
from support.http_server import QuietHandler
from support.http_server import serving as http_serving
from support.programs import API_KEY, KEY, wait_for
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream
from vllm_space import errors, health
from vllm_space.api_paths import ENDPOINTS
from vllm_space.api_request import BODY_LIMIT, MAX_TOKENS_FIELDS, TOKEN_FIELDS, ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.gateway import Gateway
from vllm_space.key_limits import LARGE
from vllm_space.settings import Settings
from vllm_space.text_limit import ALWAYS_ALLOWED

MESSAGES = CHAT | {"max_tokens": 5}
DOWN = "http://127.0.0.1:9"
ALLOW_ORIGIN = "Access-Control-Allow-Origin"


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    """An engine that answers everything with the same JSON."""
    with ScriptedEngine(lambda path, body: (200, {"text": "hello"})).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine) -> Iterator[str]:
    with serving(f"{engine.url}/v1") as url:  # an address that leaves nothing to find out
        yield url


@pytest.fixture(autouse=True)
def forget_requests(engine):
    engine.request_lines.clear()
    engine.requests.clear()


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
        "/v1/models/models",
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
    received = '{"error": {"type":"teapot",  "message": "ü"}, "type": "error"}\n'
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


HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("body", "received"),
    [
        (b'{"max_tokens": 101}', {"max_tokens": 100}),
        (b'{"max_tokens": 101.0}', {"max_tokens": 100}),
        (b'{"max_tokens": 1.01e2}', {"max_tokens": 100}),
        (b'{"max_tokens": "101"}', {"max_tokens": 100}),
        (b'{"max_tokens": " 1_01 "}', {"max_tokens": 100}),
        (b'{"max_tokens": 9007199254740992}', {"max_tokens": 100}),
        ('{"max_tokens": 101}'.encode("utf-16"), {"max_tokens": 100}),
        (b'{"m\\u0061x_tokens": 101}', {"max_tokens": 100}),
        (b'{"max_tokens": 1, "max_completion_tokens": 101}', {"max_completion_tokens": 100}),
        (b'{"max_tokens": 1, "max_output_tokens": 300}', {"max_output_tokens": 100}),
        (b'{"max_tokens": 1, "n_predict": 300, "max_new_tokens": "300"}', {"n_predict": 100}),
        (b"{}", {}),
        (b'{"max_tokens": null, "max_output_tokens": null}', {}),
        (b'{"n_predict": 5}', {"n_predict": 5}),
    ],
)
@pytest.mark.parametrize("path", MAX_TOKENS_FIELDS)
def test_max_tokens_limit_caps_answers(engine, limited, path, body, received):
    """Whatever a request names, no field is above the limit, and the engine's own field is set."""
    assert post(limited, path, body).status_code == 200
    fields = engine.requests[0][2]
    assert received.items() <= fields.items()
    limits = [float(fields[name]) for name in TOKEN_FIELDS if fields.get(name) is not None]
    assert max(limits) <= 100
    assert any(fields.get(name) is not None for name in MAX_TOKENS_FIELDS[path])


def test_smaller_answers_keep_their_body(engine, limited):
    for body in ({"max_tokens": 100}, {"max_completion_tokens": "7", "max_tokens": None}):
        post(limited, body=body)
        assert engine.requests.pop()[2] == body
    post(limited, "/tokenize", {"prompt": "x", "max_tokens": 300})
    post(limited, "/v1/embeddings", {"input": "x"})
    assert [body for _, _, body in engine.requests] == [{"input": "x"}]


def test_nothing_is_capped_by_default(engine, url):
    for body in ({"max_tokens": 32000}, {}, {"max_output_tokens": None}):
        post(url, body=body)
        assert engine.requests.pop()[2] == body


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", '"nan"', '"-inf"', "1e999", HUGE, "-1", "true", "[200]", "{}", '"x"'],
)
@pytest.mark.parametrize("name", TOKEN_FIELDS)
def test_meaningless_limits_are_rejected(engine, url, limited, name, value):
    body = f'{{"max_output_tokens": 300, "{name}": {value}}}'.encode()
    if name == "max_output_tokens":
        body = f'{{"max_tokens": 300, "{name}": {value}}}'.encode()
    for server in (url, limited):
        assert post(server, "/v1/responses", body).status_code == 400
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 129},
        {"n": "129"},
        {"n": 2, "best_of": 65.0},
        {"n": 10**400, "best_of": 1.5},
        {"n": 3, "prompt": ["x"] * 43},
        {"prompt": ["x"] * 129},
        {"prompt": [[1]] * 129},
        {"n": "nan"},
        {"n": []},
        {"use_beam_search": True},
        {"use_beam_search": "yes"},
        {"use_beam_search": "True", "n": 4},
        {"use_beam_search": 1},
        {"use_beam_search": [True]},
    ],
)
def test_multiplied_answers_are_rejected(engine, url, fields):
    for path in (CHAT_PATH, "/v1/completions"):
        response = post(url, path, {"prompt": "x", "max_tokens": 1} | fields)
        assert response.status_code == 400
        assert response.json()["error"]["message"].endswith(".")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"n": 128}),
        ("/v1/completions", {"prompt": ["x"] * 64, "n": 2, "use_beam_search": "false"}),
        ("/v1/completions", {"prompt": list(range(1000)), "n": None, "use_beam_search": None}),
        ("/v1/embeddings", {"input": ["x"] * 2048}),
    ],
)
def test_several_answers_are_forwarded(engine, url, path, fields):
    assert post(url, path, fields).status_code == 200
    assert engine.requests[0][2] == fields


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
        b'{"temperature": NaN}',
        b'{"a": [-Infinity]}',
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


@pytest.mark.parametrize("body", [b'{"a": [' + b"{}," * 5_000_000 + b"0]}", b'{"a":[],' * 600_000])
def test_many_json_values_are_rejected(engine, url, body):
    """Parsing them would take seconds, in which nobody else is answered."""
    answer: list[requests.Response] = []
    sending = threading.Thread(target=lambda: answer.append(post(url, body=body)))
    sending.start()
    slowest = 0.0
    while sending.is_alive():
        started_at = time.monotonic()
        assert requests.get(f"{url}/v1/x", headers=KEY, timeout=20).status_code == 404
        slowest = max(slowest, time.monotonic() - started_at)
    assert answer[0].status_code == 413
    assert slowest < 2
    assert engine.requests == []


def test_unfinished_bodies_time_out(engine, url, monkeypatch):
    monkeypatch.setattr("vllm_space.request_body.TIMEOUT", 0.2)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/messages")
    connection.putheader("X-API-Key", "other-key")
    connection.putheader("Content-Length", "10")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 408
    assert response.headers["Connection"] == "close"
    assert engine.requests == []


# A text of the scripted model's context, 4096 tokens, has at most 32,768 characters.
FITS, TOO_LONG = "x " * 16_000, "x " * 17_000
PICTURE = "data:image/png;base64," + "A" * 3_000_000


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (CHAT_PATH, lambda text: {"messages": [{"role": "user", "content": text}]}),
        (CHAT_PATH, lambda text: CHAT | {"tools": [{"function": {"name": "f", "x": [text]}}]}),
        (CHAT_PATH, lambda text: CHAT | {"chat_template_kwargs": {text: 1}}),
        ("/v1/completions", lambda text: {"prompt": text}),
        ("/v1/completions", lambda text: {"prompt": ["x", text]}),
        ("/v1/responses", lambda text: {"input": text}),
        ("/v1/responses", lambda text: {"input": "x", "instructions": text}),
        ("/v1/messages", lambda text: MESSAGES | {"system": [{"type": "text", "text": text}]}),
        ("/v1/messages/count_tokens", lambda text: CHAT | {"system": text}),
        ("/v1/embeddings", lambda text: {"input": [text, "x"]}),
        ("/tokenize", lambda text: {"prompt": text}),
        ("/tokenize", lambda text: {"messages": [{"role": "user", "content": text}]}),
    ],
)
def test_long_texts_are_not_forwarded(engine, url, path, text):
    engine.tokenize = lambda body: (200, {"count": 1})
    assert post(url, path, text(FITS)).status_code == 200
    forgotten = len(engine.requests)
    for long in (TOO_LONG, "x " * 2_000_000):
        response = post(url, path, text(long))
        assert response.status_code == 413
        assert "Shorten it" in response.json()["error"]["message"]
    assert len(engine.requests) == forgotten


EMPTY = [""] * 900_000
PATHS = {"temperature": "x" + "/a" * 7500}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": EMPTY}]},
        {"input": [{"role": "user", "content": EMPTY}]},
        {"structured_outputs": {"choice": EMPTY}},
        {"structured_outputs": {"choice": [str(number) for number in range(20_000)]}},
        {"response_format": {"json_schema": {"enum": list(range(20_000))}}},
        {"tools": [{"function": {"parameters": {"enum": list(range(20_000))}}}]},
        PATHS,
        {"prompt": ["/a" * 7000] * 8 + [["x"]]},
    ],
)
def test_texts_that_stop_an_engine_are_rejected(engine, url, fields):
    for path in (CHAT_PATH, "/v1/responses", "/v1/completions"):
        assert post(url, path, CHAT | fields).status_code == 413
    assert engine.requests == []


def test_ordinary_texts_and_schemas_pass(engine, url):
    schema = {"json_schema": {"enum": [f"a value {number}" for number in range(3_000)]}}
    base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7"
    for fields in (
        {"response_format": schema},  # larger than the context, of which it is no part
        {"messages": [{"role": "user", "content": base64 * 300}]},
        {"messages": [{"role": "user", "content": "/usr/local/lib/python3.12/x.py " * 900}]},
    ):
        assert post(url, CHAT_PATH, CHAT | fields).status_code == 200


@pytest.mark.parametrize("count", [b"[]", b'"x"', b"null", b"[" * 50_000, b'{"count": true}'])
def test_strange_counts_are_ignored(count):
    class Refusing(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/tokenize":
                return self.reply(200, count)
            message = "maximum context length is 4096 tokens"
            return self.reply(400, {"error": {"message": message}}, Retry_After="\x01")

        do_GET = do_POST

    with http_serving(Refusing) as server, serving(server.url) as url:
        response = post(url, CHAT_PATH, CHAT | {"max_tokens": 9999})
    assert response.status_code == 400
    assert "maximum context length" in response.text


@pytest.mark.parametrize("path", ["/detokenize", "/v1/completions", "/v1/embeddings"])
def test_long_token_ids_are_not_forwarded(engine, url, path):
    name = {"/detokenize": "tokens", "/v1/completions": "prompt", "/v1/embeddings": "input"}[path]
    assert post(url, path, {name: [5] * 4096}).status_code == 200
    assert post(url, path, {name: [5] * 5000}).status_code == 413
    assert len(engine.requests) == 1


def test_batches_are_measured_by_prompt(engine, url):
    for path, name in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        assert post(url, path, {name: [FITS] * 40}).status_code == 200
        assert post(url, path, {name: [FITS] * 70}).status_code == 413  # more than 2 MB
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (CHAT_PATH, {"type": "image_url", "image_url": {"url": PICTURE}}),
        (CHAT_PATH, {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}}),
        ("/v1/messages", {"type": "image", "source": {"type": "base64", "data": PICTURE}}),
        (
            "/v1/messages",
            {
                "type": "tool_result",
                "content": [{"type": "image", "source": {"type": "base64", "data": PICTURE}}],
            },
        ),
        ("/tokenize", {"type": "image_url", "image_url": {"url": PICTURE}}),
    ],
)
def test_images_are_not_counted_as_text(engine, url, path, part):
    engine.tokenize = lambda body: (200, {"count": 1})
    body = MESSAGES | {"messages": [{"role": "user", "content": [part]}]}
    assert post(url, path, body).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"input_schema": {"image_url": {"url": PICTURE}}}]},
        {"system": [{"type": "image", "source": {"data": PICTURE}}]},
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "input": {"url": PICTURE}}]}
            ]
        },
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {
                            "type": "tool_result",
                            "content": [{"type": "image", "source": {"data": PICTURE}}],
                        }
                    ],
                }
            ]
        },
        {"messages": [{"role": "user", "content": PICTURE}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": PICTURE}]}]},
    ],
)
def test_text_in_disguise_is_counted(engine, url, fields):
    """What a chat template would write out as text, though it looks like an image."""
    assert post(url, "/v1/messages", MESSAGES | fields).status_code == 413
    assert engine.requests == []


def test_unknown_context_limits_bytes_only(engine):
    other = ScriptedEngine(lambda path, body: (200, {}), models=[])
    with other.running(), serving(other.url) as url:
        assert post(url, "/v1/completions", {"prompt": TOO_LONG}).status_code == 200
        assert post(url, "/v1/completions", {"prompt": "\u0939" * 700_000}).status_code == 413


def test_failing_list_of_models_is_survived():
    broken = ScriptedEngine(lambda path, body: (200, {}), models=[None])
    with broken.running(), serving(broken.url) as url:
        broken.models = 5  # iterating it fails, and closes the connection
        assert post(url, "/v1/completions", {"prompt": TOO_LONG}).status_code == 200
        assert post(url, "/v1/completions", {"prompt": "x" * 2_100_000}).status_code == 413


# -- token counts --------------------------------------------------------------------------


def test_tokens_are_counted_one_at_a_time():
    """Also if the client has left: the engine goes on, and a second would wait in it."""
    begun, release = threading.Semaphore(0), threading.Event()

    def tokenize(body):
        begun.release()
        release.wait(10)
        return 200, {"count": 1}

    slow = ScriptedEngine(lambda path, body: (200, {}), tokenize=tokenize)
    with slow.running(), serving(slow.url) as url:
        for _ in range(3):  # each leaves, the second and third without having had their turn
            with pytest.raises(requests.exceptions.ReadTimeout):
                requests.post(f"{url}/tokenize", json={"prompt": "x"}, headers=KEY, timeout=0.3)
        waiting = threading.Thread(target=post, args=(url, "/detokenize", {"tokens": [1]}))
        waiting.start()
        assert begun.acquire(timeout=5)
        assert not begun.acquire(timeout=0.3)
        assert slow.requests == []
        assert post(url).status_code == 200  # answers do not wait
        release.set()
        waiting.join()
        assert [path for path, _, _ in slow.requests] == [CHAT_PATH, "/detokenize"]
        assert not begun.acquire(timeout=0.3)


def test_wait_for_token_counts_is_limited(monkeypatch):
    monkeypatch.setattr("vllm_space.upstream.COUNT_WAIT", 0.2)
    release = threading.Event()

    def tokenize(body):
        release.wait(10)
        return 200, {"count": 1}

    slow = ScriptedEngine(lambda path, body: (200, {}), tokenize=tokenize)
    with slow.running(), serving(slow.url) as url:
        first = threading.Thread(target=post, args=(url, "/tokenize", {"prompt": "x"}))
        first.start()
        wait_for(lambda: "POST /tokenize" in slow.request_lines, 5, "the first count")
        response = post(url, "/v1/messages/count_tokens", CHAT)
        release.set()
        first.join()
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json()["error"]["type"] == "overloaded_error"


# -- answers that do not fit into the context ----------------------------------------------

CONTEXT = 4096


def vllm_like(tokens: int, path: str, body: dict):
    """Answers like vLLM with a prompt of so many tokens."""
    path = path.partition("?")[0]
    if path == "/v1/messages/count_tokens":
        return 200, {"input_tokens": tokens}
    asked = max(body.get(name) or 0 for name in MAX_TOKENS_FIELDS[path])
    if asked > CONTEXT:
        message = (
            f"max_tokens={asked} cannot be greater than max_model_len=max_total_tokens={CONTEXT}. "
            "Please request fewer output tokens."
        )
    elif tokens + asked > CONTEXT or tokens >= CONTEXT:
        message = (
            f"This model's maximum context length is {CONTEXT} tokens. However, you requested "
            f"{asked} output tokens and your prompt contains at least {CONTEXT - asked + 1} input "
            "tokens. Please reduce the length of the input prompt or the number of requested "
            "output tokens."
        )
    elif body.get("stream"):
        return chat_stream("It", " fits")
    else:
        return 200, {"text": "It fits"}
    return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}


PROMPTS = {
    CHAT_PATH: CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": CHAT,
}


@pytest.mark.parametrize("asked", [4090, 16384, 32000, 128000])
@pytest.mark.parametrize("path", PROMPTS)
def test_agents_get_an_answer_that_fits(path, asked):
    """Claude Code, litellm and pydantic-ai ask for more than fits into most contexts."""
    engine = ScriptedEngine(
        lambda path, body: vllm_like(96, path, body), tokenize=lambda body: (200, {"count": 96})
    )
    body = PROMPTS[path] | {MAX_TOKENS_FIELDS[path][-1]: asked}
    with engine.running(), serving(engine.url) as url:
        assert post(url, f"{path}?beta=true", body).json() == {"text": "It fits"}
        assert post(url, path, body | {"stream": True}).text.endswith("[DONE]\n\n")
    sent = engine.requests[-1][2]
    assert sent.get(MAX_TOKENS_FIELDS[path][-1]) == (None if path == "/v1/responses" else 4000)


def test_capped_answers_fit_as_well():
    engine = ScriptedEngine(
        lambda path, body: vllm_like(96, path, body), tokenize=lambda body: (200, {"count": 96})
    )
    with engine.running(), serving(engine.url, max_tokens_limit="8000") as url:
        for path, body in PROMPTS.items():
            assert post(url, path, body).status_code == 200
    with engine.running(), serving(engine.url, max_tokens_limit="20", max_tokens="9") as url:
        post(url, body=CHAT | {"max_tokens": 32000})
    assert engine.requests[-1][2]["max_tokens"] == 20


@pytest.mark.parametrize("path", PROMPTS)
def test_prompts_that_do_not_fit_are_refused(path):
    """With the engine's own error."""
    engine = ScriptedEngine(
        lambda path, body: vllm_like(4096, path, body), tokenize=lambda body: (200, {"count": 4096})
    )
    body = PROMPTS[path] | {MAX_TOKENS_FIELDS[path][0]: 50}
    with engine.running(), serving(engine.url) as url:
        response = post(url, path, body)
        last = [body for asked, _, body in engine.requests if asked == path][-1]
        own = requests.post(engine.url + path, json=last, timeout=5)
    if path == "/v1/messages":  # where vLLM uses this format as well
        assert response.json()["error"]["message"] == own.json()["error"]["message"]
        assert response.json()["type"] == "error"
    else:
        assert response.content == own.content
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (
            "This model's maximum context length is 4096 tokens. However, you requested 8100 tokens"
            " (100 in the messages, 8000 in the completion). Please reduce the length.",
            3996,
        ),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You "
            "requested a total of 8100 tokens: 100 tokens from the input messages and 8000 tokens "
            "for the completion.",
            3996,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum "
            "context length is 4096 tokens and your request has 100 input tokens.",
            3996,
        ),
        ("The context is full.", None),
        ("temperature must be at most 2.", None),
    ],
)
def test_refusals_of_other_servers_are_read(message, sent):
    """Of servers that cannot count tokens."""

    def script(path, body):
        if body["max_tokens"] == 8000:
            return 400, {"error": {"message": message}}
        return 200, {}

    with ScriptedEngine(script).running() as engine, serving(engine.url) as url:
        response = post(url, body=CHAT | {"max_tokens": 8000})
    assert response.status_code == (200 if sent else 400)
    assert engine.requests[-1][2]["max_tokens"] == (sent or 8000)
    assert len(engine.requests) == (2 if sent else 1)


def test_refused_answers_are_asked_once_more():
    """Not again and again, and not at all if the length is not to blame."""
    refusal = 400, {"error": {"message": "maximum context length is 4096 tokens"}}
    engine = ScriptedEngine(lambda path, body: refusal, tokenize=lambda body: (200, {"count": 96}))
    with engine.running(), serving(engine.url) as url:
        assert post(url, body=CHAT | {"max_tokens": 5000}).json() == refusal[1]
        assert len(engine.requests) == 2
        assert post(url, body=CHAT | {"max_tokens": 3000}).json() == refusal[1]
        assert len(engine.requests) == 3


def test_leaving_ends_the_second_request():
    def script(path, body):
        if body["max_tokens"] == 5000:
            return 400, {"error": {"message": "maximum context length is 4096 tokens"}}
        return chat_stream(*["x"] * 500, every=0.01)

    engine = ScriptedEngine(script, tokenize=lambda body: (200, {"count": 96}))
    with engine.running(), serving(engine.url) as url:
        with post(url, body=CHAT | {"max_tokens": 5000}, stream=True) as response:
            next(response.iter_content(10))
        assert engine.client_left.wait(1)


# -- many requests -------------------------------------------------------------------------


def test_concurrency_limit_applies_per_key():
    begun, release = threading.Semaphore(0), threading.Event()

    def script(path, body):
        begun.release()
        release.wait(10)
        return 200, {}

    slow = ScriptedEngine(script)
    with slow.running(), serving(slow.url, api_max_concurrency="2") as url:
        threads = [threading.Thread(target=post, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert begun.acquire(timeout=5)
        rejected = post(url, "/v1/messages")
        assert rejected.status_code == 429
        assert rejected.headers["Retry-After"]
        assert rejected.json()["error"]["type"] == "rate_limit_error"
        assert requests.get(f"{url}/v1/models", headers=KEY, timeout=5).status_code == 200
        other = threading.Thread(
            target=post, args=(url,), kwargs={"headers": {"Authorization": "Bearer other-key"}}
        )
        other.start()
        assert begun.acquire(timeout=5)
        release.set()
        for thread in [*threads, other]:
            thread.join()
        assert post(url).status_code == 200


def test_leaving_frees_the_key_for_others():
    endless = ScriptedEngine(lambda path, body: chat_stream(*["x"] * 500, every=0.01))
    with endless.running(), serving(endless.url, api_max_concurrency="1") as url:
        unsent = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        unsent.putrequest("POST", CHAT_PATH)
        unsent.putheader("Authorization", KEY["Authorization"])
        unsent.putheader("Content-Length", "100")
        unsent.endheaders(b"{")
        wait_for(lambda: post(url).status_code == 429, 5, "the slot to be taken")
        unsent.close()

        def is_free() -> bool:
            with post(url, stream=True) as response:  # and leave
                return response.status_code == 200

        wait_for(is_free, 5, "a free slot")
        wait_for(is_free, 5, "a free slot after leaving in mid-answer")


def test_large_bodies_wait_for_their_own_key(engine, url, monkeypatch):
    """Parsing takes up to a second, during which other keys go on."""
    begun, release, parse = threading.Semaphore(0), threading.Event(), ApiRequest.parse

    def slow_parse(path, body):
        if b"slow" in body:
            begun.release()
            release.wait(10)
        return parse(path, body)

    monkeypatch.setattr(ApiRequest, "parse", slow_parse)
    large = CHAT | {"user": "x" * LARGE}
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(post, url, body=large | {"stop": "slow"}) for _ in range(2)]
        assert begun.acquire(timeout=5)
        other = post(url, body=large, headers={"Authorization": "Bearer other-key"})
        assert not begun.acquire(timeout=0.2)
        release.set()
    assert [answer.result().status_code for answer in slow] == [413, 413]
    assert other.status_code == 413  # too much text for this model


def test_bytes_of_bodies_are_limited_per_key(monkeypatch):
    monkeypatch.setattr("vllm_space.key_limits.MAX_HELD", 1000)
    begun, release = threading.Semaphore(0), threading.Event()

    def script(path, body):
        begun.release()
        release.wait(10)
        return 200, {}

    half = CHAT | {"user": "x" * 500}
    slow = ScriptedEngine(script)
    with slow.running(), serving(slow.url) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url, body=half)
        assert begun.acquire(timeout=5)
        for body in (half, iter([json.dumps(half).encode()])):  # with a Content-Length, and without
            rejected = post(url, body=body)
            assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "5")
        other = pool.submit(post, url, body=half, headers={"Authorization": "Bearer other-key"})
        assert begun.acquire(timeout=5)
        release.set()
        assert [first.result().status_code, other.result().status_code] == [200, 200]
        wait_for(lambda: post(url, body=half).status_code == 200, 5, "the bytes to be free")


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


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {"X_Request_Id": "\xe9\xff"}, 200),
        (200, {"X_Request_Id": "\u00e9"}, 200),
        (200, {"Set_Cookie": "a=b", "Location": "x", "Access_Control_Allow_Origin": "*"}, 200),
        (999, {}, 502),
        (600, {}, 502),
    ],
)
def test_strange_responses_are_passed_on_or_502(status, headers, expected):
    class Strange(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(status, {"text": "hello"}, **headers)

    with http_serving(Strange) as server, serving(server.url) as url:
        response = post(url)
    assert response.status_code == expected
    assert not {"Set-Cookie", "Location", ALLOW_ORIGIN} & response.headers.keys()


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ 1 }}"},
        {"chat_template": ["x"]},
        {"chat_template_kwargs": {"chat_template": "{% for i in range(9) %}{% endfor %}"}},
        {"media_io_kwargs": {"video": {"num_frames": 10**9}}},
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/responses", "/v1/messages", "/tokenize"])
def test_templates_of_clients_are_rejected(url, engine, path, fields):
    response = post(url, path, CHAT | {"input": "Hi"} | fields)
    assert response.status_code == 400
    assert "is not available here: remove it." in response.text
    assert engine.requests == []


def test_clients_raise_the_right_error(url):
    openai_client, anthropic_client = clients(url)
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="x").models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="x").messages.create(**MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be a number"):
        openai_client.chat.completions.create(**CHAT, max_tokens=-1)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens must be a number"):
        anthropic_client.messages.create(**MESSAGES | {"max_tokens": -1})
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


def broken(*_: object) -> None:
    raise RuntimeError("a bug")


def test_bugs_are_errors_that_clients_can_read(url, monkeypatch, caplog):
    monkeypatch.setattr("vllm_space.text_limit.check_context", broken)
    big = CHAT | {"user": "x" * ALWAYS_ALLOWED}
    openai_error, anthropic_error = (post(url, path, big) for path in (CHAT_PATH, "/v1/messages"))
    assert (openai_error.status_code, anthropic_error.status_code) == (500, 500)
    assert openai_error.json()["error"]["code"] == "internal_error"
    assert anthropic_error.json()["error"] == {
        "type": "api_error",
        "message": str(errors.internal()),
    }
    assert "RuntimeError: a bug" in caplog.text


def test_bugs_in_mid_answer_cut_it_off(monkeypatch):
    monkeypatch.setattr("aiohttp.StreamReader.iter_any", broken)
    with (
        ScriptedEngine(lambda path, body: chat_stream("Hi")).running() as engine,
        serving(engine.url) as url,
        pytest.raises(requests.exceptions.RequestException),
    ):
        post(url)


# -- health --------------------------------------------------------------------------------


def test_health_checks_are_cached(url, engine):
    time.sleep(health.MAX_AGE)
    engine.request_lines.clear()
    started_at = time.monotonic()
    for _ in range(100):
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
    checks = engine.request_lines.count("GET /health")
    assert checks <= 1 + (time.monotonic() - started_at) / health.MAX_AGE


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
        assert ask("shared (slow)") == {"engine": "slow", "model": "shared (slow)"}
        assert ask("shared (fast)") == {"engine": "fast", "model": "shared (fast)"}
        assert ask("shared") == {"engine": "fast", "model": "shared"}
        assert ask("small (slow)") == {"engine": "slow", "model": "small (slow)"}
        assert ask(None) == {"engine": "fast", "model": None}
        assert ask("none")["error"]["code"] == "model_not_found"
        assert ask("old")["error"]["code"] == "legacy_server"
        assert {body.get("model") for _, _, body in fast.requests} == {"big", "shared", None}
        assert {body.get("model") for _, _, body in slow.requests} == {"small", "shared"}
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
