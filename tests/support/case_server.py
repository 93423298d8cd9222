"""A model server that behaves as a file in tests/cases says.

An `.sse` file is the answer to every chat, byte for byte. A `.json` file has the fields that
`CaseServer` reads; without any of them, the server has one model, which answers "Hello".
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.http_server import QuietHandler, serving
from support.scripted_engine import chat_stream

CASES = Path(__file__).resolve().parent.parent / "cases"
ANSWER = "Hello"
DELAY = 6  # seconds that a list takes which "answers after 6 seconds"
NOT_FOUND = 404, {"detail": "Not Found"}
ALTERNATE = {"error": {"message": "After the optional system message, roles must alternate."}}


def data(file: str) -> bytes:
    """The bytes of a file. UTF-16 is kept as hex: git would treat it as binary."""
    path = CASES / file
    return (
        path.read_bytes() if path.exists() else bytes.fromhex((CASES / f"{file}.hex").read_text())
    )


def load(file: str) -> dict[str, Any]:
    """The fields of a `.json` file, or {"stream": bytes} for an `.sse` file."""
    path = CASES / file
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return {"stream": path.read_bytes()}


@dataclass
class CaseServer:
    """`case` are the fields of a file; `model` is the name of the model, if the file has none.

    With `redirects_to`, every request is redirected to the same path of that URL.
    """

    case: dict[str, Any]
    model: str = "scripted"
    redirects_to: str = ""
    url: str = ""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (path, body)
    answers: list[bytes] = field(default_factory=list)  # the body of every chat's answer

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[CaseServer]:
        """Serve the case on a free port; with `tls`, on 127.0.0.2, which is loopback too."""
        with serving(_handler(self), host="127.0.0.2" if tls else "127.0.0.1", tls=tls) as server:
            server.handle_error = lambda *_: None  # a client that has seen enough closes
            self.url = server.url
            yield self

    @property
    def base(self) -> str:
        """The path below which the OpenAI API is."""
        return self.case.get("server_answers_below", "/v1")

    @property
    def model_url(self) -> str:
        """What an owner writes in MODEL_URL."""
        return self.url + self.case.get("MODEL_URL_path", "")

    def list_models(self) -> object:
        if "models_answer" in self.case:
            return self.case["models_answer"]
        if self.case.get("GET /v1/models"):
            time.sleep(DELAY)
        names = self.case.get("models", [self.model])
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}

    def chat(self, body: dict[str, Any], first: bool) -> Any:
        """(status, JSON), or the blocks of a stream; None cuts the connection after the head."""
        case = self.case
        has_image = "image_url" in json.dumps(body["messages"])
        if "refuse_all" in case:
            return case["refuse_all"]["status"], case["refuse_all"]["body"]
        if body["model"] in case.get("refuse", {}).get("models", ()):
            return case["refuse"]["status"], case["refuse"]["body"]
        for refusal in case.get("refuse_fields", ()):
            if refusal["field"] in body:
                return refusal["status"], refusal["body"]
        if has_image and isinstance(failure := case.get("chat with a picture"), dict):
            return failure["status"], failure["body"]
        if case.get("roles_must_alternate") and not _alternate(body["messages"]):
            return 400, ALTERNATE
        if first and (fault := case.get("first")):
            if fault.get("cut_after_head"):
                return None
            if fault.get("reasoning_only_length"):
                return chat_stream("Let me think", field="reasoning_content", finish="length")
            return fault["status"], fault["body"]
        if "stream" in case:
            return [case["stream"]]
        if "body" in case:
            return 200, case["body"]
        return chat_stream(ANSWER)


def _alternate(messages: list[dict[str, Any]]) -> bool:
    roles = [message["role"] for message in messages if message["role"] != "system"]
    return roles == [("user", "assistant")[index % 2] for index in range(len(roles))]


def _handler(server: CaseServer) -> type[QuietHandler]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def is_authorized(self) -> bool:
            key = server.case.get("key_of_the_server")
            return not key or self.headers["Authorization"] == f"Bearer {key}"

        def answer(self, status: int, body: object) -> None:
            if not self.is_authorized():
                status, body = 401, {"error": {"message": "Invalid API key."}}
            self.reply(status, body)

        def redirect(self) -> None:
            self.reply(301, "", "text/plain", Location=server.redirects_to + self.path)

        def do_GET(self) -> None:
            if server.redirects_to:
                return self.redirect()
            if self.path.partition("?")[0] == f"{server.base}/models":
                return self.answer(200, server.list_models())
            return self.answer(*NOT_FOUND)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.redirects_to:
                return self.redirect()
            if self.path == "/tokenize" and "POST /tokenize" in server.case:
                reply = server.case["POST /tokenize"]
                return self.answer(reply["status"], reply.get("body", {}))
            if self.path.partition("?")[0] != f"{server.base}/chat/completions":
                return self.answer(*NOT_FOUND)
            answer = server.chat(body, first=not server.requests)
            server.requests.append((self.path, body))
            if isinstance(answer, tuple) or not self.is_authorized():
                status, content = answer if isinstance(answer, tuple) else (401, {})
                server.answers.append(json.dumps(content).encode())
                return self.answer(status, content)
            return self.stream(answer)

        def stream(self, blocks: Any) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if blocks is None:
                self.close_connection = True
                return
            blocks = list(blocks)
            server.answers.append(b"".join(blocks))
            for block in blocks:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
            self.wfile.write(b"0\r\n\r\n")

    return Handler
