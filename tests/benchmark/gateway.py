"""What the door costs: the engine asked directly, and through the Space's /v1, in one run.

    python tests/benchmark/gateway.py

Two engines: the real one with the demo model, as ./start.sh boots it, which leaves one core to the door; and a scripted
one of a set rate (engine.py), which leaves the door the time that an engine on a GPU would. So many streams run all
the time, each the next answer after the last. The two sides take turns, so that whatever else the machine does falls on
both. Printed are medians: the time from sending a request to the first event of its answer; tokens a second over all
streams; and the ratio of each turn at the door to the turn at the engine beside it. The client reads plain sockets, to
take little of the machine for itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.programs import API_KEY, START, Program, free_port

TOKENS = (64, 192)  # of an answer: least and most
PACED_TOKENS, PACE = 128, 50  # of an answer of the scripted engine, and its tokens a second
ANSWERS = 4  # of each stream in one turn
TURNS = {1: 12, 32: 6}  # streams -> turns of each side
PACED_TURNS = {1: 1, 32: 2}
MESSAGES = [{"role": "user", "content": "Tell me everything about this Space."}]


@dataclass
class Side:
    """One of the two addresses, and what was measured there."""

    url: str
    key: str
    model: str
    first: list[float] = field(default_factory=list)  # seconds to the first event, of every stream
    speed: list[float] = field(default_factory=list)  # tokens a second, of every turn

    async def answer(self, tokens: int) -> float:
        """Ask for a chat answer of exactly so many tokens; the seconds to its first event. Raises RuntimeError."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": MESSAGES,
                "temperature": 0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
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
        while not received.endswith(b"0\r\n\r\n") and (data := await reader.read(65536)):
            received += data
            if not first and b"data: " in received:
                first = time.perf_counter() - began
        writer.close()
        if b"data: [DONE]" not in received or received.count(b'"finish_reason":"') != 1:
            raise RuntimeError(
                f"{self.url} did not give a whole answer:\n{received.decode(errors='replace')[-2000:]}"
            )
        return first

    async def stream(self, wait: float, lengths: list[int]) -> None:
        await asyncio.sleep(wait)
        for number, tokens in enumerate(lengths):
            first = await self.answer(tokens)
            if number or len(lengths) == 1:
                self.first.append(first)  # not the one with which all streams begin at once

    async def turn(self, streams: int, seed: int, paced: bool) -> None:
        """The same work for the same seed. Streams do not keep step: answers differ in length, or in their start."""
        dice = random.Random(seed)
        waits = [dice.uniform(0, PACED_TOKENS / PACE) if paced else 0 for _ in range(streams)]
        work = [
            [PACED_TOKENS if paced else dice.randint(*TOKENS) for _ in range(ANSWERS)]
            for _ in range(streams)
        ]
        began = time.perf_counter()
        await asyncio.gather(*map(self.stream, waits, work))
        self.speed.append(sum(map(sum, work)) / (time.perf_counter() - began))


async def measure(name: str, engine: Side, door: Side, paced: bool = False) -> None:
    """Print the rows of the table."""
    for streams, turns in PACED_TURNS.items() if paced else TURNS.items():
        for side in (engine, door):
            await side.turn(streams, 0, paced)  # warm
            side.first.clear()
            side.speed.clear()
        for number in range(turns):
            for side in (engine, door) if number % 2 else (door, engine):
                await side.turn(streams, number, paced)
        first = [median(side.first) * 1000 for side in (engine, door)]
        ratio = median(there / here for there, here in zip(door.speed, engine.speed, strict=True))
        print(
            f"| {name} | {streams} | {first[0]:.1f} ms | {first[1]:.1f} ms | {first[1] - first[0]:+.1f} ms "
            f"| {median(engine.speed):.0f} | {median(door.speed):.0f} | {ratio:.3f} |",
            flush=True,
        )


@contextmanager
def running(*command: str, url: str, **variables: str) -> Iterator[Program]:
    program = Program([*command], Path(tempfile.mkdtemp()) / "log", variables)
    try:
        program.wait_until_up(url)
        yield program
    finally:
        program.stop()


def come_first() -> None:
    """Linux shares the cores out by session: the client, in one of its own, must not be what is waited for."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20")


def main() -> None:
    come_first()
    port, engine_port = free_port(), free_port()
    url, engine = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}"
    print(
        f"{TOKENS[0]} to {TOKENS[1]} tokens an answer, or {PACED_TOKENS}; {psutil.cpu_count()} cores\n"
    )
    print("| engine | streams | first event: engine | door | | tokens/s: engine | door | ratio |")
    print("|---|---|---|---|---|---|---|---|")

    scripted = str(Path(__file__).with_name("engine.py"))
    paced = Program(
        [sys.executable, scripted, str(engine_port), str(PACED_TOKENS), str(PACE)],
        Path(os.devnull),
        {},
    )
    page = (sys.executable, "app.py", "--port", str(port))
    try:
        with running(*page, url=url, MODEL_URL=engine, API_KEYS=API_KEY):
            sides = Side(engine, "", "benchmark"), Side(url, API_KEY, "benchmark")
            asyncio.run(measure(f"scripted, {PACE} tokens/s a stream", *sides, paced=True))
    finally:
        paced.stop()

    start = (*START, "--port", str(port))
    with running(*start, url=url, ENGINE_PORT=str(engine_port), API_KEYS=API_KEY) as space:
        app = next(one for one in space.family() if any("app.py" in part for part in one.cmdline()))
        key, model = app.environ()["MODEL_API_KEY"], "vllm-space-demo"
        asyncio.run(
            measure("vLLM, the demo model", Side(engine, key, model), Side(url, API_KEY, model))
        )


if __name__ == "__main__":
    main()
