"""What a model or a visitor writes, in a real Chromium: nothing of it runs, and no request leaves for another site."""

import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.http_server import QuietHandler, serving
from support.programs import wait_for
from support.scripted_engine import ScriptedEngine, chat_stream, event

END = "That was all."


class OtherSite(QuietHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        picture = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        self.reply(200, picture, "image/svg+xml", Access_Control_Allow_Origin="*")

    do_POST = do_GET


@pytest.fixture
def outside():
    """Another site, on this machine: `outside.asked` are the paths that a browser came for."""
    with serving(OtherSite) as server:
        server.asked = []
        yield server


def hostile(site: str) -> str:
    """An answer that tries to run a script, and to reach `site`, in every way that Markdown and HTML offer."""
    return f"""
<script>window.ran = "script"</script><script src="{site}/script.js"></script>
<img src=x onerror="window.ran = 'onerror'"> <img src="{site}/img.png" srcset="{site}/srcset.png 2x">
<svg onload="window.ran = 'svg'"><image href="{site}/svg.png"/><use href="{site}/use.svg#x"/>
<script>window.ran = "svg script"</script><animate onbegin="window.ran = 'animate'" attributeName="x" dur="1s"/></svg>
<iframe src="{site}/frame"></iframe><iframe srcdoc="<script>parent.ran = 'srcdoc'</script>"></iframe>
<object data="{site}/object"></object><embed src="{site}/embed"><link rel=stylesheet href="{site}/link.css">
<style>@import url("{site}/import.css"); body {{ background: url("{site}/style.png") }}</style>
<b style="background: url('{site}/inline.png')">bold</b> <input type=image src="{site}/input.png" autofocus
onfocus="window.ran = 'focus'"><video src="{site}/video" poster="{site}/poster.png" autoplay></video>
<audio src="{site}/audio" autoplay></audio><details open ontoggle="window.ran = 'toggle'">x</details>
<meta http-equiv=refresh content="0; url={site}/refresh"><base href="{site}/">
<math><mtext><table><mglyph><style><img src=x onerror="window.ran = 'mutation'"></style></mglyph></table></mtext></math>

![picture]({site}/markdown.png) ![through this page](/gradio_api/file={site}/through.png)
![reference][1] [a link](javascript:window.ran='link') <a href="javascript:window.ran='anchor'">an anchor</a>
<a href="data:text/html,<script>opener.ran='data'</script>">data</a>
<form action="{site}/form"><button>go</button></form>

[1]: {site}/reference.png

```html
<script>window.ran = "code"</script>
```

$$\\href{{javascript:window.ran='latex'}}{{x}} \\includegraphics{{{site}/latex.png}}$$

{END}
"""


def test_nothing_in_an_answer_runs_or_leaves(page, visit, outside):
    answer = hostile(outside.url)

    def script(path, body):
        yield event(choices=[{"delta": {"reasoning": answer}, "finish_reason": None}])
        yield from chat_stream(*answer.splitlines(keepends=True))

    with ScriptedEngine(script).running() as engine:
        tab = visit(page(engine.url))
        popups = []
        tab.on("popup", lambda popup: popups.append(popup.url))
        ask(
            tab, hostile(outside.url)
        )  # in the question, in the thinking, and in the answer, which arrives in pieces
        expect(tab.locator(ANSWER).last).to_contain_text(END)
        tab.get_by_role("button", name="Thought").click()
        tab.get_by_role("tab", name="Compare").click()
        tab.get_by_placeholder("One prompt").fill("Hi")
        tab.keyboard.press("Enter")
        for compared in tab.locator(".compared").all()[:2]:
            expect(compared).to_contain_text(END)
        for link in tab.locator("a:not([href^='http'])").filter(has_text="a").all():
            assert not (link.get_attribute("href") or "").startswith(("javascript:", "data:"))
        tab.wait_for_timeout(1000)
        assert tab.evaluate("window.ran") is None
        assert outside.asked == []
        assert popups == []
        assert tab.url.startswith("http://127.0.0.1")


def test_pictures_come_from_the_sites_that_the_owner_names(page, visit, outside):
    with ScriptedEngine(
        lambda path, body: chat_stream(f"![picture]({outside.url}/markdown.png)")
    ).running() as engine:
        tab = visit(page(engine.url, APP_IMAGE_ORIGINS=outside.url))
        ask(tab, "Hi")
        wait_for(lambda: "/markdown.png" in outside.asked, 10, "the picture")


def test_this_page_fetches_nothing_for_a_visitor(page, outside):
    with ScriptedEngine().running() as engine:
        url = page(engine.url)
        for path in (
            "/gradio_api/file=",
            "/gradio_api/file/",
            "/gradio_api/proxy=",
            "/gradio_api/file=%20",
        ):
            for site in (
                outside.url,
                outside.url.replace("http", "HTTP"),
                "https://outside.example",
            ):
                assert requests.get(f"{url}{path}{site}/x", timeout=10).status_code in (
                    400,
                    403,
                    404,
                ), path
        assert outside.asked == []
