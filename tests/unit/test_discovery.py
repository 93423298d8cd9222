"""What is behind an address, on real sockets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.http_server import QuietHandler, serving
from support.programs import wait_for
from vllm_space import catalog, discovery, errors
from vllm_space.catalog import Catalog
from vllm_space.server import Server

MODELS = {"object": "list", "data": [{"id": "a", "object": "model"}]}


@contextmanager
def site(pages: dict[str, tuple[int, object]]) -> Iterator[tuple[str, list[str]]]:
    """A server with these pages for "METHOD path", and 404 elsewhere: (URL, requests)."""
    asked = []

    class Handler(QuietHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            status, body = pages.get(asked[-1], (404, {"detail": "Not Found"}))
            if isinstance(body, str) and 300 <= status < 400:
                self.reply(status, "", Location=body)
            else:
                kind = "text/html" if isinstance(body, str) else "application/json"
                self.reply(status, body, kind)

        do_GET = do_POST = answer

    with serving(Handler) as server:
        yield server.url, asked


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("", "/v1"),
        ("/v1", "/v1"),
        ("/v1/chat/completions", "/v1"),
        ("/v1/models", "/v1"),
        ("/v1beta/openai/", "/v1beta/openai"),
        ("/api/paas/v4", "/api/paas/v4"),
        ("/proxy/8000", "/proxy/8000"),
        ("/proxy/8000", "/proxy/8000/v1"),
        ("", ""),
    ],
)
def test_api_is_found_where_it_is(address, base):
    with site({f"GET {base}/models": (200, MODELS)}) as (url, _):
        server = Server.from_url(url + address)
        assert [model.name for model in discovery.models(server)] == ["a"]
        assert server.endpoint("/v1/chat/completions") == f"{url}{base}/chat/completions"


def test_page_for_people_is_not_an_api():
    with site({"GET /v1/models": (200, "<html>"), "GET /models": (200, MODELS)}) as (url, _):
        assert [model.name for model in discovery.models(Server.from_url(url))] == ["a"]
    with (
        site({"GET /v1/models": (200, "<html>")}) as (url, _),
        pytest.raises(errors.ModelError, match="not a list of models"),
    ):
        discovery.models(Server.from_url(url))


def test_missing_list_is_named():
    with site({}) as (url, _), pytest.raises(errors.ModelError) as raised:
        discovery.models(Server.from_url(f"{url}/v1?key=marked"))
    assert f"no model list at {url}/v1/models (HTTP 404)" in str(raised.value)
    assert "marked" not in str(raised.value)


def test_legacy_server_needs_both_endpoints():
    health, generate = {"GET /health": (200, {})}, {"GET /generate": (405, {})}
    with site(health | generate) as (url, _):
        assert discovery.models(Server.from_url(url))[0].protocol == "generate"
    for half in (health, generate):
        with site(half) as (url, _), pytest.raises(errors.ModelError, match="no model list"):
            discovery.models(Server.from_url(url))


def test_server_without_list_needs_a_name():
    chat = {"GET /v1/chat/completions": (405, {}), "GET /health": (200, {})}
    with site(chat | {"GET /generate": (405, {})}) as (url, _):
        server = Server.from_url(url)
        with pytest.raises(errors.ModelError, match="set MODEL_ID"):
            discovery.models(server)
        model = discovery.models(server, "named")[0]
        assert (model.name, model.protocol) == ("named", "openai")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_to_another_host_is_named(status):
    with site({"GET /v1/models": (200, MODELS)}) as (url, asked):
        target = url.replace("127.0.0.1", "127.0.0.2")
        with site({"GET /v1/models": (status, f"{target}/v1/models")}) as (other, _):
            with pytest.raises(errors.ModelError, match=f"redirects to {target}/v1"):
                discovery.models(Server.from_url(other))
            assert asked == []


@pytest.mark.parametrize("target", ["https://h:99999/v1/models", "http://[h/v1/models"])
def test_redirect_to_no_address_is_an_error(target):
    with (
        site({"GET /v1/models": (302, target)}) as (url, _),
        pytest.raises(errors.ModelError),
    ):
        discovery.models(Server.from_url(url))


def test_redirect_on_the_same_server_is_followed():
    pages = {"GET /v1/models": (307, "/llm/v1/models"), "GET /llm/v1/models": (200, MODELS)}
    with site(pages) as (url, _):
        server = Server.from_url(url)
        assert discovery.models(server)[0].name == "a"
        assert server.endpoint("/v1/chat/completions") == f"{url}/llm/v1/chat/completions"


def test_redirect_to_a_slash_is_followed():
    pages = {"GET /v1/models": (307, "/v1/models/"), "GET /v1/models/": (200, MODELS)}
    with site(pages) as (url, _):
        assert discovery.models(Server.from_url(url))[0].name == "a"


def test_rejected_key_is_said_not_searched():
    body = {"error": {"message": "Incorrect API key provided: key-marked"}}
    with (
        site({"GET /v1/models": (401, body), "GET /models": (200, MODELS)}) as (url, _),
        pytest.raises(errors.KeyRejected) as raised,
    ):
        discovery.models(Server.from_url(url, api_key="key-marked"), "named")
    assert "MODEL_API_KEY" in str(raised.value)
    assert "marked" not in str(raised.value)


def test_one_bad_server_spares_the_others():
    with (
        site({"GET /v1/models": (200, {"data": None})}) as (empty, _),
        site({"GET /v1/models": (200, {"error": "no models for you"})}) as (error, _),
        site({"GET /v1/models": (200, json.loads("[1, null]"))}) as (strange, _),
        site({"GET /v1/models": (200, MODELS)}) as (good, _),
    ):
        urls = {"empty": empty, "error": error, "strange": strange, "good": good}
        catalog = Catalog([Server.from_url(url, label=label) for label, url in urls.items()])
        assert [model.label for model in catalog.models()] == ["a (good)"]
        assert catalog.problems().keys() == {"empty", "error", "strange"}


# -- the model to begin with -----------------------------------------------------------------------

LISTED = {
    "data": [
        {"id": "old"},
        {"id": "embed", "type": "embedding"},
        {"id": "main"},
        {"id": "x:latest"},
    ]
}


@pytest.mark.parametrize(
    ("first", "begins_with"),
    [
        ("", "old"),
        ("main", "main"),
        ("embed", "embed"),
        ("x", "x:latest"),
        ("main:fast", "main:fast"),
        ("MAIN", "main"),
    ],
)
def test_owner_chooses_the_first_model(first, begins_with):
    with site({"GET /v1/models": (200, LISTED)}) as (url, _):
        catalog = Catalog([Server.from_url(url)], first)
        assert catalog.find().name == begins_with
        assert catalog.missing() == ""


def test_chosen_model_that_is_missing_is_reported():
    with site({"GET /v1/models": (200, LISTED)}) as (url, _):
        catalog = Catalog([Server.from_url(url)], "mian")
        assert catalog.find().name == "old"
        assert "MODEL_ID=mian is not the name of any model" in catalog.missing()


def test_models_for_other_tasks_are_not_offered():
    with site({"GET /v1/models": (200, LISTED)}) as (url, _):
        catalog = Catalog([Server.from_url(url)])
        assert "embed" not in [model.name for model in catalog.chat_models()]
        assert "embed" in [model.name for model in catalog.models()]  # /v1/embeddings needs it


# -- slow lists ------------------------------------------------------------------------------------


@pytest.fixture
def slow() -> Iterator[tuple[str, threading.Event]]:
    """A server whose list waits for an event: (URL, event)."""
    awake = threading.Event()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            awake.wait(20)
            self.reply(200, MODELS)

    with serving(Handler) as server:
        yield server.url, awake
        awake.set()


def test_slow_list_is_waking_up_not_lost(slow, monkeypatch):
    monkeypatch.setattr(catalog, "WAIT", 0.3)
    url, awake = slow
    models = Catalog([Server.from_url(url)])
    assert models.models() == []
    assert models.problems() == {
        "": "The model server has not answered within 0.3 s. It may be slow, or waking up. "
        "Try again in a minute."
    }
    awake.set()
    wait_for(lambda: [model.name for model in models.models()] == ["a"], 10, "the list")
    assert models.problems() == {}


def test_known_models_stay_while_a_list_is_slow(slow, monkeypatch):
    monkeypatch.setattr(catalog, "WAIT_IF_KNOWN", 0.1)
    url, awake = slow
    awake.set()
    models = Catalog([Server.from_url(url)])
    assert models.find().name == "a"
    awake.clear()
    models.expire()
    assert models.find().name == "a"
    assert models.problems() == {}
