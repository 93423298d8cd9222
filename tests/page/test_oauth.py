"""Sign-in with Hugging Face: Chromium, a Space's HTTPS proxy and a local OpenID provider.

The proxy terminates TLS, as Hugging Face's does, so the session cookie (Secure, SameSite=None) and
the redirect to https://SPACE_HOST are the real ones.
"""

import json
import sys

import gradio_client
import pytest
import requests
from playwright.sync_api import Page, expect

from support.chromium import ask, message_box, open_tab
from support.openid_provider import CLIENT_ID, CLIENT_SECRET, provider
from support.programs import free_port
from support.scripted_engine import ScriptedEngine, chat_stream
from support.scripted_platform import SPACE_NAME, platform

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")

ENGINE_LOG = "what the engine logged, with key-marked in it"


@pytest.fixture(scope="module")
def engine():
    with ScriptedEngine(lambda path, body: chat_stream("Hello")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def hugging_face():
    with provider() as url:
        yield url


def oauth_variables(provider_url: str) -> dict[str, str]:
    """What the platform sets in a Space with `hf_oauth: true`."""
    return {
        "SPACE_ID": "owner/my-space",
        "SYSTEM": "spaces",
        "OAUTH_SCOPES": "openid profile",
        "OAUTH_CLIENT_ID": CLIENT_ID,
        "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
        "OPENID_PROVIDER_URL": provider_url,
    }


@pytest.fixture
def site(tmp_path):
    with platform(tmp_path) as site:
        yield site


@pytest.fixture
def start_space(page, engine, hugging_face, tmp_path, site):
    """start_space(OAUTH_ALLOWED="...") -> the https URL of a Space with sign-in."""

    def start(**variables: str) -> str:
        (tmp_path / "engine.log").write_text(ENGINE_LOG)
        (tmp_path / "status.json").write_text(json.dumps({"state": "ready", "phase": ""}))
        defaults = oauth_variables(hugging_face) | {
            "SPACE_HOST": site.url.removeprefix("https://"),
            "ENGINE_RUN_DIR": str(tmp_path),
            "MODEL_API_KEY": "key-marked",
        }
        site.space_port = int(page(engine.url, **defaults | variables).rpartition(":")[2])
        return site.url

    return start


@pytest.fixture
def tab(chromium):
    context = chromium.new_context(
        ignore_https_errors=True, viewport={"width": 1280, "height": 800}
    )
    yield context.new_page()
    context.close()


def authorize_as(tab: Page, name: str) -> None:
    """Sign in with Hugging Face, through the provider's form."""
    tab.get_by_role("link", name="Sign in with Hugging Face").click()
    tab.get_by_label("Name").fill(name)
    tab.get_by_role("button", name="Authorize").click()


def expect_chat(tab: Page) -> None:
    expect(message_box(tab)).to_be_visible(timeout=20_000)


def expect_alert(tab: Page, text: str) -> None:
    expect(tab.get_by_role("alert")).to_contain_text(text)


def cookies_of(tab: Page) -> dict[str, str]:
    return {cookie["name"]: cookie["value"] for cookie in tab.context.cookies()}


def status(url: str, path: str, cookies: dict[str, str] | None = None, **body: object) -> int:
    method = "POST" if body else "GET"
    response = requests.request(
        method, url + path, json=body or None, cookies=cookies, verify=False, timeout=10
    )
    return response.status_code


PRIVATE_PATHS = [
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
    ("/theme.css", {}),
    ("/assets/x.js", {}),
]


def check_signed_out(url: str, cookies: dict[str, str] | None = None) -> None:
    for path, body in PRIVATE_PATHS:
        assert status(url, path, cookies, **body) == 401, path


@pytest.mark.parametrize(
    ("allowed", "name"),
    [("Alice, other", "alice"), ("team", "bob"), ("*", "mallory")],
    ids=["user", "team", "anyone"],
)
def test_allowed_user_signs_in_and_out(start_space, tab, allowed, name):
    url = start_space(OAUTH_ALLOWED=allowed)
    check_signed_out(url)
    assert status(url, "/healthz") == 200
    tab.goto(url)
    direct_link = tab.get_by_role("link", name=url)  # in case the browser blocks cookies in frames
    expect(direct_link).to_be_visible()
    authorize_as(tab, name)
    expect_chat(tab)
    ask(tab, "Hi")
    expect(tab.locator("#chatbot")).to_contain_text("Hello")
    open_tab(tab, "Status")
    expect(tab.locator("#facts")).to_contain_text("Engine")
    expect(tab.get_by_text("Engine log")).to_be_hidden()  # only the owner sees it

    assert status(url, "/config", cookies_of(tab)) == 200
    copied = cookies_of(tab)
    tab.get_by_role("button", name=f"Sign out ({name})").click()
    expect(tab.get_by_role("link", name="Sign in with Hugging Face")).to_be_visible()
    check_signed_out(url, cookies_of(tab))
    check_signed_out(url, copied)


def test_other_users_have_no_access(start_space, tab):
    url = start_space(OAUTH_ALLOWED="alice,team")
    tab.goto(url)
    authorize_as(tab, "mallory")  # a member of an organisation whose display name is "alice"
    expect_alert(
        tab,
        "You are signed in as mallory, but this Space's owner hasn't given you access.",
    )
    check_signed_out(url, cookies_of(tab))
    tab.get_by_role("button", name="Sign out").click()
    authorize_as(tab, "bob")
    expect_chat(tab)


def test_owner_sees_the_engine_log(start_space, tab):
    url = start_space(OAUTH_ALLOWED="owner", APP_USERNAME="carol", APP_PASSWORD="right")
    tab.goto(url)
    expect(tab.get_by_label("Password")).to_be_visible()  # both ways to sign in are offered
    authorize_as(tab, "owner")
    expect_chat(tab)
    open_tab(tab, "Status")
    tab.get_by_text("Engine log").click()
    masked = ENGINE_LOG.replace("key-marked", "***")
    expect(tab.locator(".cm-content").last).to_contain_text(masked)
    client = gradio_client.Client(url, auth=("carol", "right"), verbose=False, ssl_verify=False)
    assert client.predict("Hi", api_name="/chat") == "Hello"


def test_frame_signs_in_in_a_new_tab(start_space, site, browse):
    """Hugging Face does not let its pages be shown in the frame of a Space."""
    start_space(OAUTH_ALLOWED="*", SPACE_HOST=SPACE_NAME)
    tab = browse(site.browser_flags)
    tab.goto(site.hub_page)
    with tab.expect_popup() as opened:
        tab.frame_locator("iframe").get_by_role("link", name="Sign in with Hugging Face").click()
    opened.value.get_by_label("Name").fill("alice")
    opened.value.get_by_role("button", name="Authorize").click()
    expect_chat(opened.value)


def test_failed_sign_in_is_explained(start_space, tab):
    url = start_space(OAUTH_ALLOWED="*")
    tab.goto(f"{url}/login/callback?error=access_denied&state=x")
    expect_alert(tab, "Sign-in with Hugging Face failed. Try again.")
    unsigned = (
        "eyJvYXV0aF9pbmZvIjogeyJ1c2VyaW5mbyI6IHsicHJlZmVycmVkX3VzZXJuYW1lIjogImFsaWNlIn19fQ=="
    )
    for cookie in ("x", f"{unsigned}.x.y"):
        check_signed_out(url, {"session": cookie})
    tab.get_by_role("link", name="Sign in with Hugging Face").click()
    expect(tab.get_by_label("Name")).to_be_visible()
    state = tab.url.split("state=")[1].split("&")[0]
    tab.goto(f"{url}/login/callback?code=forged&state={state}")
    expect_alert(tab, "Sign-in with Hugging Face failed")


def test_unreachable_provider_is_explained(page, engine):
    variables = oauth_variables("http://127.0.0.1:9")
    url = page(engine.url, OAUTH_ALLOWED="*", **variables)
    response = requests.get(f"{url}/login/huggingface", timeout=10)
    assert response.status_code == 502
    assert "Sign-in with Hugging Face failed" in response.text


@pytest.mark.parametrize(
    "env", [{}, {"SPACE_ID": "owner/x", "SYSTEM": "spaces"}], ids=["at home", "no hf_oauth"]
)
@pytest.mark.parametrize(
    "command", [["bash", "start.sh"], [sys.executable, "app.py"]], ids=["start.sh", "app.py"]
)
def test_start_without_oauth_fails(program, command, env):
    command = [*command, "--port", str(free_port())]
    running = program(command, OAUTH_ALLOWED="*", MODEL_URL="http://127.0.0.1:9", **env)
    assert running.process.wait(20) == 2
    assert "hf_oauth: true" in running.output
    assert "Traceback" not in running.output
