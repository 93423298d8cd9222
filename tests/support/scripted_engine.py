"""A scripted engine on a real socket: it speaks vLLM's protocols word for word as told, faults included.

For faults, timing and load; what the real engine does is tested on the real engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.http_server import Quiet, serving


class Cut(Exception):
    """Raised by a script: the connection is dropped where it is."""


@dataclass
class ScriptedEngine:
    """`script` answers every POST: it gets (path, body) and yields what to send, or returns (status, JSON)."""

    script: Callable[[str, dict], Any] = lambda path, body: (200, {})
    models: list[str] | None = field(
        default_factory=lambda: ["scripted"]
    )  # None: no /v1/models (the legacy server)
    tokenize: Callable[[dict], Any] = lambda body: (
        404,
        {"detail": "Not Found"},
    )  # answers /tokenize
    metrics: Callable[[], str] | None = None  # answers /metrics
    alive: bool = True  # /health says so; a dead engine's API server answers for some seconds more
    requests: list[tuple[str, dict, dict]] = field(
        default_factory=list
    )  # (path, headers, body) of every POST
    text_type: str = "text/plain"  # content type of an answer that is text
    asked: list[str] = field(default_factory=list)  # "METHOD path" of every request
    left: threading.Event = field(
        default_factory=threading.Event
    )  # set when a client left in mid-stream
    url: str = ""

    @contextmanager
    def running(self, port: int = 0) -> Iterator[ScriptedEngine]:
        with serving(_handler(self), port) as server:
            self.url = server.url
            yield self


def _handler(engine: ScriptedEngine) -> type[Quiet]:
    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: object) -> None:
            self.reply(
                status, body, engine.text_type if isinstance(body, str) else "application/json"
            )

        def parse_request(self) -> bool:
            read = super().parse_request()
            if read:
                engine.asked.append(f"{self.command} {self.path}")
            return read

        def do_GET(self) -> None:
            if self.path == "/v1/models" and engine.models is not None:
                data = [
                    {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 4096}
                    for name in engine.models
                ]
                self.answer(200, {"object": "list", "data": data})
            elif self.path == "/health":
                self.answer(200 if engine.alive else 503, "")
            elif self.path == "/metrics" and engine.metrics:
                self.answer(200, engine.metrics())
            else:
                self.answer(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                self.answer(*engine.tokenize(body))
                return
            engine.requests.append((self.path, dict(self.headers), body))
            try:
                made = engine.script(self.path, body)
            except Cut:
                self.close_connection = True
                return
            if isinstance(made, tuple):
                self.answer(*made)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for data in made:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except Cut:
                self.close_connection = True
            except OSError:
                engine.left.set()
                self.close_connection = True

    return Handler


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chat_stream(
    *texts: str, finish: str = "stop", every: float = 0, field: str = "content"
) -> Iterator[bytes]:
    """The events of a chat answer, one for each text, `every` seconds."""
    yield event(
        choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    )
    for text in texts:
        time.sleep(every)
        yield event(choices=[{"index": 0, "delta": {field: text}, "finish_reason": None}])
    yield event(choices=[{"index": 0, "delta": {}, "finish_reason": finish}])
    yield event(
        choices=[],
        usage={"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)},
    )
    yield DONE


def completion_stream(*texts: str) -> Iterator[bytes]:
    for text in texts:
        yield event(choices=[{"index": 0, "text": text, "finish_reason": None}])
    yield event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}])
    yield DONE
