"""Hostile text from a model or a visitor, in Chromium: it runs no script and contacts no site."""

import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask, open_tab
from support.http_server import QuietHandler, serving
from support.programs import wait_for
from support.scripted_engine import ScriptedEngine, chat_event, chat_stream

END = "That was all."


class OtherSite(QuietHandler):
    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        image = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        self.reply(200, image, "image/svg+xml", Access_Control_Allow_Origin="*")

    do_POST = do_GET


@pytest.fixture
def other_site():
    """Another site; `requested` are the paths that it was asked for."""
    with serving(OtherSite) as server:
        server.requested = []
        yield server


def hostile(site: str) -> str:
    """Markdown and HTML that try to run a script or to contact `site`."""
    return f"""
<script>window.ran = "script"</script><script src="{site}/script.js"></script>
<img src=x onerror="window.ran = 'onerror'">
<img src="{site}/img.png" srcset="{site}/srcset.png 2x">
<svg onload="window.ran = 'svg'"><image href="{site}/svg.png"/><use href="{site}/use.svg#x"/>
<script>window.ran = "svg script"</script>
<animate onbegin="window.ran = 'animate'" attributeName="x" dur="1s"/></svg>
<iframe src="{site}/frame"></iframe>
<iframe srcdoc="<script>parent.ran = 'srcdoc'</script>"></iframe>
<object data="{site}/object"></object><embed src="{site}/embed">
<link rel=stylesheet href="{site}/link.css">
<style>@import url("{site}/import.css"); body {{ background: url("{site}/style.png") }}</style>
<b style="background: url('{site}/inline.png')">bold</b>
<input type=image src="{site}/input.png" autofocus onfocus="window.ran = 'focus'">
<video src="{site}/video" poster="{site}/poster.png" autoplay></video>
<audio src="{site}/audio" autoplay></audio>
<details open ontoggle="window.ran = 'toggle'">x</details>
<meta http-equiv=refresh content="0; url={site}/refresh"><base href="{site}/">
<math><mtext><table><mglyph><style><img src=x onerror="window.ran = 'mutation'">
</style></mglyph></table></mtext></math>

![image]({site}/markdown.png) ![through this page](/gradio_api/file={site}/through.png)
![reference][1] [a link](javascript:window.ran='link')
<a href="javascript:window.ran='anchor'">an anchor</a>
<a href="data:text/html,<script>opener.ran='data'</script>">data</a>
<form action="{site}/form"><button>go</button></form>

[1]: {site}/reference.png

```html
<script>window.ran = "code"</script>
```

$$\\href{{javascript:window.ran='latex'}}{{x}} \\includegraphics{{{site}/latex.png}}$$

{END}
"""


def test_hostile_text_neither_runs_nor_leaks(engine, tab, other_site):
    text = hostile(other_site.url)
    popups = []

    def script(path, body):
        yield chat_event(reasoning=text)
        yield from chat_stream(*text.splitlines(keepends=True))

    engine.script = script
    tab.on("popup", lambda popup: popups.append(popup.url))
    ask(tab, text)
    expect(tab.locator(ANSWER).last).to_contain_text(END)
    tab.get_by_role("button", name="Thought").click()
    open_tab(tab, "Compare")
    tab.get_by_placeholder("One prompt").fill("Hi")
    tab.keyboard.press("Enter")
    for answer in tab.locator(".compared").all()[:2]:
        expect(answer).to_contain_text(END)
    for link in tab.locator("a:not([href^='http'])").filter(has_text="a").all():
        assert not (link.get_attribute("href") or "").startswith(("javascript:", "data:"))
    # Whatever the text started would have got this far before the page's own request is answered.
    tab.evaluate("() => fetch('healthz').then(() => new Promise(requestAnimationFrame))")
    assert tab.evaluate("window.ran") is None
    assert other_site.requested == []
    assert popups == []
    assert tab.url.startswith("http://127.0.0.1")


def test_owner_allows_images_of_another_site(page, visit, other_site):
    script = lambda path, body: chat_stream(f"![image]({other_site.url}/image.png)")  # noqa: E731
    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url, APP_IMAGE_ORIGINS=other_site.url))
        ask(tab, "Hi")
        wait_for(lambda: "/image.png" in other_site.requested, 10, "the image")


@pytest.mark.parametrize("path", ["file=", "file/", "proxy=", "file=%20"])
def test_server_fetches_nothing_for_visitors(url, other_site, path):
    upper_case = other_site.url.replace("http", "HTTP")
    for site in (other_site.url, upper_case, "https://outside.example"):
        answer = requests.get(f"{url}/gradio_api/{path}{site}/x", timeout=10)
        assert answer.status_code in (400, 403, 404), site
    assert other_site.requested == []
