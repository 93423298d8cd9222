"""The ingress: what every request to the one port meets first.

It stands before all of Gradio's application, Gradio's own middleware included: gradio_app.GradioApp puts it there.
"""

from __future__ import annotations

import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space.gateway import Gateway
from vllm_space.health import Health

# gradio 6.31: it fetches a remote "file" and hands it on (gradio#13593)
FETCHING = re.compile(r"/file[=/]\s*https?:", re.IGNORECASE)
RELOAD = "/gradio_api/dev/reload"  # gradio 6.31: there without `gradio app.py` too, and checks 20 times a second


class Ingress:
    """ASGI: /healthz, the API gateway, or the page, which is Gradio's."""

    def __init__(self, page: ASGIApp, health: Health, gateway: Gateway, development: bool):
        self.page = page
        self.health = health
        self.gateway = gateway
        self.development = development  # the page is reloaded on every change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answerer(scope["path"]) if scope["type"] == "http" else self.page
        await answer(scope, receive, send)

    def _answerer(self, path: str) -> ASGIApp:
        """Who answers a request for this path."""
        if path == "/healthz":
            return self.health
        if self.gateway.serves(path):
            return self.gateway
        if FETCHING.search(path):
            return JSONResponse({"detail": "No other site's files are served here."}, 403)
        if path.rstrip("/") == RELOAD and not self.development:
            return JSONResponse({"detail": "Not Found"}, 404)
        return self.page
