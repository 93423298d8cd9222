"""The errors of model servers, in the format that the clients of the API gateway read."""

import gzip
import json
from typing import ClassVar

import anthropic
import openai
import pytest
import requests

from support.gateway import CHAT, CHAT_PATH, post, serving
from support.http_server import QuietHandler
from support.http_server import serving as http_serving
from support.programs import API_KEY, KEY
from support.scripted_engine import Cut, ScriptedEngine, chat_event, event
from vllm_space.server import Server

MESSAGES = CHAT | {"max_tokens": 5}
HTML = "<html><title>502 Bad Gateway</title></html>"
QUOTA = {
    "error": {
        "message": "Your quota is used up: look at your plan and your bills.",
        "type": "insufficient_quota",
        "code": "insufficient_quota",
    }
}
REGION = {
    "error": {
        "message": "Your country or region is not served.",
        "code": "unsupported_country_region_territory",
    }
}
EXTRA_FIELD = {
    "detail": [
        {
            "type": "extra_forbidden",
            "loc": ["body", "stream_options", "include_usage"],
            "msg": "Not permitted here",
            "input": True,
        }
    ]
}


def answer(status: int, body: object, path: str = CHAT_PATH, **fields: object) -> requests.Response:
    """What a client gets when the server answers so."""
    engine = ScriptedEngine(lambda path, _: (status, body))
    with engine.running(), serving(engine.url) as url:
        return post(url, path, MESSAGES | fields)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}),
        (402, {"error": {"message": "the balance is used up", "code": 402}, "user": "x"}),
        (429, QUOTA),
        (404, {"error": {"message": "The model `x` does not exist.", "code": "model_not_found"}}),
        (500, {"type": "error", "error": {"type": "api_error", "message": "broken"}}),
        (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}),
    ],
)
def test_errors_in_openais_format_pass(status, body):
    response = answer(status, body)
    assert (response.status_code, response.content) == (status, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, {"detail": "Not Found"}, "The model server does not offer {path}."),
        (404, "404 page not found\n", "The model server does not offer {path}."),
        (404, {"error": "model 'x' not found"}, "model 'x' not found"),
        (422, EXTRA_FIELD, "Not permitted here"),
        (422, {"detail": "messages: too many"}, "messages: too many"),
        (400, {"error": "unknown field: seed"}, "unknown field: seed"),
        (400, {"message": "no such model", "code": 20012}, "no such model"),
        (402, {"detail": "out of credit"}, "out of credit"),
        (429, "slow down", "slow down"),
        (500, "Internal Server Error", "Internal Server Error"),
        (500, "", "HTTP 500"),
        (500, [1, 2], "HTTP 500"),
        (503, {"error": "loading"}, "loading"),
        (400, {"error": {"message": None}}, "rejected"),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/responses", "/v1/messages", "/v1/embeddings"])
def test_other_errors_get_the_clients_format(status, body, words, path):
    response = answer(status, body, path, input="Hi")
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()
    assert words.format(path=path) in error["error"]["message"]
    if path == "/v1/messages":
        assert (error["type"], set(error["error"])) == ("error", {"type", "message"})
    else:
        assert set(error["error"]) == {"message", "type", "param", "code"}


def test_anthropic_format_has_its_own_types():
    response = answer(429, QUOTA, "/v1/messages")
    assert response.status_code == 429
    words = QUOTA["error"]["message"]
    assert response.json() == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": words},
    }
    own = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert answer(529, own, "/v1/messages").content == json.dumps(own).encode()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, REGION, "Your country or region is not served."),
        (401, {"error": {"message": "Incorrect API key provided: engine-key-marked."}}, "***"),
        (401, {"detail": "engine-key-marked"}, "MODEL_API_KEY"),
        (403, HTML, "firewall"),
        (403, {"error": "This model is gated."}, "This model is gated."),
    ],
)
def test_rejected_server_key_is_a_502(status, body, words):
    for path in (CHAT_PATH, "/v1/messages"):
        response = answer(status, body, path)
        assert response.status_code == 502
        assert words in response.json()["error"]["message"]
        assert "marked" not in response.text


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"error": {"message": "the balance is used up", "code": 402}}, 402, "the balance is used"),
        ({"error": {"message": "slow down", "code": "429"}}, 429, "slow down"),
        ({"error": "no capacity"}, 502, "no capacity"),
        ({"object": "error", "message": "too long", "code": 400}, 400, "too long"),
        ({"error": {"message": "engine-key-marked", "code": 401}}, 502, "MODEL_API_KEY"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_with_status_200_are_errors(body, status, words, stream):
    response = answer(200, body, stream=stream)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert "marked" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "an error"}}], "error": None},
        {"object": "chat.completion", "choices": [], "error": {"message": "in the middle"}},
        {"object": "response", "status": "failed", "error": {"message": "x"}, "output": []},
        {"id": "x", "output": [], "error": None},
        {"object": "list", "data": [{"error": "a word in it"}]},
        {"text": "error"},
        [{"error": "x"}],
    ],
)
def test_answers_that_mention_errors_pass(body):
    response = answer(200, body)
    assert (response.status_code, response.content) == (200, json.dumps(body).encode())


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_name_the_new_address(status):
    class Redirecting(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.reply(status, "", Location=f"https://new.example{self.path}")

        do_GET = do_POST

    with http_serving(Redirecting) as server, serving(server.url) as url:
        for response in (post(url), requests.get(f"{url}/v1/models", headers=KEY, timeout=5)):
            message = response.json()["error"]["message"]
            assert response.status_code == 502
            assert "set MODEL_URL to https://new.example/v1." in message


def test_impossible_headers_are_json_errors(monkeypatch):
    impossible = property(lambda server: {"Authorization": "Bearer marked\n"})
    with ScriptedEngine().running() as engine, serving(engine.url) as url:
        monkeypatch.setattr(Server, "headers", impossible)
        listing = requests.get(f"{url}/v1/models", headers=KEY, timeout=5)
        for response in (listing, post(url), post(url, "/v1/messages")):
            assert response.status_code in (500, 502, 503)
            assert response.json()["error"]["message"].endswith(".")
            assert "marked" not in response.text


class Compressed(QuietHandler):
    encoding: ClassVar = "gzip"
    body: ClassVar = gzip.compress(b'{"detail": "out of credit"}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(402, self.body, Content_Encoding=self.encoding, Retry_After="7")


def test_compressed_errors_are_read():
    with http_serving(Compressed) as server, serving(server.url) as url:
        response = post(url)
    assert (response.status_code, response.headers["Retry-After"]) == (402, "7")
    assert response.json()["error"]["message"] == "out of credit"
    assert "Content-Encoding" not in response.headers


def test_unreadable_errors_pass(monkeypatch):
    monkeypatch.setattr(Compressed, "encoding", "br")
    with http_serving(Compressed) as server, serving(server.url) as url:
        response = post(url, stream=True)
    assert response.status_code == 402
    assert response.raw.data == Compressed.body


def test_limits_have_the_types_of_clients():
    with ScriptedEngine().running() as engine, serving(engine.url, api_rate_limit="1") as url:
        post(url)
        error = post(url).json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        with pytest.raises(openai.RateLimitError, match="1 requests per minute"):
            client.chat.completions.create(**CHAT)
        assert post(url, "/v1/messages").json()["error"]["type"] == "rate_limit_error"


# -- in mid-answer -------------------------------------------------------------------------


def cut_off(path: str, body: dict):
    yield chat_event(content="partial") if path == CHAT_PATH else event(type="ping")
    raise Cut


def test_cut_streams_raise_in_clients():
    with ScriptedEngine(cut_off).running() as engine, serving(engine.url) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        with pytest.raises(openai.APIError, match="cut off"):
            list(client.chat.completions.create(**CHAT, stream=True))
        with pytest.raises(openai.APIError, match="cut off"):
            list(client.responses.create(model="scripted", input="Hi", stream=True))
        claude = anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0)
        with pytest.raises(anthropic.APIError, match="cut off"):
            list(claude.messages.create(**MESSAGES, stream=True))


def test_cut_response_has_openais_event():
    with ScriptedEngine(cut_off).running() as engine, serving(engine.url) as url:
        text = post(url, "/v1/responses", {"input": "Hi", "stream": True}).text
    name, data, *rest = text.split("\n\n")[1].split("\n")
    fields = json.loads(data.removeprefix("data: "))
    assert (name, rest) == ("event: error", [])
    assert fields["type"] == "error"
    assert "cut off" in fields["message"]
    assert {"code", "param", "sequence_number"} <= fields.keys()


# -- lists of models -----------------------------------------------------------------------


class ListServer(QuietHandler):
    body: ClassVar[object] = None

    def do_GET(self) -> None:
        self.reply(200, self.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(200, {"text": "hello"})


def listed(monkeypatch, body: object) -> requests.Response:
    """GET /v1/models in front of a server with this list."""
    monkeypatch.setattr(ListServer, "body", body)
    with http_serving(ListServer) as server, serving(server.url) as url:
        return requests.get(f"{url}/v1/models", headers=KEY, timeout=5)


@pytest.mark.parametrize(
    "body",
    [
        [{"id": "toy", "object": "model", "context_length": 4096}],
        ["toy"],
        {"models": [{"name": "toy", "model": "toy", "size": 1}]},
        {"data": [{"name": "toy"}]},
        {"data": [{"id": "toy"}, {"object": "model"}, None]},
        {"data": {"toy": {"max_model_len": 4096}}},
    ],
)
def test_other_lists_get_openais_form(monkeypatch, body):
    fields = listed(monkeypatch, body).json()
    assert fields["object"] == "list"
    assert [entry["id"] for entry in fields["data"]] == ["toy"]
    assert {"object", "created", "owned_by"} <= fields["data"][0].keys()


@pytest.mark.parametrize(
    "body",
    [
        b'{ "object":"list","data":[{"id":"a/b","root":"a/b","parent":null, "x": 1.0e0}] }',
        b'{"object":"list","data":[],"has_more":false}',
        b'{"object":"list","data":[{"id":"s3/toy","root":"s3://bucket/toy"}]}',
    ],
)
def test_lists_in_openais_form_pass(monkeypatch, body):
    assert listed(monkeypatch, body).content == body


@pytest.mark.parametrize(
    "path", ["/home/owner/models/toy", "~/toy", "./toy", "../toy", "C:\\models\\toy", "file:///toy"]
)
def test_local_paths_are_not_shown(monkeypatch, path):
    entry = {"id": "toy", "root": path, "parent": path, "max_model_len": 4096}
    response = listed(monkeypatch, {"object": "list", "data": [entry, {"id": "other"}]})
    assert response.json()["data"] == [
        {"id": "toy", "root": "toy", "parent": "toy", "max_model_len": 4096},
        {"id": "other"},
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "no models for you"}, "no models for you"),
        ({"error": {"message": "no models for you"}}, "no models for you"),
        ({"hello": "world"}, "list of models"),
        (b"hello", "list of models"),
        (5, "list of models"),
    ],
)
def test_unreadable_lists_are_errors(monkeypatch, body, words):
    response = listed(monkeypatch, body)
    assert response.status_code == 502
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_key_in_an_error_is_masked(status):
    body = {"error": {"message": "Bad key engine-key-marked", "code": "bad_key"}}
    response = answer(status, body)
    assert response.status_code == status
    assert response.json()["error"]["message"] == "Bad key ***"
    assert response.json()["error"]["code"] == "bad_key"


@pytest.mark.parametrize("body", [5, {"error": "no models for query-marked"}])
def test_keys_in_addresses_are_not_shown(monkeypatch, body):
    monkeypatch.setattr(ListServer, "body", body)
    address = "/v1?key=query-marked"
    with http_serving(ListServer) as server, serving(server.url + address) as url:
        response = requests.get(f"{url}/v1/models", headers=KEY, timeout=5)
    assert response.status_code == 502
    assert "marked" not in response.text


@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": {"message": "No such URL"}}])
def test_named_model_needs_no_list(body):
    class Server(QuietHandler):
        def do_GET(self) -> None:
            self.reply(405 if self.path == CHAT_PATH else 404, body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(200, {"text": "hello"})

    with http_serving(Server) as server, serving(f"{server.url}/v1", model_id="toy") as url:
        entries = requests.get(f"{url}/v1/models", headers=KEY, timeout=5).json()["data"]
        assert [entry["id"] for entry in entries] == ["toy"]
        assert requests.get(f"{url}/v1/models/toy", headers=KEY, timeout=5).json() == entries[0]
        assert post(url, body=CHAT | {"model": "toy"}).json() == {"text": "hello"}


@pytest.mark.parametrize("body", [[{"id": "toy"}], {"data": None}, {"error": "no"}, 5, b"x", HTML])
def test_strange_list_spares_a_good_server(monkeypatch, body):
    monkeypatch.setattr(ListServer, "body", body)
    with (
        http_serving(ListServer) as bad,
        ScriptedEngine(lambda path, _: (200, {"text": "hello"}), models=["good"]).running() as good,
        serving({"bad": bad.url, "good": good.url}) as url,
    ):
        ids = requests.get(f"{url}/v1/models", headers=KEY, timeout=5).json()["data"]
        assert [entry["id"] for entry in ids if entry["owned_by"] == "vllm"] == ["good"]
        assert post(url, body=CHAT | {"model": "good"}).json() == {"text": "hello"}


def test_no_server_at_all_is_an_error():
    with serving({"a": "http://127.0.0.1:9", "b": "http://127.0.0.1:9"}) as url:
        response = requests.get(f"{url}/v1/models", headers=KEY, timeout=5)
    assert response.status_code == 503
    assert "cannot be reached" in response.json()["error"]["message"]
