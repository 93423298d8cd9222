"""Routes every request on the port to the health check, the API gateway or the page.

It wraps Gradio's whole application, including Gradio's own middleware (see gradio_app.GradioApp).
"""

from __future__ import annotations

import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space import api_paths
from vllm_space.gateway import Gateway
from vllm_space.health import Health

HEALTH = ("/healthz", "/health")  # the second is vLLM's, which its clients ask for
API = "/gradio_api"  # Gradio's prefix, also of its MCP server

# What browsers, Gradio's clients and MCP clients need -> methods. All other routes of Gradio are
# blocked: they write conversations to disk, keep recordings and run ffmpeg, fetch files from other
# sites, call methods of components, or report on other visitors.
ROUTES = [
    (re.compile(pattern), frozenset(methods.split()))
    for pattern, methods in (
        (r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json", "GET HEAD"),
        (r"/(assets|static|svelte)/.+", "GET HEAD"),
        (r"/login", "GET HEAD POST"),
        (r"/login/(huggingface|callback)", "GET"),
        (r"/logout", "GET POST"),
        (rf"{API}/(info|startup-events|user|login_check|app_id|theme\.css)/?", "GET"),
        (rf"{API}/(call/(v2/)?|run/|api/)[^/]+/?|{API}/(queue/join|cancel|reset/?)", "POST"),
        (rf"{API}/call/(v2/)?[^/]+/[^/]+|{API}/queue/data|{API}/heartbeat/[^/]+", "GET"),
        (rf"{API}/upload", "POST"),
        (rf"{API}/upload_progress", "GET"),
        (rf"{API}/file=/.+", "GET HEAD"),  # not from http://...: gradio#13593
        (rf"{API}/mcp(/.*)?", "GET HEAD POST DELETE"),
    )
]
# `gradio app.py` reloads the page on every change. The endpoint polls 20 times a second.
RELOAD = (re.compile(rf"{API}/dev/reload"), frozenset({"GET"}))


class Ingress:
    """ASGI app: the health check, the API gateway, or else the page, which is Gradio's.

    `development` says whether `gradio app.py` runs the page.
    """

    def __init__(self, page: ASGIApp, health: Health, gateway: Gateway, development: bool):
        self.page = page
        self.health = health
        self.gateway = gateway
        self.routes = [*ROUTES, RELOAD] if development else ROUTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # Gradio has none
            return await send({"type": "websocket.close", "code": 1008})
        app = self._app(scope["path"], scope["method"]) if scope["type"] == "http" else self.page
        return await app(scope, receive, send)

    def _app(self, path: str, method: str) -> ASGIApp:
        """The app that handles a request."""
        if path in HEALTH:
            return self.health
        if api_paths.serves(path):
            return self.gateway
        matches = [methods for pattern, methods in self.routes if pattern.fullmatch(path)]
        allowed = frozenset[str]().union(*matches)
        if not allowed:
            return JSONResponse({"detail": "Not Found"}, 404)
        if method not in allowed:
            headers = {"Allow": ", ".join(sorted(allowed))}
            return JSONResponse({"detail": "Method Not Allowed"}, 405, headers)
        return self.page
