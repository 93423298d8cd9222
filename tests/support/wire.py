"""A model server that sends given replies, byte for byte, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.http_server import QuietHandler, serving

SSE = "text/event-stream"
JSON = "application/json"


@dataclass
class Reply:
    """`body` is sent as it is if it is bytes, else as JSON. A stream has no Content-Length."""

    status: int = 200
    body: Any = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Wire:
    """`replies`: "METHOD path" -> a Reply, or what returns one for the body of a request."""

    replies: dict[str, Reply | Callable[[dict], Reply]]
    url: str = ""
    asked: list[str] = field(default_factory=list)  # "METHOD path" of each request, with its query
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of chats
    headers: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Wire]:
        wire = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers["Content-Length"] or 0)
                body = json.loads(self.rfile.read(length) or "{}")
                wire.asked.append(f"{self.command} {self.path}")
                wire.headers.append(dict(self.headers))
                if "messages" in body and "tokenize" not in self.path:
                    wire.bodies.append(body)
                name = f"{self.command} {self.path.partition('?')[0]}"
                reply = wire.replies.get(name, Reply(404, {"detail": "Not Found"}))
                self.send(reply if isinstance(reply, Reply) else reply(body))

            do_POST = do_GET

            def send(self, reply: Reply) -> None:
                data = reply.body
                if not isinstance(data, bytes):
                    data = json.dumps(data).encode()
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.content_type == SSE:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                else:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        with serving(Handler) as server:
            server.handle_error = lambda *_: None  # a client that has seen enough closes
            self.url = server.url
            yield self


def events(*values: Any, end: str = "data: [DONE]\n\n") -> bytes:
    texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
    return "".join(f"data: {text}\n\n" for text in texts).encode() + end.encode()


def delta(finish: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
