"""Sign-in with Hugging Face: Chromium, a Space's HTTPS proxy and a local OpenID provider, over real HTTP.

The proxy ends TLS, as Hugging Face's does, so that the session's cookie (Secure, SameSite=None) and the redirect to
https://SPACE_HOST are the real ones.
"""

import json
import sys

import gradio_client
import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ask
from support.openid_provider import CLIENT_ID, CLIENT_SECRET, provider
from support.programs import free_port
from support.scripted_engine import ScriptedEngine, chat_stream
from support.scripted_platform import platform

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")

LOG = "what the engine said, with key-marked in it"


@pytest.fixture(scope="module")
def engine():
    with ScriptedEngine(lambda path, body: chat_stream("Hello")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def hugging_face():
    with provider() as url:
        yield url


@pytest.fixture
def a_space(page, engine, hugging_face, tmp_path):
    """a_space(OAUTH_ALLOWED="...") -> the https address of a Space with sign-in, in front of the scripted engine."""
    with platform(tmp_path) as site:

        def start(**env: str) -> str:
            (tmp_path / "engine.log").write_text(LOG)
            (tmp_path / "status.json").write_text(json.dumps({"state": "ready", "phase": ""}))
            known = {
                "SPACE_ID": "owner/my-space",
                "SPACE_HOST": site.url.removeprefix("https://"),
                "SYSTEM": "spaces",
                "OAUTH_SCOPES": "openid profile",
                "OAUTH_CLIENT_ID": CLIENT_ID,
                "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
                "OPENID_PROVIDER_URL": hugging_face,
                "ENGINE_RUN_DIR": str(tmp_path),
                "MODEL_API_KEY": "key-marked",
            }
            site.space_port = int(page(engine.url, **known | env).rpartition(":")[2])
            return site.url

        yield start


@pytest.fixture
def browser_tab(chromium):
    context = chromium.new_context(
        ignore_https_errors=True, viewport={"width": 1280, "height": 800}
    )
    yield context.new_page()
    context.close()


def sign_in(tab, name: str) -> None:
    """Through the provider's form and back."""
    tab.get_by_role("link", name="Sign in with Hugging Face").click()
    tab.get_by_label("Name").fill(name)
    tab.get_by_role("button", name="Authorize").click()


def cookies(tab) -> dict[str, str]:
    return {one["name"]: one["value"] for one in tab.context.cookies()}


def opens(url: str, path: str, jar: dict[str, str] | None = None, **body: object) -> int:
    method = "POST" if body else "GET"
    return requests.request(
        method, url + path, json=body or None, cookies=jar, verify=False, timeout=10
    ).status_code


DOORS = [
    ("/config", {}),
    ("/gradio_api/info", {}),
    ("/gradio_api/queue/data?session_hash=x", {}),
    ("/gradio_api/queue/join", {"data": ["Hi"], "fn_index": 0, "session_hash": "x"}),
    ("/gradio_api/call/chat", {"data": ["Hi"]}),
    ("/gradio_api/call/complete", {"data": ["Hi"]}),
    ("/gradio_api/run/chat", {"data": ["Hi"]}),
    ("/gradio_api/api/chat", {"data": ["Hi"]}),
    ("/gradio_api/upload", {"x": 1}),
    ("/gradio_api/file=/etc/hostname", {}),
    ("/gradio_api/mcp/", {"jsonrpc": "2.0", "method": "tools/list", "id": 1}),
    ("/gradio_api/mcp/sse", {}),
    ("/gradio_api/heartbeat/x", {}),
    ("/monitoring", {}),
    ("/theme.css", {}),
    ("/assets/x.js", {}),
]


def check_closed(url: str, jar: dict[str, str] | None = None) -> None:
    for path, body in DOORS:
        assert opens(url, path, jar, **body) == 401, path


@pytest.mark.parametrize(
    ("allowed", "name"),
    [("Alice, other", "alice"), ("team", "bob"), ("*", "mallory")],
    ids=["user", "team", "anyone"],
)
def test_who_is_allowed_comes_in_and_out_again(a_space, browser_tab, engine, allowed, name):
    url = a_space(OAUTH_ALLOWED=allowed)
    check_closed(url)
    assert opens(url, "/healthz") == 200
    browser_tab.goto(url)
    expect(
        browser_tab.get_by_text(f"open {url}")
    ).to_be_visible()  # where the browser blocks cookies in frames
    sign_in(browser_tab, name)
    expect(browser_tab.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
    ask(browser_tab, "Hi")
    expect(browser_tab.locator("#chatbot")).to_contain_text("Hello")
    browser_tab.get_by_role("tab", name="Status").click()
    expect(browser_tab.locator("#facts")).to_contain_text("Engine")
    expect(browser_tab.get_by_text("Engine log")).to_be_hidden()  # the owner's alone

    signed_in = cookies(browser_tab)
    assert opens(url, "/config", signed_in) == 200
    browser_tab.get_by_role("button", name=f"Logout ({name})").click()
    expect(browser_tab.get_by_role("link", name="Sign in with Hugging Face")).to_be_visible()
    check_closed(url, cookies(browser_tab))


def test_who_is_not_allowed_is_told_so_and_gets_nothing(a_space, browser_tab):
    url = a_space(OAUTH_ALLOWED="alice,team")
    browser_tab.goto(url)
    sign_in(
        browser_tab, "mallory"
    )  # who belongs to an organisation that is called alice, and is not
    expect(browser_tab.get_by_role("alert")).to_contain_text(
        "signed in to Hugging Face as mallory, who may not use"
    )
    check_closed(url, cookies(browser_tab))
    browser_tab.get_by_role("link", name="Sign out").click()
    sign_in(browser_tab, "bob")
    expect(browser_tab.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)


def test_the_owner_sees_the_engines_log_and_a_password_opens_too(a_space, browser_tab):
    url = a_space(OAUTH_ALLOWED="owner", APP_USERNAME="carol", APP_PASSWORD="right")
    browser_tab.goto(url)
    expect(browser_tab.get_by_label("Password")).to_be_visible()  # both ways in at once
    sign_in(browser_tab, "owner")
    expect(browser_tab.get_by_placeholder("Type a message")).to_be_visible(timeout=20_000)
    browser_tab.get_by_role("tab", name="Status").click()
    browser_tab.get_by_text("Engine log").click()
    expect(browser_tab.locator(".cm-content").last).to_contain_text(
        "what the engine said, with *** in it"
    )
    client = gradio_client.Client(url, auth=("carol", "right"), verbose=False, ssl_verify=False)
    assert client.predict("Hi", api_name="/chat") == "Hello"


def test_a_sign_in_that_fails_is_a_sentence(a_space, browser_tab):
    url = a_space(OAUTH_ALLOWED="*")
    browser_tab.goto(f"{url}/login/callback?error=access_denied&state=x")
    expect(browser_tab.get_by_role("alert")).to_contain_text(
        "Hugging Face has not signed you in. Try again."
    )
    for cookie in (
        "x",
        "eyJvYXV0aF9pbmZvIjogeyJ1c2VyaW5mbyI6IHsicHJlZmVycmVkX3VzZXJuYW1lIjogImFsaWNlIn19fQ==.x.y",
    ):
        check_closed(url, {"session": cookie})
    browser_tab.get_by_role("link", name="Sign in with Hugging Face").click()
    expect(browser_tab.get_by_label("Name")).to_be_visible()
    state = browser_tab.url.split("state=")[1].split("&")[0]
    browser_tab.goto(f"{url}/login/callback?code=forged&state={state}")
    expect(browser_tab.get_by_role("alert")).to_contain_text("Hugging Face has not signed you in")


def test_a_provider_that_is_down_is_a_sentence(page, engine):
    known = {
        "SPACE_ID": "owner/x",
        "OAUTH_SCOPES": "openid",
        "OAUTH_CLIENT_ID": "x",
        "OAUTH_CLIENT_SECRET": "x",
    }
    known["SYSTEM"] = "spaces"
    url = page(engine.url, OAUTH_ALLOWED="*", OPENID_PROVIDER_URL="http://127.0.0.1:9", **known)
    answer = requests.get(f"{url}/login/huggingface", timeout=10)
    assert answer.status_code == 502
    assert "Hugging Face has not signed you in" in answer.text


@pytest.mark.parametrize(
    "env", [{}, {"SPACE_ID": "owner/x", "SYSTEM": "spaces"}], ids=["at home", "no hf_oauth"]
)
@pytest.mark.parametrize(
    "command", [["bash", "start.sh"], [sys.executable, "app.py"]], ids=["start.sh", "app.py"]
)
def test_sign_in_works_only_on_a_space_with_oauth(program, command, env):
    running = program(
        [*command, "--port", str(free_port())],
        OAUTH_ALLOWED="*",
        MODEL_URL="http://127.0.0.1:9",
        **env,
    )
    assert running.process.wait(20) == 2
    assert "hf_oauth: true" in running.output
    assert "Traceback" not in running.output
