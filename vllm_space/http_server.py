"""The HTTP server: uvicorn, as Gradio starts it, with limits on what a client can hold up.

A client that opens connections and sends nothing, or headers without end, costs memory and file
descriptors, and uvicorn by itself waits for it forever. Knows nothing of the page or the API.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from gradio import http_server
from uvicorn.protocols.http.h11_impl import H11Protocol

from vllm_space import listening

HEAD_LIMIT = 64 * 1024  # bytes of a request line and its headers
HEAD_TIMEOUT = 30  # seconds that a client has to send them
# Bytes for each byte of a body that can be spent on chunk sizes, extensions and trailers. Beyond
# that, HEAD_LIMIT bytes are allowed.
MAX_OVERHEAD = 0.5
ANY_LOOPBACK = "127.255.255.254"  # where no program listens

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain\r\nconnection: close\r\n\r\n"
    b"The request's headers are larger than 64 KiB. Clear this site's cookies, or send fewer."
)


class _Limits(asyncio.Protocol):
    """Mixin for uvicorn's protocols: limits a request's head, and the overhead of a chunked body.

    uvicorn itself closes connections that are idle between two requests.
    """

    # Of uvicorn's protocols:
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any  # of the last request
    timeout_keep_alive_handler: Callable[[], None]  # closes the connection

    _head_size = 0  # bytes of an incomplete head
    _overhead = 0.0  # bytes of a body that are not its content, beyond MAX_OVERHEAD
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
            size = HEAD_LIMIT - self._head_size if awaited_head else HEAD_LIMIT
            part, data = data[:size], data[size:]
            if awaited_head:
                self._head_size += len(part)
            else:
                self._overhead += len(part)
            super().data_received(part)
            if self._overhead > HEAD_LIMIT:
                self.transport.close()
            if not self._awaits_head():
                self._head_size = 0
            elif self._head_size >= HEAD_LIMIT:
                self._reject()
            if not data or self.transport.is_closing():
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


class LimitedH11(_Limits, H11Protocol):
    """uvicorn's protocol in pure Python."""

    def _awaits_head(self) -> bool:
        self._overhead = 0.0  # not known; this parser allows no trailers
        return self.conn.their_state is h11.IDLE


Protocol: type[asyncio.Protocol] = LimitedH11
try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    pass  # it comes with vLLM: this is a page without an engine
else:

    class LimitedHttpTools(_Limits, HttpToolsProtocol):
        """uvicorn's protocol with a parser in C."""

        _in_body = False  # or in its trailers

        def _awaits_head(self) -> bool:
            return not self._in_body

        def on_headers_complete(self) -> None:
            self._in_body = True
            self._head_size = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._overhead = max(0.0, self._overhead - len(body) * (1 + MAX_OVERHEAD))
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_body = False
            self._overhead = 0.0
            super().on_message_complete()

    Protocol = LimitedHttpTools


class Server(http_server.Server):
    """Gradio's server with these limits."""

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any):
        config.http = Protocol
        config.h11_max_incomplete_event_size = HEAD_LIMIT
        config.proxy_headers = False  # see forwarded.py
        config.ws = "none"  # Gradio has no WebSockets
        # Its warnings are about what clients send: anyone could fill the log with them.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(config, *args, **options)
        # asyncio's own sockets for `::` would leave out IPv4.
        self._sockets = listening.bind(config.host, config.port)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or self._sockets)


def install() -> None:
    """Make Gradio use this server."""
    # gradio 6.31: launch has no option for uvicorn's settings
    http_server.Server = Server  # type: ignore[misc]
    # gradio 6.31: it tests whether the port is free at an IPv4 address, whichever is to be used
    http_server.LOCALHOST_NAME = ANY_LOOPBACK
    http_server.start_server = _start_server  # type: ignore[assignment]


_gradio_start_server = http_server.start_server


def _start_server(
    app: Any, server_name: str, server_port: int | None = None, **options: Any
) -> tuple[str, int, str, http_server.Server]:
    # gradio 6.31: it requests http://:::7860/ if the page listens on ::
    name, port, _, server = _gradio_start_server(app, server_name, server_port, **options)
    return name, port, f"{listening.url(name, port)}/", server
