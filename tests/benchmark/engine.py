"""A scripted engine for load tests: vLLM's chat protocol at a fixed rate.

    python tests/benchmark/engine.py PORT TOKENS RATE

Each stream sends TOKENS tokens at RATE per second. The tokens are numbered, so the other end can
tell that each one arrived, once and in order. `stream_interval` works as in vLLM: that many tokens
share one chunk. It is a bare asyncio protocol because a web framework would be the bottleneck:
this way, hundreds of streams take a small part of one core.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "benchmark"


def token(number: int) -> str:
    return f" t{number}"


def event(text: str | None, finish_reason: str | None = None, **fields: object) -> bytes:
    """One server-sent event, a chat.completion.chunk."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [choice],
    }
    data = json.dumps(body | fields, separators=(",", ":")).encode()
    return http_chunk(b"data: " + data + b"\n\n")


def http_chunk(data: bytes) -> bytes:
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
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        request_line, *header_lines = head.decode("latin-1").split("\r\n")
        method, path, _ = request_line.split(" ", 2)
        fields = (line.partition(":") for line in header_lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.received = rest[length:]
        if method == "GET":
            model = {"id": MODEL, "object": "model", "owned_by": "vllm"}
            self.reply({"object": "list", "data": [model]})
        elif "chat/completions" in path:
            body = json.loads(rest[:length])
            self.task = asyncio.ensure_future(self.stream(int(body.get("stream_interval", 1))))
        else:
            self.reply({"count": 10, "max_model_len": 100_000, "tokens": []})

    def reply(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
        )

    async def stream(self, interval: int) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n"
            b"Content-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self.transport.write(event(""))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, self.tokens, interval):
            end = min(start + interval, self.tokens)
            # A chunk is sent when its last token is due.
            await asyncio.sleep(max(0.0, began + end / self.rate - loop.time()))
            self.transport.write(event("".join(token(number) for number in range(start, end))))
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": self.tokens,
            "total_tokens": 10 + self.tokens,
        }
        self.transport.write(event(None, finish_reason="stop"))
        self.transport.write(event(None, usage=usage, choices=[]))
        self.transport.write(http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    Engine.tokens, Engine.rate = int(sys.argv[2]), float(sys.argv[3])
    asyncio.run(serve(int(sys.argv[1])))
