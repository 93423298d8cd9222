"""Hugging Face's router of Inference Providers, as far as a chat page sees it.

Answers like https://router.huggingface.co/v1: a long list with what each model takes, a token in
every request, and a provider that may follow the name of a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.http_server import QuietHandler, serving
from support.scripted_engine import chat_stream

NAMES = [f"maker-{number % 12}/model-{number}" for number in range(130)]
VISION = NAMES[7]


def entry(name: str) -> dict:
    inputs = ["text", "image"] if name == VISION else ["text"]
    return {
        "id": name,
        "object": "model",
        "created": 1700000000,
        "owned_by": name.partition("/")[0],
        "architecture": {"input_modalities": inputs, "output_modalities": ["text"]},
        "providers": [{"provider": "fast", "status": "live", "context_length": 32768}],
    }


@dataclass
class HubRouter:
    token: str
    url: str = ""  # its base address
    requests: list[dict] = field(default_factory=list)  # bodies

    @contextmanager
    def running(self) -> Iterator[HubRouter]:
        router = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    self.reply(200, {"object": "list", "data": [entry(name) for name in NAMES]})
                else:
                    self.reply(404, "Not Found", "text/plain")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    self.reply(404, "Not Found", "text/plain")
                elif self.headers["Authorization"] != f"Bearer {router.token}":
                    self.reply(401, {"error": "Invalid username or password."})
                elif body["model"].partition(":")[0] not in NAMES:
                    message = f"The requested model {body['model']!r} does not exist"
                    self.reply(400, {"error": {"message": message, "code": "model_not_found"}})
                else:
                    router.requests.append(body)
                    self.reply(200, b"".join(chat_stream("Hello")), "text/event-stream")

        with serving(Handler) as server:
            self.url = f"{server.url}/v1"
            yield self
