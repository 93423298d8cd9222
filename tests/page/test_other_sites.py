"""Attacks from other web sites in the visitor's browser: Chromium, with and without cookies there.

Over TLS, Hugging Face's names stand for this machine (see scripted_platform.py). Over plain http, a
name on the local network does.
"""

import json

import pytest
import requests
from playwright.sync_api import Page, expect

from support.chromium import message_box, sign_in
from support.http_server import QuietHandler, serving
from support.openid_provider import CLIENT_ID, CLIENT_SECRET, provider
from support.programs import wait_for
from support.scripted_engine import ScriptedEngine, chat_stream
from support.scripted_platform import platform

LAN_NAME = "chat.lan.test"
LAN_FLAGS = ["--host-resolver-rules=MAP *.test 127.0.0.1"]

# What a script of another site tries: read, ask, ask without reading the answer, and sign out.
ATTACK = """async (space) => {
  const ask = { method: "POST", body: JSON.stringify({ data: ["MARKED"] }) };
  const json = { headers: { "Content-Type": "application/json" } };
  const attempts = {
    user: ["gradio_api/user", {}],
    config: ["config", {}],
    ask: ["gradio_api/call/chat", { ...ask, ...json }],
    ask_blindly: ["gradio_api/call/chat", { ...ask, mode: "no-cors" }],
    sign_out: ["logout", { method: "POST", mode: "no-cors" }],
    sign_in: ["login", { method: "POST", mode: "no-cors", body: new URLSearchParams(
      { username: "mallory", password: "pw-mallory" }) }],
  };
  const read = {};
  for (const [name, [path, options]] of Object.entries(attempts)) {
    try {
      const response = await fetch(space + path, { credentials: "include", ...options });
      if (response.type !== "opaque" && response.ok) read[name] = await response.text();
    } catch {}
  }
  return read;
}"""


@pytest.fixture(scope="module")
def engine():
    with ScriptedEngine(lambda path, body: chat_stream("Hello")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def site(shared_page, engine, tmp_path_factory):
    """A Space behind TLS with both kinds of sign-in."""
    with provider() as hugging_face, platform(tmp_path_factory.mktemp("certificate")) as site:
        url = shared_page(
            engine.url,
            SPACE_ID="me/my-space",
            SPACE_HOST=site.space_host,
            SYSTEM="spaces",
            OAUTH_SCOPES="openid profile",
            OAUTH_CLIENT_ID=CLIENT_ID,
            OAUTH_CLIENT_SECRET=CLIENT_SECRET,
            OPENID_PROVIDER_URL=hugging_face,
            OAUTH_ALLOWED="owner",
            APP_USERS="alice:pw-alice,mallory:pw-mallory",
        )
        site.space_port = int(url.rpartition(":")[2])
        yield site


def sign_in_with(tab: Page, kind: str) -> str:
    """Sign in, and return the name."""
    if kind == "password":
        sign_in(tab, "alice", "pw-alice")
        return "alice"
    tab.get_by_role("link", name="Sign in with Hugging Face").click()
    tab.get_by_label("Name").fill("owner")
    tab.get_by_role("button", name="Authorize").click()
    return "owner"


def user_of(tab: Page) -> str | None:
    """Who is signed in, as the page's own script can see."""
    return json.loads(tab.evaluate("fetch('gradio_api/user').then(answer => answer.text())"))


@pytest.mark.parametrize("cookies", ["third-party cookies", "no third-party cookies"])
@pytest.mark.parametrize("kind", ["password", "Hugging Face"])
def test_another_site_cannot_act_as_the_user(site, engine, browse, kind, cookies):
    tab = browse(site.browser_flags, profile=cookies == "third-party cookies")
    tab.goto(site.space_page)
    name = sign_in_with(tab, kind)
    expect(message_box(tab)).to_be_visible(timeout=20_000)
    assert user_of(tab) == name
    for cookie in tab.context.cookies(site.space_page):
        assert cookie.get("partitionKey"), cookie["name"]

    engine.requests.clear()
    other = tab.context.new_page()
    other.goto(site.other_page)
    assert other.evaluate(ATTACK, site.space_page) == {}
    form = f"<form method=post action='{site.space_page}logout'><button>Win</button></form>"
    other.set_content(form)
    other.get_by_role("button", name="Win").click()
    expect(other.locator("body")).to_contain_text("Another web site sent this request")
    assert user_of(tab) == name
    assert engine.requests == []


def test_another_site_can_link_but_not_frame(site, browse):
    tab = browse(site.browser_flags, profile=True)
    tab.goto(site.other_page)
    refused = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.evaluate(f"document.body.innerHTML = `<iframe src='{site.space_page}'></iframe>`")
    wait_for(lambda: "frame-ancestors" in "".join(refused) or tab.wait_for_timeout(50), 10, "a no")
    tab.evaluate(f"document.body.innerHTML = `<a href='{site.space_page}'>The Space</a>`")
    tab.get_by_role("link", name="The Space").click()
    assert sign_in_with(tab, "password") == "alice"
    expect(message_box(tab)).to_be_visible(timeout=20_000)


@pytest.fixture(scope="module")
def lan_page(shared_page, engine):
    """(URL of a page in a local network, where everyone may chat; the same with sign-in)."""
    proxied = {"FORWARDED_ALLOW_IPS": "127.0.0.1"}  # so that it answers to that name
    users = {"APP_USERS": "alice:pw-alice,mallory:pw-mallory"}
    urls = [shared_page(engine.url, **proxied), shared_page(engine.url, **proxied, **users)]
    return [f"http://{LAN_NAME}:{url.rpartition(':')[2]}/" for url in urls]


class EmptyPage(QuietHandler):
    def do_GET(self) -> None:
        self.reply(200, "<!doctype html>", "text/html")


@pytest.mark.parametrize("name", [LAN_NAME, "evil.test"])
def test_plain_http_is_protected_too(lan_page, engine, browse, name):
    """Another port of the same host, to which browsers send the same cookies; and another host."""
    open_page, private_page = lan_page
    flags = [*LAN_FLAGS, "--disable-features=LocalNetworkAccessChecks"]
    tab = browse(flags, profile=True)
    tab.goto(private_page)
    sign_in_with(tab, "password")
    expect(message_box(tab)).to_be_visible(timeout=20_000)
    engine.requests.clear()
    with serving(EmptyPage) as other_port:
        other = tab.context.new_page()
        other.goto(f"http://{name}:{other_port.server_port}/")
        for space in (open_page, private_page):
            assert other.evaluate(ATTACK, space) == {}
    assert user_of(tab) == "alice"
    assert engine.requests == []


def test_rebound_name_gets_no_page(shared_page, engine, browse):
    url = shared_page(engine.url)
    tab = browse(LAN_FLAGS)
    tab.goto(f"http://evil.test:{url.rpartition(':')[2]}/")
    expect(tab.locator("body")).to_contain_text("does not answer to the name 'evil.test'")
    answer = requests.get(f"{url}/config", headers={"Host": "evil.test"}, timeout=10)
    assert answer.status_code == 421
    assert requests.get(f"{url}/config", headers={"Host": "localhost"}, timeout=10).ok
