"""What stands between Gradio and hostile words, in answers and in requests.

A picture's address in an answer can carry what was said before to any server. So the browser is told to ask this
address alone (Content-Security-Policy, https://www.w3.org/TR/CSP3), and this address fetches nothing for it. A request
that Gradio stumbles over is refused with a sentence.
"""

from __future__ import annotations

import logging
import re

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space.settings import Settings

log = logging.getLogger(__name__)

GRADIO_CDN = "https://gradio.s3-us-west-2.amazonaws.com"  # what a page behind a gradio.live link is made of
OWN = "'self' data: blob:"
FETCHING = re.compile(r"/(?:file[=/]|proxy=)\s*https?:", re.IGNORECASE)  # Gradio would fetch it and hand it on


def policy(config: Settings) -> str:
    """The header's value. Gradio's page has scripts in its HTML, and its plots make code as they run."""
    code = f"{OWN} 'unsafe-inline' 'unsafe-eval'" + (f" {GRADIO_CDN}" if config.gradio_share else "")
    pictures = " ".join([OWN, *config.app_image_origins])
    return (
        f"default-src {code}; img-src {pictures}; media-src {pictures}; "
        "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
    )


class ShieldMiddleware:
    """ASGI: before everything of Gradio's."""

    def __init__(self, app: ASGIApp, config: Settings):
        self.app = app
        self.policy = policy(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if FETCHING.search(scope["path"]):
            return await JSONResponse({"detail": "No other site's files are served here."}, 403)(scope, receive, send)

        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["Content-Security-Policy"] = self.policy
                if message["status"] == 500:  # so Gradio answers whatever it cannot read, or a handler cannot use
                    message["status"] = 400
            await send(message)

        try:
            await self.app(scope, receive, send_with_policy)
        except Exception:
            if started:
                raise
            log.exception("Gradio stumbled over a request for %r", scope["path"])
            answer = JSONResponse({"detail": "This page cannot make sense of that request."}, 400)
            await answer(scope, receive, send)
