"""An engine that answers as its script says, on a real socket: for faults, timing and load.

What the real vLLM does is tested on the real vLLM, in tests/engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.http_server import QuietHandler, serving


class Cut(Exception):
    """Raised by a script to drop the connection."""


@dataclass
class ScriptedEngine:
    """`script(path, body)` answers every POST: it yields chunks, or returns (status, JSON).

    `models` are the names that /v1/models lists, each with `context_length` tokens; None makes this
    the legacy server, which has no /v1/models. `tokenize` and `metrics` answer /tokenize and
    /metrics. With `alive` false, /health is 503: the API server of a dead engine keeps answering
    for a few seconds.
    """

    script: Callable[[str, dict], Any] = lambda path, body: (200, {})
    models: list[str] | None = field(default_factory=lambda: ["scripted"])
    tokenize: Callable[[dict], Any] = lambda body: (404, {"detail": "Not Found"})
    metrics: Callable[[], str] | None = None
    context_length: int = 4096
    alive: bool = True
    text_type: str = "text/plain"  # content type of text replies
    # (path, headers, body) of every POST
    requests: list[tuple[str, dict, dict]] = field(default_factory=list)
    request_lines: list[str] = field(default_factory=list)  # "METHOD path" of every request
    client_left: threading.Event = field(default_factory=threading.Event)  # in mid-stream
    url: str = ""

    @contextmanager
    def running(self, port: int = 0) -> Iterator[ScriptedEngine]:
        with serving(_handler(self), port) as server:
            self.url = server.url
            yield self


def _handler(engine: ScriptedEngine) -> type[QuietHandler]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: object) -> None:
            content_type = engine.text_type if isinstance(body, str) else "application/json"
            self.reply(status, body, content_type)

        def parse_request(self) -> bool:
            valid = super().parse_request()
            if valid:
                engine.request_lines.append(f"{self.command} {self.path}")
            return valid

        def do_GET(self) -> None:
            if self.path == "/v1/models" and engine.models is not None:
                length = engine.context_length
                data = [
                    {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": length}
                    for name in engine.models
                ]
                self.answer(200, {"object": "list", "data": data})
            elif self.path == "/health":
                self.answer(200 if engine.alive else 503, "")
            elif self.path == "/metrics" and engine.metrics:
                self.answer(200, engine.metrics())
            elif self.path == "/generate" and engine.models is None:
                self.answer(405, {"detail": "Method Not Allowed"})
            else:
                self.answer(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                self.answer(*engine.tokenize(body))
                return
            engine.requests.append((self.path, dict(self.headers), body))
            try:
                answer = engine.script(self.path, body)
            except Cut:
                self.close_connection = True
                return
            if isinstance(answer, tuple):
                self.answer(*answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for chunk in answer:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except Cut:
                self.close_connection = True
            except OSError:
                engine.client_left.set()
                self.close_connection = True

    return Handler


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chat_event(finish_reason: str | None = None, **delta: str) -> bytes:
    """An event of a chat answer: chat_event(content="Hello")."""
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])


DONE = b"data: [DONE]\n\n"


def chat_stream(
    *texts: str, finish: str = "stop", every: float = 0, field: str = "content"
) -> Iterator[bytes]:
    """A chat answer as server-sent events: one per text, `every` seconds."""
    yield chat_event(role="assistant", content="")
    for text in texts:
        time.sleep(every)
        yield chat_event(**{field: text})
    yield chat_event(finish)
    count = len(texts)
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    yield event(choices=[], usage=usage)
    yield DONE


def completion_stream(*texts: str) -> Iterator[bytes]:
    for text in texts:
        yield event(choices=[{"index": 0, "text": text, "finish_reason": None}])
    yield event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}])
    yield DONE
