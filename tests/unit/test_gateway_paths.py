"""The paths that clients of the API gateway ask for by mistake, and those that are closed."""

import http.client
import time
from collections.abc import Iterator

import anthropic
import openai
import pytest
import requests

from support.gateway import CHAT, CHAT_PATH, post, serving
from support.http_server import QuietHandler
from support.http_server import serving as http_serving
from support.programs import API_KEY, KEY
from support.scripted_engine import ScriptedEngine
from vllm_space import api_paths


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    with ScriptedEngine(lambda path, body: (200, {"text": "hello"})).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine) -> Iterator[str]:
    with serving(f"{engine.url}/v1") as url:  # an address that leaves nothing to find out
        yield url


@pytest.fixture(autouse=True)
def forget_requests(engine):
    engine.request_lines.clear()


def ask(url: str, method: str, target: str, headers: dict | None = None) -> requests.Response:
    """Send a request for exactly this path."""
    request = requests.Request(method, url, json=CHAT, headers=headers).prepare()
    request.url = url + target
    with requests.Session() as session:
        return session.send(request, timeout=5)


MISADDRESSED = {
    "/v1//models": "/v1/models",
    "/v1/models/": "/v1/models",
    "/v1//models/": "/v1/models",
    "//v1/chat/completions": CHAT_PATH,
    "/v1//chat/completions": CHAT_PATH,
    "/v1/chat/completions/": CHAT_PATH,
    "/v1/chat//completions": CHAT_PATH,
    "///v1///chat///completions///": CHAT_PATH,
    "/chat/completions": CHAT_PATH,
    "//chat/completions/": CHAT_PATH,
    "/models": "/v1/models",
    "/completions": "/v1/completions",
    "/responses": "/v1/responses",
    "/embeddings": "/v1/embeddings",
    "/models/org/Some-Model": "/v1/models/org/Some-Model",
    "/v1/v1/chat/completions": CHAT_PATH,
    "/v1/v1/models": "/v1/models",
    "/v2/chat/completions": CHAT_PATH,
    "/api/v1/chat/completions": CHAT_PATH,
    "/openai/v1/responses": "/v1/responses",
    "/v1beta/openai/chat/completions": CHAT_PATH,
    "/openai/deployments/some-model/chat/completions": CHAT_PATH,
    "/v1/engines/some-model/completions": "/v1/completions",
    "/v1/chat/completions/chat/completions": CHAT_PATH,
    "/v1/chat/completions/models": "/v1/models",
    "/v1/models/chat/completions": CHAT_PATH,
    "/v1/models/models": "/v1/models",
    "/V1/Chat/Completions": CHAT_PATH,
    "/v1%2Fchat/completions": CHAT_PATH,
    "/v1/%6dodels": "/v1/models",
    "/v1/models%20": "/v1/models",
    "/v1/./models": "/v1/models",
    "/v1/tokenize": "/tokenize",
    "/v1/version": "/version",
    "/v1/models/?after=x": "/v1/models",
}


@pytest.mark.parametrize("headers", [KEY, {}, {"Authorization": "Bearer wrong"}])
@pytest.mark.parametrize("target", MISADDRESSED)
def test_wrong_addresses_name_the_right_one(url, engine, target, headers):
    for method in ("GET", "POST"):
        response = ask(url, method, target, headers)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (404, "invalid_request_error")
        assert f"base address of this API is {url}/v1:" in error["message"]
        assert f" to {url}{MISADDRESSED[target]}." in error["message"]
    assert engine.request_lines == []


@pytest.mark.parametrize("target", ["/v1", "/v1/", "//v1", "/api/v1", "/v1/v1/", "/openai/v1"])
def test_base_address_alone_is_explained(url, target):
    message = ask(url, "POST", target).json()["error"]["message"]
    assert f"base address of this API is {url}/v1:" in message


@pytest.mark.parametrize(
    "target", ["/messages", "/v1//messages", "/v1/v1/messages", "/anthropic/v1/messages/"]
)
def test_anthropic_clients_get_their_format(url, target):
    response = ask(url, "POST", f"{target}?beta=true")
    error = response.json()
    assert (response.status_code, error["type"]) == (404, "error")
    assert error["error"]["type"] == "not_found_error"
    assert f"{url}/v1/messages." in error["error"]["message"]
    assert error["error"]["message"].endswith(f"clients need {url}.")


def test_clients_show_the_right_address(url):
    for base in (url, f"{url}/v1/v1", f"{url}/v1/chat/completions"):
        client = openai.OpenAI(base_url=base, api_key=API_KEY, max_retries=0)
        with pytest.raises(openai.NotFoundError, match=f"{url}/v1:"):
            client.chat.completions.create(**CHAT)
    client = anthropic.Anthropic(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
    with pytest.raises(anthropic.NotFoundError, match=f"clients need {url}"):
        client.messages.create(**CHAT, max_tokens=5)


@pytest.mark.parametrize("host", ["space.example", "space.example:8443", "[::1]:7860"])
def test_address_is_the_one_that_was_asked(url, host):
    message = ask(url, "GET", "/models", {"Host": host}).json()["error"]["message"]
    assert f"http://{host}/v1:" in message


def test_disabled_api_says_so_on_any_path(engine):
    with serving(engine.url, api_keys="") as url:
        for target in ("/models", "/v1//chat/completions", "/metrics", "/v1/x", "/version"):
            assert "API_KEYS" in ask(url, "POST", target).json()["error"]["message"]


CLOSED = [
    "/metrics",
    "/load",
    "/ping",
    "/sleep",
    "/pause",
    "/invocations",
    "/tokenizer_info",
    "/server_info",
    "/collective_rpc",
    "/score",
    "/v1/score",
    "/rerank",
    "/v2/rerank",
    "/pooling",
    "/classify",
    "/fault_tolerance/apply",
    "/inference/v1/generate",
    "/v1/audio/transcriptions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/completions/derender",
    "/v1/responses/resp_1",
    "/v1/responses/resp_1/cancel",
    "/v1/messages/render",
    "/v1/messages/batches",
]


@pytest.mark.parametrize("target", CLOSED)
def test_closed_endpoints_say_so(url, engine, target):
    for method in ("GET", "POST", "DELETE"):
        response = ask(url, method, target, KEY)
        assert response.status_code == 404
        assert "closed on purpose" in response.json()["error"]["message"]
    assert engine.request_lines == []


@pytest.mark.parametrize(
    "target", ["/v1/files", "/v1/images/generations", "/v1/threads/x/messages"]
)
def test_unknown_endpoints_are_no_secret(url, target):
    error = ask(url, "POST", target, KEY).json()["error"]
    assert (error["message"], error["code"]) == (
        f"{target} is not an endpoint of this API.",
        "not_found",
    )


@pytest.mark.parametrize(
    "target",
    [
        "/nothing",
        "/blog/models",
        "/index.html",
        "/docs",
        "/openapi.json",
        "/static",
        "/api",
        "/messages.html",
        "/gradio_api/models",
        "/gradio_api/v1/models",
        "/.env",
    ],
)
def test_other_paths_stay_the_pages(url, target):
    response = ask(url, "GET", target, KEY)
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/login",
        "/login/callback",
        "/logout",
        "/config",
        "/config/",
        "/theme.css",
        "/assets/models",
        "/static/metrics",
        "/gradio_api/info",
        "/gradio_api/queue/join",
        "/gradio_api/call/chat/completions",
        "/gradio_api/file=/v1/models",
        "/gradio_api/mcp/messages",
    ],
)
def test_gateway_leaves_gradios_paths_alone(path):
    assert not api_paths.serves(path)


@pytest.mark.parametrize("part", ["/v1", "/models", "/engines", "/a", "/ ", "/.", "/chat", "\n/x"])
def test_long_paths_are_judged_quickly(part):
    started_at = time.monotonic()
    api_paths.serves(part * 20_000)
    assert time.monotonic() - started_at < 1


# -- health and version --------------------------------------------------------------------


def test_health_answers_as_healthz(url):
    for method in ("GET", "HEAD"):
        ours, theirs = (
            requests.request(method, url + path, timeout=5) for path in ("/health", "/healthz")
        )
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
        assert ours.status_code == 200
    with serving("http://127.0.0.1:9") as down:
        assert requests.get(f"{down}/health", timeout=5).status_code == 503


def test_version_is_the_engines_own():
    class Engine(QuietHandler):
        def do_GET(self) -> None:
            self.reply(200, {"version": "0.29.0"})

    with http_serving(Engine) as server, serving(server.url) as url:
        assert requests.get(f"{url}/version", headers=KEY, timeout=5).json() == {
            "version": "0.29.0"
        }
        assert requests.get(f"{url}/version", timeout=5).status_code == 401
    with ScriptedEngine().running() as other, serving(other.url) as url:  # no vLLM
        response = requests.get(f"{url}/version", headers=KEY, timeout=5)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "The model server does not offer /version."


# -- single models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["org/Some-Model", "plain", "a/b/c", "with space", "dots..", "é"])
def test_models_can_be_retrieved(name):
    engine = ScriptedEngine(models=["other", name])
    with engine.running(), serving(engine.url) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        assert client.models.retrieve(name).id == name
        plain = requests.get(f"{url}/v1/models/{name}", headers=KEY, timeout=5)
        assert plain.json()["owned_by"] == "vllm"
        with pytest.raises(openai.NotFoundError, match="Available models: other, "):
            client.models.retrieve("unknown")
        assert requests.get(f"{url}/v1/models/{name}", timeout=5).status_code == 401
        deleted = requests.delete(f"{url}/v1/models/{name}", headers=KEY, timeout=5)
        assert (deleted.status_code, deleted.headers["Allow"]) == (405, "GET")
    assert set(engine.request_lines) <= {"GET /v1/models", "GET /health"}


def test_models_are_retrieved_by_label():
    with (
        ScriptedEngine(models=["one", "shared"]).running() as first,
        ScriptedEngine(models=["shared"]).running() as second,
        serving({"a": first.url, "b": second.url}) as url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        assert [model.id for model in client.models.list()] == ["one", "shared (a)", "shared (b)"]
        assert client.models.retrieve("shared (b)").id == "shared (b)"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("shared")


@pytest.mark.parametrize("target", ["/v1/models/..%2F..%2Fmetrics", "/v1/models/../../metrics"])
def test_model_ids_never_reach_the_engine(url, engine, target):
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.request("GET", target, headers=KEY)
    assert connection.getresponse().status == 404
    assert set(engine.request_lines) <= {"GET /v1/models"}


# -- requests ------------------------------------------------------------------------------


def test_compressed_bodies_are_rejected(url, engine):
    response = post(url, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "Send it uncompressed" in response.json()["error"]["message"]
    assert engine.request_lines == []
    assert post(url, headers={"Content-Encoding": "identity"}).status_code == 200


def test_trace_headers_reach_the_engine():
    sent = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1",
        "X-Session-ID": "session-1",
        "X-Request-ID": "request-1",
    }
    with ScriptedEngine().running() as engine, serving(engine.url) as url:
        post(url, headers=sent | {"X-Data-Parallel-Rank": "1", "X-Priority": "-1", "Cookie": "a=b"})
    received = {name.lower(): value for name, value in engine.requests[0][1].items()}
    assert {name.lower(): value for name, value in sent.items()}.items() <= received.items()
    assert not {"x-data-parallel-rank", "x-priority", "cookie"} & received.keys()


def test_missing_content_type_is_json():
    with ScriptedEngine().running() as engine, serving(engine.url) as url:
        for content_type in (None, "application/json; charset=utf-8", "text/plain"):
            assert post(url, headers={"Content-Type": content_type}).status_code == 200
    received = [headers["content-type"] for _, headers, _ in map(lower_names, engine.requests)]
    assert received == ["application/json", "application/json; charset=utf-8", "text/plain"]


def lower_names(request: tuple) -> tuple:
    path, headers, body = request
    return path, {name.lower(): value for name, value in headers.items()}, body


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"background": True}, "background"),
        ({"background": True, "store": True, "stream": True}, "background"),
        ({"background": "true"}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
    ],
)
def test_stored_responses_are_refused(url, engine, fields, name):
    response = post(url, "/v1/responses", {"model": "scripted", "input": "Hi"} | fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{name} is not available here, since ")
    assert engine.request_lines == []


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False, "background": False},
        {"background": None, "previous_response_id": None, "conversation": None},
    ],
)
def test_store_alone_is_passed_on(url, engine, fields):
    body = {"model": "scripted", "input": "Hi"} | fields
    assert post(url, "/v1/responses", body).status_code == 200
    assert post(url, CHAT_PATH, CHAT | {"store": True, "background": True}).status_code == 200


def test_base_is_found_for_the_first_request():
    """Before anyone has opened the page, or asked for the models."""
    with (
        ScriptedEngine(lambda path, body: (200, {"path": path})).running() as engine,
        http_serving(below("/llm/openai", engine.url)) as server,
        serving(f"{server.url}/llm/openai") as url,
    ):
        assert post(url).json() == {"path": CHAT_PATH}


def below(base: str, url: str) -> type[QuietHandler]:
    """A handler that passes what is below `base` on to the /v1 of `url`."""

    class Handler(QuietHandler):
        def answer(self) -> None:
            if not self.path.startswith(f"{base}/"):
                self.reply(404, {"detail": "Not Found"})
                return
            target = url + "/v1" + self.path.removeprefix(base)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = requests.request(self.command, target, data=body, timeout=10)
            self.reply(answer.status_code, answer.content)

        do_GET = do_POST = answer

    return Handler
