"""The headers of the page's responses: what browsers and proxies may do with them."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import csp

FILES = "/gradio_api/file="


class HeadersMiddleware:
    """ASGI middleware: completes the headers of every response of the page.

    `policy` is the content security policy of responses that have none of their own.
    """

    def __init__(self, app: ASGIApp, policy: str):
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        is_file = scope["path"].startswith(FILES)
        if is_file:
            # gradio 6.31: its response to a Range request contains the request's own headers,
            # among them the sign-in cookie, which scripts must not be able to read
            headers = [header for header in scope["headers"] if header[0] != b"range"]
            scope = {**scope, "headers": headers}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(MutableHeaders(scope=message), is_file)
            await send(message)

        return await self.app(scope, receive, send_with_headers)

    def _complete(self, headers: MutableHeaders, is_file: bool) -> None:
        headers.setdefault("Content-Security-Policy", csp.FILE_POLICY if is_file else self.policy)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        if headers.get("content-type", "").startswith("text/event-stream"):
            headers["X-Accel-Buffering"] = "no"  # tells a proxy not to buffer the stream
            headers.setdefault("Cache-Control", "no-cache")
        if cookies := headers.getlist("set-cookie"):
            del headers["set-cookie"]
            for cookie in cookies:
                headers.append("set-cookie", _partitioned(cookie))


def _partitioned(cookie: str) -> str:
    """A Set-Cookie header whose cookie, if it is sent to frames, is kept apart for each site.

    Then another site that calls the page, or shows it in a frame, cannot act with the cookies of
    the visitor's own tab (CHIPS, https://github.com/privacycg/CHIPS).
    """
    attributes = [part.strip().lower() for part in cookie.split(";")[1:]]
    if "secure" in attributes and "partitioned" not in attributes:
        return f"{cookie}; Partitioned"
    return cookie
