"""Password sign-in in front of the page and all of Gradio's endpoints, over HTTP."""

import time

import gradio_client
import pytest
import requests

from support.scripted_engine import ScriptedEngine, chat_stream


@pytest.fixture(scope="module")
def engine():
    with ScriptedEngine(lambda path, body: chat_stream("Hello", " you")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine):
    logins = {"APP_USERNAME": "alice", "APP_PASSWORD": "right", "APP_USERS": "bob:other:word"}
    return shared_page(engine.url, **logins)


def sign_in(url: str, name: str, password: str, address: str = "") -> requests.Response:
    # Clients can send any X-Forwarded-For; the platform's proxy appends the address it sees.
    return requests.post(
        f"{url}/login",
        data={"username": name, "password": password},
        headers={"X-Forwarded-For": f"1.2.3.4, {address}"} if address else {},
        timeout=5,
    )


def test_only_login_and_health_are_public(url, engine):
    assert "password" in requests.get(url, timeout=5).text
    assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=x",
        "/theme.css",
        "/login_check",
    ):
        assert requests.get(url + path, timeout=5).status_code == 401, path
    event = {"data": ["Hi"], "fn_index": 0, "session_hash": "x"}
    for path in ("/gradio_api/queue/join", "/gradio_api/call/chat"):
        assert requests.post(url + path, json=event, timeout=5).status_code == 401, path
    assert engine.requests == []


def test_only_the_right_password_signs_in(url):
    for name, password in (("alice", "wrong"), ("bob", "right"), ("", ""), ("carol", "x")):
        response = sign_in(url, name, password)
        assert response.status_code == 400, name
        assert not response.cookies
    for auth in (("alice", "right"), ("bob", "other:word")):
        client = gradio_client.Client(url, auth=auth, verbose=False)
        assert client.predict("Hi", api_name="/chat") == "Hello you"


def test_forged_cookies_are_rejected(url):
    for cookie in ("alice", "ImFsaWNlIg.aaaa.bbbb", ""):
        cookies = {"vllm_space_login": cookie}
        response = requests.get(f"{url}/config", cookies=cookies, timeout=5)
        assert response.status_code == 401


def test_guessing_is_slowed_per_address(page, engine):
    url = page(engine.url, APP_USERNAME="alice", APP_PASSWORD="right", SPACE_ID="me/x")
    guesser, owner = "9.9.9.9", "8.8.8.8"
    guesses = [sign_in(url, "alice", f"guess {number}", guesser) for number in range(5)]
    assert [response.status_code for response in guesses] == [400] * 5
    rejected = sign_in(url, "alice", "right", guesser)
    assert rejected.status_code == 429
    assert 1 <= int(rejected.headers["Retry-After"]) <= 2
    assert sign_in(url, "alice", "right", owner).status_code == 200
    time.sleep(1.1)
    assert sign_in(url, "alice", "wrong again", guesser).status_code == 400
    assert int(sign_in(url, "alice", "right", guesser).headers["Retry-After"]) == 2
