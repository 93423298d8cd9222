"""The content security policy: what a browser may load and run on the page (https://www.w3.org/TR/CSP3).

The address of an image in an answer can carry what was said before to any server. So the browser is told to ask this
address alone.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space.settings import Settings

GRADIO_CDN = (
    "https://gradio.s3-us-west-2.amazonaws.com"  # what a page behind a gradio.live link is made of
)
OWN = "'self' data: blob:"


def policy(config: Settings) -> str:
    """The header's value. Gradio's page has scripts in its HTML, and its plots make code as they run."""
    code = f"{OWN} 'unsafe-inline' 'unsafe-eval'" + (
        f" {GRADIO_CDN}" if config.gradio_share else ""
    )
    images = " ".join([OWN, *config.app_image_origins])
    return (
        f"default-src {code}; img-src {images}; media-src {images}; "
        "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
    )


class CspMiddleware:
    """ASGI: puts the policy on every answer."""

    def __init__(self, app: ASGIApp, config: Settings):
        self.app = app
        self.policy = policy(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = self.policy
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)
