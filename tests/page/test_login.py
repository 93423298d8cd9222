"""Password sign-in in front of the page and all of Gradio's endpoints, over HTTP."""

import http.client
import time
from urllib.parse import urlsplit

import gradio_client
import pytest
import requests

from support.scripted_engine import ScriptedEngine, chat_stream

MIB = 2**20


@pytest.fixture(scope="module")
def engine():
    with ScriptedEngine(lambda path, body: chat_stream("Hello", " you")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine):
    logins = {"APP_USERNAME": "alice", "APP_PASSWORD": "right", "APP_USERS": "bob:other:word"}
    return shared_page(engine.url, **logins)


@pytest.fixture(scope="module")
def space_url(shared_page, engine):
    """A page that takes the requests of these tests for those of the platform's proxy."""
    return shared_page(engine.url, APP_USERNAME="alice", APP_PASSWORD="right", SPACE_ID="me/x")


def sign_in(url: str, name: str, password: str, **headers: str) -> requests.Response:
    return requests.post(
        f"{url}/login",
        data={"username": name, "password": password},
        headers={f"X-Forwarded-{header}": value for header, value in headers.items()},
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


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_signing_out_shows_the_login_page(url, method):
    with requests.Session() as visitor:
        visitor.post(f"{url}/login", data={"username": "bob", "password": "other:word"}, timeout=5)
        assert visitor.get(f"{url}/gradio_api/user", timeout=5).json() == "bob"
        copied = dict(visitor.cookies)
        visitor.request(method, f"{url}/logout", timeout=5)
        assert "password" in visitor.get(url, timeout=5).text
        assert visitor.get(f"{url}/config", timeout=5).status_code == 401
    assert requests.get(f"{url}/config", cookies=copied, timeout=5).status_code == 401


def test_huge_files_are_rejected_early(url):
    """A form with a file would otherwise fill the disk, without signing in."""
    sent = 0

    def body():
        nonlocal sent
        yield b"--x\r\nContent-Disposition: form-data; name=username; filename=x\r\n\r\n"
        while sent < 10 * MIB:
            sent += MIB
            yield b"x" * MIB

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for content, length in ((body(), {}), (b"x", {"Content-Length": str(400 * MIB)})):
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=5)
        connection.request("POST", "/login", content, headers | length, encode_chunked=not length)
        assert connection.getresponse().status == 413
        connection.close()


def test_guessing_is_slowed_per_address(space_url):
    # A proxy appends the address it sees to what the client sends.
    guesser, owner = {"For": "1.2.3.4, 9.9.9.9"}, {"For": "9.9.9.9, 8.8.8.8"}
    guesses = [sign_in(space_url, "alice", f"guess {number}", **guesser) for number in range(5)]
    assert [response.status_code for response in guesses] == [400] * 5
    rejected = sign_in(space_url, "alice", "right", **guesser)
    assert rejected.status_code == 429
    assert rejected.headers["Retry-After"] == "1"
    assert sign_in(space_url, "alice", "right", **owner).status_code == 200
    time.sleep(1.1)
    assert sign_in(space_url, "alice", "wrong again", **guesser).status_code == 400
    assert sign_in(space_url, "alice", "right", **guesser).headers["Retry-After"] == "2"


def test_cookies_are_secure_behind_proxies(space_url):
    response = sign_in(space_url, "alice", "right", Proto="https,http")
    cookies = response.raw.headers.getlist("set-cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        attributes = {"HttpOnly", "SameSite=none", "Secure", "Partitioned"}
        assert attributes <= set(cookie.split("; "))


def test_invented_addresses_are_not_trusted(url):
    """No proxy is named, so these all come from this machine."""
    for number in range(5):
        address = f"198.51.100.{number}"
        assert sign_in(url, "bob", f"guess {number}", For=address).status_code == 400
    assert sign_in(url, "bob", "other:word", For="198.51.100.9").status_code == 429
