"""The API gateway together with the page: CORS, sign-in, streams. See also unit/test_gateway.py."""

import time
from collections.abc import Iterator

import pytest
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space.api_paths import ENDPOINTS

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
CHAT_PATH = "/v1/chat/completions"
SITE = "https://site.example"
CROSS_ORIGIN = {"Host": "owner-name.hf.space", "Origin": SITE}
PREFLIGHT = {
    "Origin": SITE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
ALLOW_ORIGIN = "Access-Control-Allow-Origin"


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    """An engine that answers everything with the same JSON."""
    with ScriptedEngine(lambda path, body: (200, {"text": "hello"})).running() as engine:
        yield engine


def post(
    url: str, path: str = CHAT_PATH, headers: dict | None = None, **options
) -> requests.Response:
    headers = KEY | (headers or {})
    return requests.post(url + path, json=CHAT, headers=headers, timeout=20, **options)


def test_cors_allows_only_listed_origins(page, engine):
    default = page(engine.url, API_KEYS=API_KEY)
    listed = page(engine.url, API_KEYS=API_KEY, API_CORS_ORIGINS=SITE)
    for url, allowed in ((default, None), (listed, SITE)):
        preflight = requests.options(url + CHAT_PATH, headers=CROSS_ORIGIN | PREFLIGHT, timeout=5)
        assert preflight.ok is bool(allowed)
        answer = post(url, headers=CROSS_ORIGIN)
        assert answer.json() == {"text": "hello"}
        rejected = requests.get(f"{url}/v1/models", headers=CROSS_ORIGIN, timeout=5)
        for response in (preflight, answer, rejected):
            assert response.headers.get(ALLOW_ORIGIN) == allowed
            assert "Access-Control-Allow-Credentials" not in response.headers
    assert "x-stainless-lang" in preflight.headers["Access-Control-Allow-Headers"]
    other = CROSS_ORIGIN | {"Origin": "https://evil.example"}
    assert ALLOW_ORIGIN not in post(listed, headers=other).headers
    preflight = requests.options(listed + CHAT_PATH, headers=PREFLIGHT | other, timeout=5)
    assert ALLOW_ORIGIN not in preflight.headers


def test_page_login_does_not_apply_to_api(page, engine):
    url = page(engine.url, API_KEYS=API_KEY, APP_USERNAME="alice", APP_PASSWORD="right")
    engine.tokenize = lambda body: (200, {"text": "hello"})
    for path, method in ENDPOINTS.items():
        if method == "POST":
            assert post(url, path).json() == {"text": "hello"}, path
            assert requests.post(url + path, json=CHAT, timeout=5).status_code == 401, path
    assert requests.get(f"{url}/config", headers=KEY, timeout=5).status_code == 401


LOGIN = {"APP_USERNAME": "alice", "APP_PASSWORD": "right"}


@pytest.mark.parametrize("variables", [{}, LOGIN], ids=["open", "sign-in"])
def test_wrong_addresses_never_reach_gradio(page, engine, variables):
    url = page(engine.url, API_KEYS=API_KEY, **variables)
    for headers in (KEY, {}):
        for path in (
            "/v1//models",
            "/v1/models/",
            "//v1/chat/completions",
            "/chat/completions",
            "/models",
            "/v1/v1/messages",
            "/v1%2Fmodels",
        ):
            for method in ("GET", "POST"):
                request = requests.Request(method, url, headers=headers, json=CHAT).prepare()
                request.url = url + path
                response = requests.Session().send(request, timeout=5)
                assert response.status_code == 404, path
                assert f"{url}/v1:" in response.json()["error"]["message"], path
    for path in ("/metrics", "/v1/responses/x", "/tokenizer_info"):
        message = requests.get(url + path, headers=KEY, timeout=5).json()["error"]["message"]
        assert "closed on purpose" in message
    assert requests.get(f"{url}/health", timeout=5).json() == {"status": "ok"}


@pytest.mark.parametrize("variables", [{}, LOGIN], ids=["open", "sign-in"])
def test_paths_of_the_page_stay_its_own(page, engine, variables):
    url = page(engine.url, API_KEYS=API_KEY, **variables)
    browser = {"Accept": "text/html"}
    home = requests.get(url, headers=browser, timeout=5)
    assert (home.status_code, home.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for path in ("/config", "/gradio_api/info"):
        assert requests.get(url + path, timeout=5).status_code == (401 if variables else 200)
    for path in ("/nothing", "/blog/models", "/docs"):
        response = requests.get(url + path, headers=browser, timeout=5)
        assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


def test_base_address_is_the_one_behind_a_proxy(page, engine):
    url = page(engine.url, API_KEYS=API_KEY, FORWARDED_ALLOW_IPS="127.0.0.1")
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "space.example"}
    message = requests.get(f"{url}/models", headers=proxied, timeout=5).json()["error"]["message"]
    assert "https://space.example/v1:" in message


def test_open_stream_does_not_block_the_page(page):
    with ScriptedEngine(lambda path, body: chat_stream(*"ab", every=1)).running() as engine:
        url = page(engine.url, API_KEYS=API_KEY)
        with post(url, stream=True) as response:
            next(response.iter_content(10))
            started_at = time.monotonic()
            assert requests.get(f"{url}/healthz", timeout=5).ok
            assert time.monotonic() - started_at < 1
