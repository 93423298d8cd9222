"""What the door costs: the engine asked directly, and through the Space's /v1, in one run.

    python tests/benchmark/door.py [--engine URL --engine-key KEY --space URL --key KEY]

Without addresses it boots ./start.sh with the demo model. So many streams run all the time, each the next answer
after the last, of lengths that differ. The two sides take turns, so that whatever else the machine does falls on both.
Printed are medians: the time from sending a request to the first event of its answer; tokens a second over all
streams; and the ratio of each turn at the door to the turn at the engine beside it. The client reads plain sockets, to
take little of the machine for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
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

TOKENS = (64, 192)  # of an answer: least and most
ANSWERS = 4  # of each stream in one turn
TURNS = {1: 16, 32: 8}  # streams -> turns of each side
MESSAGES = [{"role": "user", "content": "Tell me everything about this Space."}]


@dataclass
class Side:
    """One of the two addresses, and what was measured there."""

    url: str
    key: str
    model: str = ""
    first: list[float] = field(default_factory=list)  # seconds to the first event, of every stream
    speed: list[float] = field(default_factory=list)  # tokens a second, of every turn

    async def answer(self, tokens: int) -> float:
        """Ask for a chat answer of exactly so many tokens; the seconds to its first event. Raises RuntimeError."""
        body = json.dumps({
            "model": self.model, "messages": MESSAGES, "temperature": 0,
            "max_tokens": tokens, "ignore_eos": True, "stream": True,
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
        return first

    async def stream(self, lengths: list[int]) -> None:
        for number, tokens in enumerate(lengths):
            first = await self.answer(tokens)
            if number or len(lengths) == 1:
                self.first.append(first)  # not the one with which all streams begin at once

    async def turn(self, streams: int, seed: int) -> None:
        """The same work for the same seed."""
        dice = random.Random(seed)
        work = [[dice.randint(*TOKENS) for _ in range(ANSWERS)] for _ in range(streams)]
        began = time.perf_counter()
        await asyncio.gather(*(self.stream(lengths) for lengths in work))
        self.speed.append(sum(map(sum, work)) / (time.perf_counter() - began))


async def measure(engine: Side, door: Side) -> list[str]:
    """The rows of the table."""
    rows = []
    for streams, turns in TURNS.items():
        for side in (engine, door):
            await side.turn(streams, seed=0)  # warm
            side.first.clear()
            side.speed.clear()
        for number in range(turns):
            for side in (engine, door) if number % 2 else (door, engine):
                await side.turn(streams, seed=number)
        first = [median(side.first) * 1000 for side in (engine, door)]
        ratio = median(there / here for there, here in zip(door.speed, engine.speed, strict=True))
        rows.append(
            f"| {streams} | {first[0]:.1f} ms | {first[1]:.1f} ms | {first[1] - first[0]:+.1f} ms "
            f"| {median(engine.speed):.0f} | {median(door.speed):.0f} | {ratio:.3f} |"
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
    print(f"{TOKENS[0]} to {TOKENS[1]} tokens an answer, {psutil.cpu_count()} cores\n")
    print("| streams | first event: engine | door | | tokens/s: engine | door | ratio |")
    print("|---|---|---|---|---|---|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
