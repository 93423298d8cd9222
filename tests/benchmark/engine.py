"""A scripted engine for load: vLLM's chat protocol at a set rate, hundreds of streams on a small part of one core.

    python tests/benchmark/engine.py PORT TOKENS RATE

Every stream gets TOKENS tokens at RATE a second, numbered, so that the other end can tell whether each arrived once
and in order. A bare asyncio protocol: a web framework would be the bottleneck. `stream_interval` is honoured as vLLM
does: the tokens of so many steps come in one event.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "benchmark"


def token(number: int) -> str:
    return f" t{number}"


def event(text: str | None, **fields: object) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": None,
        "finish_reason": fields.pop("finish_reason", None),
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [choice],
    }
    data = b"data: " + json.dumps(body | fields, separators=(",", ":")).encode() + b"\n\n"
    return chunk(data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Engine(asyncio.Protocol):
    tokens = 256
    rate = 50.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.received = b""
        self.task: asyncio.Task | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self.task:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.received = rest[length:]
        if method == "GET":
            self.reply(
                {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
            )
        elif "chat/completions" in path:
            body = json.loads(rest[:length])
            self.task = asyncio.ensure_future(self.stream(int(body.get("stream_interval", 1))))
        else:
            self.reply({"count": 10, "max_model_len": 100_000, "tokens": []})

    def reply(self, body: object) -> None:
        data = json.dumps(body).encode()
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(data)
        )
        self.transport.write(head + data)

    async def stream(self, interval: int) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.transport.write(event(""))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, self.tokens, interval):
            end = min(start + interval, self.tokens)
            # The first token comes alone, as vLLM sends it, and every other when its last one is due.
            await asyncio.sleep(max(0.0, began + end / self.rate - loop.time()))
            self.transport.write(event("".join(token(number) for number in range(start, end))))
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": self.tokens,
            "total_tokens": 10 + self.tokens,
        }
        self.transport.write(
            event(None, finish_reason="stop") + event(None, usage=usage, choices=[])
        )
        self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    Engine.tokens, Engine.rate = int(sys.argv[2]), float(sys.argv[3])
    asyncio.run(serve(int(sys.argv[1])))
