"""The HTTP server: uvicorn, as Gradio starts it, with limits on what a client can hold up.

A client that opens connections and sends nothing, or headers without end, costs memory and file
descriptors, and uvicorn by itself waits for it forever. Knows nothing of the page or the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import h11
import uvicorn
from gradio import http_server
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_LIMIT = 64 * 1024  # bytes of a request line and its headers
HEAD_TIMEOUT = 30  # seconds that a client has to send them
BODY_TIMEOUT = 30  # seconds without any data while the application waits for a body

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain\r\ncontent-length: 43\r\nconnection: close\r\n\r\n"
    b"The headers of this request are over 64 kB."
)

TIMED_OUT: list[Message] = [
    {
        "type": "http.response.start",
        "status": 408,
        "headers": [(b"content-type", b"text/plain"), (b"connection", b"close")],
    },
    {"type": "http.response.body", "body": b"The body of this request stopped arriving."},
]


class _HeadLimits(asyncio.Protocol):
    """Mixin for uvicorn's protocols: limits the size and the duration of a request's head.

    uvicorn itself closes connections that are idle between two requests.
    """

    # Of uvicorn's protocols:
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any  # of the last request
    timeout_keep_alive_handler: Callable[[], None]  # closes the connection

    _head_size = 0  # bytes of an incomplete head
    _head_timer: asyncio.TimerHandle | None = None

    def _awaits_head(self) -> bool:
        """Whether the next byte belongs to a request line or to headers."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while True:
            # The parser gets no more of a head than is allowed: the rest may be a body.
            awaited_head = self._awaits_head()
            size = HEAD_LIMIT - self._head_size if awaited_head else len(data)
            part, data = data[:size], data[size:]
            self._head_size += len(part) if awaited_head else 0
            super().data_received(part)
            if not self._awaits_head():
                self._head_size = 0
            elif self._head_size >= HEAD_LIMIT:
                self._reject()
            if not data or self.transport.is_closing():
                break
            if self.transport.get_protocol() is not self:  # it has become a WebSocket
                break
        if not self._head_size:
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _reject(self) -> None:
        if not self._is_responding():  # to the request before
            self.transport.write(TOO_LARGE)
        self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._time_out)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_out(self) -> None:
        self._head_timer = None
        if not self._is_responding():  # otherwise uvicorn closes it after the response
            self.timeout_keep_alive_handler()


class LimitedH11(_HeadLimits, H11Protocol):
    """uvicorn's protocol in pure Python."""

    def _awaits_head(self) -> bool:
        return self.conn.their_state is h11.IDLE


Protocol: type[asyncio.Protocol] = LimitedH11
try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    pass  # it comes with vLLM: this is a page without an engine
else:

    class LimitedHttpTools(_HeadLimits, HttpToolsProtocol):
        """uvicorn's protocol with a parser in C."""

        _in_body = False

        def _awaits_head(self) -> bool:
            return not self._in_body

        def on_headers_complete(self) -> None:
            self._in_body = True
            self._head_size = 0
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body = False
            super().on_message_complete()

    Protocol = LimitedHttpTools


class Server(http_server.Server):
    """Gradio's server with these limits."""

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any):
        config.http = Protocol
        config.h11_max_incomplete_event_size = HEAD_LIMIT
        config.proxy_headers = False  # see forwarded.py
        super().__init__(config, *args, **options)


def install() -> None:
    """Make Gradio use this server."""
    # gradio 6.31: launch has no option for uvicorn's settings
    http_server.Server = Server  # type: ignore[misc]


class BodyTimeout:
    """ASGI middleware: ends a request whose body stops arriving, with status 408."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_body(scope):
            await _Request(receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)


class _Request:
    """A request with a body. If that stops arriving, the application is told the client left."""

    def __init__(self, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.has_arrived = False  # the whole body
        self.is_answered = False
        self.has_ended = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        with suppress(ClientDisconnect):  # uvicorn would log it with a traceback
            await app(scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self.has_arrived:  # the application waits for the client to leave, perhaps for hours
            return await self._receive()
        if not self.has_ended:
            with anyio.move_on_after(BODY_TIMEOUT):
                message = await self._receive()
                self.has_arrived = not message.get("more_body", False)
                return message
            self.has_ended = True
            if not self.is_answered:
                for message in TIMED_OUT:
                    await self._send(message)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.is_answered = True
        if not self.has_ended:  # uvicorn closes a connection whose response is incomplete
            await self._send(message)


def _has_body(scope: Scope) -> bool:
    """Whether the client has announced a body."""
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
