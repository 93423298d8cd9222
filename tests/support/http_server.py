"""Runs an http.server handler in a thread: the base of the scripted servers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs nothing and can reply in one call."""

    def log_message(self, *args: object) -> None:
        pass

    def reply(
        self, status: int, body: object, content_type: str = "application/json", **headers: str
    ) -> None:
        """Reply with bytes or text, or anything else as JSON; X_Error_Code="x" sets a header."""
        text = body if isinstance(body, (str, bytes)) else json.dumps(body)
        data = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default backlog of 5 is too short for 64 visitors

    scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.server_address[0]}:{self.server_port}"


@contextmanager
def serving(
    handler: Any, port: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """Serve on a port of a loopback address, perhaps with TLS; 0 picks a free one."""
    server = Server((host, port), handler)
    if tls:
        server.scheme = "https"
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
