"""The password login, in front of the page and of every Gradio endpoint, over real HTTP."""

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
    return shared_page(
        engine.url, APP_USERNAME="alice", APP_PASSWORD="right", APP_USERS="bob:other:word"
    )


def test_without_a_login_nothing_but_the_login_and_health_answers(url, engine):
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
    join = {"data": ["Hi"], "fn_index": 0, "session_hash": "x"}
    assert requests.post(f"{url}/gradio_api/queue/join", json=join, timeout=5).status_code == 401
    assert (
        requests.post(f"{url}/gradio_api/call/chat", json={"data": ["Hi"]}, timeout=5).status_code
        == 401
    )
    assert engine.requests == []


def test_the_right_password_opens_page_and_endpoints_and_a_wrong_one_does_not(url):
    for name, password in (("alice", "wrong"), ("bob", "right"), ("", ""), ("carol", "x")):
        answer = requests.post(
            f"{url}/login", data={"username": name, "password": password}, timeout=5
        )
        assert answer.status_code == 400, name
        assert not answer.cookies
    for auth in (("alice", "right"), ("bob", "other:word")):
        client = gradio_client.Client(url, auth=auth, verbose=False)
        assert client.predict("Hi", api_name="/chat") == "Hello you"


def test_a_forged_cookie_is_no_login(url):
    for cookie in ("alice", "ImFsaWNlIg.aaaa.bbbb", ""):
        assert (
            requests.get(
                f"{url}/config", cookies={"vllm_space_login": cookie}, timeout=5
            ).status_code
            == 401
        )


def test_guessing_takes_longer_and_longer_and_does_not_shut_out_others(page, engine):
    url = page(engine.url, APP_USERNAME="alice", APP_PASSWORD="right", SPACE_ID="me/x")

    def sign_in(password: str, came_from: str) -> requests.Response:
        # The visitor may send any header; the platform's proxy appends the address it sees.
        headers = {"X-Forwarded-For": f"1.2.3.4, {came_from}"}
        return requests.post(
            f"{url}/login",
            data={"username": "alice", "password": password},
            headers=headers,
            timeout=5,
        )

    guesser, owner = "9.9.9.9", "8.8.8.8"
    assert [sign_in(f"guess {n}", guesser).status_code for n in range(5)] == [400] * 5
    shut_out = sign_in("right", guesser)
    assert shut_out.status_code == 429
    assert 1 <= int(shut_out.headers["Retry-After"]) <= 2
    assert sign_in("right", owner).status_code == 200
    time.sleep(1.1)
    assert sign_in("wrong again", guesser).status_code == 400
    assert int(sign_in("right", guesser).headers["Retry-After"]) == 2
