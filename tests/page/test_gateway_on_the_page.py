"""The API gateway beside the page: cross-origin requests, a login, a stream. The rest: unit/test_gateway.py."""

import time
from collections.abc import Iterator

import pytest
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space import gateway

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
PREFLIGHT = {
    "Origin": "https://site.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
AT_A_SPACE = {"Host": "owner-name.hf.space", "Origin": "https://site.example"}


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    """An engine that answers everything with the same JSON."""
    with ScriptedEngine(lambda path, body: (200, {"said": "hello"})).running() as engine:
        yield engine


def post(
    url: str, path: str = "/v1/chat/completions", headers: dict | None = None, **options
) -> requests.Response:
    return requests.post(
        url + path, json=CHAT, headers=KEY | (headers or {}), timeout=20, **options
    )


def test_scripts_of_other_sites_come_in_only_where_the_owner_says_so(page, engine):
    shut = page(engine.url, API_KEYS=API_KEY)
    open_ = page(engine.url, API_KEYS=API_KEY, API_CORS_ORIGINS="https://site.example")
    for url, allowed in ((shut, None), (open_, "https://site.example")):
        preflight = requests.options(
            f"{url}/v1/chat/completions", headers=AT_A_SPACE | PREFLIGHT, timeout=5
        )
        assert preflight.ok is bool(allowed)
        answer = post(url, headers=AT_A_SPACE)
        assert answer.json() == {"said": "hello"}
        refused = requests.get(f"{url}/v1/models", headers=AT_A_SPACE, timeout=5)
        for one in (preflight, answer, refused):
            assert one.headers.get("Access-Control-Allow-Origin") == allowed
            assert "Access-Control-Allow-Credentials" not in one.headers
    assert "x-stainless-lang" in preflight.headers["Access-Control-Allow-Headers"]
    other = AT_A_SPACE | {"Origin": "https://evil.example"}
    assert "Access-Control-Allow-Origin" not in post(open_, headers=other).headers
    foreign = requests.options(f"{open_}/v1/chat/completions", headers=PREFLIGHT | other, timeout=5)
    assert "Access-Control-Allow-Origin" not in foreign.headers


def test_a_login_guards_the_page_and_keys_guard_the_api(page, engine):
    url = page(engine.url, API_KEYS=API_KEY, APP_USERNAME="alice", APP_PASSWORD="right")
    engine.tokenize = lambda body: (200, {"said": "hello"})
    for path, method in gateway.ALLOWED.items():
        if method == "POST":
            assert post(url, path).json() == {"said": "hello"}, path
            assert requests.post(url + path, json=CHAT, timeout=5).status_code == 401, path
    assert requests.get(f"{url}/config", headers=KEY, timeout=5).status_code == 401


def test_with_a_stream_open_the_page_still_answers(page):
    with ScriptedEngine(lambda path, body: chat_stream(*"ab", every=1)).running() as engine:
        url = page(engine.url, API_KEYS=API_KEY)
        with post(url, stream=True) as answer:
            next(answer.iter_content(10))
            began = time.monotonic()
            assert requests.get(f"{url}/healthz", timeout=5).ok
            assert time.monotonic() - began < 1
