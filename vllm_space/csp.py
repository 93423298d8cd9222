"""The content security policy: what the browser may load and run (https://www.w3.org/TR/CSP3).

An image URL in an answer could leak the conversation to any server, so the page may only load from
its own address.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space.settings import Settings

SELF = "'self' data: blob:"
GRADIO_CDN = "https://gradio.s3-us-west-2.amazonaws.com"  # serves the assets of gradio.live pages


def policy(config: Settings) -> str:
    """The value of the Content-Security-Policy header."""
    # Gradio's HTML contains inline scripts, and its plots compile code at run time.
    scripts = f"{SELF} 'unsafe-inline' 'unsafe-eval'"
    if config.gradio_share:
        scripts += f" {GRADIO_CDN}"
    images = " ".join([SELF, *config.app_image_origins])
    return (
        f"default-src {scripts}; img-src {images}; media-src {images}; "
        "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
    )


class CspMiddleware:
    """ASGI middleware: adds the policy to every response."""

    def __init__(self, app: ASGIApp, config: Settings):
        self.app = app
        self.policy = policy(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = self.policy
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)
