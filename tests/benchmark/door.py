"""What the door costs: the engine asked directly, and through the Space's /v1, in one run.

    python tests/benchmark/door.py [--engine URL --engine-key KEY --space URL --key KEY]

Without addresses it boots ./start.sh with the demo model. It alternates between the two, so that whatever else the
machine does falls on both, and prints medians: seconds from sending a request to the first event of its answer, and
tokens a second over all streams. The client reads plain sockets, to take little of the machine for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psutil
import requests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import API_KEY, ROOT, Program, free_port

TOKENS = 128  # of each answer
ROUNDS = {1: 40, 32: 10}  # streams -> rounds of each side
MESSAGES = [{"role": "user", "content": "Tell me everything about this Space."}]


@dataclass
class Side:
    """One of the two addresses, and what was measured there."""

    url: str
    key: str
    model: str = ""
    first: list[float] = field(default_factory=list)  # seconds to the first event, of every stream
    speed: list[float] = field(default_factory=list)  # tokens a second, of every round

    async def stream(self) -> None:
        """One chat answer of exactly TOKENS tokens. Raises RuntimeError where it is anything else."""
        body = json.dumps({
            "model": self.model, "messages": MESSAGES, "temperature": 0,
            "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
        }).encode()  # fmt: skip
        address = urlsplit(self.url)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        began = time.perf_counter()
        writer.write(head.encode() + body)
        received = bytearray()
        first = 0.0
        while data := await reader.read(65536):
            received += data
            if not first and b"data: " in received:
                first = time.perf_counter() - began
        writer.close()
        if b"data: [DONE]" not in received or received.count(b'"finish_reason":"length"') != 1:
            raise RuntimeError(f"{self.url} did not give a whole answer:\n{received.decode(errors='replace')[-2000:]}")
        self.first.append(first)

    async def round(self, streams: int) -> None:
        began = time.perf_counter()
        await asyncio.gather(*(self.stream() for _ in range(streams)))
        self.speed.append(streams * TOKENS / (time.perf_counter() - began))


async def measure(engine: Side, door: Side) -> list[str]:
    """The rows of the table."""
    rows = []
    for streams, rounds in ROUNDS.items():
        for side in (engine, door):
            await side.round(streams)  # warm
            side.first.clear()
            side.speed.clear()
        for number in range(rounds):
            for side in (engine, door) if number % 2 else (door, engine):
                await side.round(streams)
        first, speed = [[median(numbers) for numbers in pair] for pair in
                        ((engine.first, door.first), (engine.speed, door.speed))]  # fmt: skip
        engine_ms, door_ms = first[0] * 1000, first[1] * 1000
        rows.append(
            f"| {streams} | {engine_ms:.1f} ms | {door_ms:.1f} ms | {door_ms - engine_ms:+.1f} ms "
            f"| {speed[0]:.0f} | {speed[1]:.0f} | {speed[1] / speed[0]:.3f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--engine", "--engine-key", "--space", "--key"):
        parser.add_argument(name)
    given = parser.parse_args()
    running = None
    try:
        if not given.space:
            port, engine_port = free_port(), free_port()
            log = Path(tempfile.mkdtemp()) / "start.log"
            variables = {"ENGINE_PORT": str(engine_port), "API_KEYS": API_KEY}
            running = Program(["bash", str(ROOT / "start.sh"), "--port", str(port)], log, variables)
            running.wait_until_up(f"http://127.0.0.1:{port}")
            app = next(one for one in running.family() if any("app.py" in part for part in one.cmdline()))
            given.engine, given.engine_key = f"http://127.0.0.1:{engine_port}", app.environ()["MODEL_API_KEY"]
            given.space, given.key = f"http://127.0.0.1:{port}", API_KEY
        engine, door = Side(given.engine, given.engine_key or ""), Side(given.space, given.key or "")
        for side in (engine, door):
            answer = requests.get(f"{side.url}/v1/models", headers={"Authorization": f"Bearer {side.key}"}, timeout=10)
            side.model = answer.json()["data"][0]["id"]
        rows = asyncio.run(measure(engine, door))
    finally:
        if running:
            running.stop()
    print(f"{TOKENS} tokens an answer, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}\n")
    print("| streams | first event: engine | door | | tokens/s: engine | door | ratio |")
    print("|---|---|---|---|---|---|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
