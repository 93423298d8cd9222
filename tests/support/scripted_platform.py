"""Hugging Face in front of a Space, locally, under its real names.

A TLS reverse proxy adds the platform's headers. On another site, the Hub's page shows the Space in
an iframe. On a third one there is an empty page, for attacks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from support.aiohttp_server import serving
from support.certificates import self_signed

SPACE_NAME = "me-my-space.hf.space"
HUB_NAME = "huggingface.co"
OTHER_NAME = "evil.example"
VISITOR = "203.0.113.7"  # reserved for documentation
HOP_BY_HOP = set(
    "connection keep-alive transfer-encoding upgrade te trailer content-length".split()
)
SESSION = web.AppKey("session", aiohttp.ClientSession)
HUB_PAGE = """<!doctype html><title>Hub</title>
<iframe src="https://{}/" style="width:100%;height:90vh;border:0"></iframe>"""


@dataclass
class Platform:
    space_port: int | None  # where the Space listens; can be set after the proxy has started
    port: int = 0

    space_host: str = SPACE_NAME  # the value of SPACE_HOST
    space_page: str = f"https://{SPACE_NAME}/"
    hub_page: str = f"https://{HUB_NAME}/spaces/me/my-space"
    other_page: str = f"https://{OTHER_NAME}/"

    @property
    def browser_flags(self) -> list[str]:
        """With these, Chromium finds the three sites here."""
        names = (SPACE_NAME, HUB_NAME, OTHER_NAME)
        rules = ", ".join(f"MAP {name}:443 127.0.0.1:{self.port}" for name in names)
        return [f"--host-resolver-rules={rules}"]

    @property
    def url(self) -> str:
        """The Space's URL for programs that cannot resolve names under localhost."""
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def platform(folder: Path, space_port: int | None = None, prefix: str = "") -> Iterator[Platform]:
    """Proxy to `space_port`. A prefix is required in every path and removed, as nginx can do."""
    site = Platform(space_port)

    async def forward(request: web.Request) -> web.StreamResponse:
        if request.host == HUB_NAME:
            html = HUB_PAGE.format(f"{SPACE_NAME}{prefix}")
            return web.Response(text=html, content_type="text/html")
        if request.host == OTHER_NAME:
            return web.Response(text="<!doctype html>", content_type="text/html")
        if not request.raw_path.startswith(prefix):
            return web.Response(status=418, text=f"{request.path} is not under {prefix}")
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP
        }
        forwarded_for = request.headers.get("X-Forwarded-For")
        headers |= {
            "X-Forwarded-For": f"{forwarded_for}, {VISITOR}" if forwarded_for else VISITOR,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": request.host,
            "X-Forwarded-Port": str(site.port),
            "X-Request-Id": "Root=1-rehearsal",
        }
        path = request.raw_path.removeprefix(prefix) or "/"
        url = f"http://127.0.0.1:{site.space_port}{path}"
        body = await request.read()
        try:
            async with request.app[SESSION].request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in HOP_BY_HOP:
                        response.headers.add(name, value)
                await response.prepare(request)
                with suppress(aiohttp.ClientPayloadError):  # the Space broke off
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                return response
        except aiohttp.ClientConnectorError:
            return web.Response(status=503, text="the Space does not answer")

    async def session(app: web.Application) -> AsyncIterator[None]:
        app[SESSION] = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        yield
        await app[SESSION].close()

    app = web.Application(client_max_size=2**28)
    app.router.add_route("*", "/{path:.*}", forward)
    app.cleanup_ctx.append(session)
    with serving(app, self_signed(folder, SPACE_NAME)[1]) as site.port:
        yield site
