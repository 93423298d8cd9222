"""Routes every request on the port to /healthz, the API gateway or the page.

It wraps Gradio's whole application, including Gradio's own middleware (see gradio_app.GradioApp).
"""

from __future__ import annotations

import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space.gateway import Gateway
from vllm_space.health import Health

# gradio 6.31: its file route downloads a "file" from another site and serves it (gradio#13593)
REMOTE_FILE = re.compile(r"/file[=/]\s*https?:", re.IGNORECASE)
# gradio 6.31: its reload endpoint exists even without `gradio app.py`, and polls 20 times a second
RELOAD = "/gradio_api/dev/reload"


class Ingress:
    """ASGI app: /healthz, the API gateway, or else the page, which is Gradio's."""

    def __init__(self, page: ASGIApp, health: Health, gateway: Gateway, development: bool):
        self.page = page
        self.health = health
        self.gateway = gateway
        self.development = development  # `gradio app.py`: reload the page on every change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app(scope["path"]) if scope["type"] == "http" else self.page
        await app(scope, receive, send)

    def _app(self, path: str) -> ASGIApp:
        """The app that handles a path."""
        if path == "/healthz":
            return self.health
        if self.gateway.serves(path):
            return self.gateway
        if REMOTE_FILE.search(path):
            return JSONResponse({"detail": "Files from other sites are not served here."}, 403)
        if path.rstrip("/") == RELOAD and not self.development:
            return JSONResponse({"detail": "Not Found"}, 404)
        return self.page
