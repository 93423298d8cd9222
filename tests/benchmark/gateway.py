"""What the API gateway costs: the engine called directly, and through the Space's /v1.

    python tests/benchmark/gateway.py

Two engines are measured: vLLM with the demo model, booted by ./start.sh, which reserves one core
for the gateway; and a scripted one with a fixed rate (engine.py), which leaves the gateway as much
CPU time as an engine on a GPU would. Each stream requests one answer after another.

The two sides take turns, so that background load on the machine affects both. All figures are
medians: the time from sending a request to the first chunk of its answer, the tokens/s of all
streams together, and the ratio of each turn through the gateway to the direct turn next to it.
The client reads plain sockets, to use little CPU time itself.
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
from operator import truediv
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.programs import API_KEY, START, Program, free_port

HERE = Path(__file__).resolve().parent

TOKENS = (64, 192)  # fewest and most tokens of an answer
TURNS = {1: 12, 32: 6}  # streams -> turns of each side
SCRIPTED_TOKENS = 128  # of every answer
SCRIPTED_RATE = 50  # tokens/s of each stream
SCRIPTED_TURNS = {1: 1, 32: 2}
ANSWERS = 4  # of each stream in one turn
MESSAGES = [{"role": "user", "content": "Tell me everything about this Space."}]


@dataclass
class Side:
    """One of the two addresses, and what was measured there."""

    url: str
    key: str
    model: str
    first_chunk: list[float] = field(default_factory=list)  # seconds, of every answer
    tokens_per_second: list[float] = field(default_factory=list)  # of every turn

    async def answer(self, tokens: int) -> float:
        """Stream an answer of exactly `tokens` tokens; return the seconds to its first chunk.

        Raises RuntimeError if the answer is incomplete.
        """
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
            f"POST /v1/chat/completions HTTP/1.1\r\n"
            f"Host: {address.netloc}\r\n"
            f"Authorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        began = time.perf_counter()
        writer.write(head.encode() + body)
        received = bytearray()
        first_chunk = 0.0
        while not received.endswith(b"0\r\n\r\n") and (data := await reader.read(65536)):
            received += data
            if not first_chunk and b"data: " in received:
                first_chunk = time.perf_counter() - began
        writer.close()
        if b"data: [DONE]" not in received or received.count(b'"finish_reason":"') != 1:
            end = received.decode(errors="replace")[-2000:]
            raise RuntimeError(f"{self.url} sent an incomplete answer:\n{end}")
        return first_chunk

    async def stream(self, delay: float, lengths: list[int]) -> None:
        await asyncio.sleep(delay)
        for number, tokens in enumerate(lengths):
            first_chunk = await self.answer(tokens)
            if number or len(lengths) == 1:  # all streams start at once: leave out that rush
                self.first_chunk.append(first_chunk)

    async def turn(self, streams: int, seed: int, scripted: bool) -> None:
        """Do the work of this seed, the same for both sides.

        To keep the streams out of step, answers differ in length, or streams in their start.
        """
        rng = random.Random(seed)
        spread = SCRIPTED_TOKENS / SCRIPTED_RATE
        delays = [rng.uniform(0, spread) if scripted else 0 for _ in range(streams)]
        lengths = [
            [SCRIPTED_TOKENS if scripted else rng.randint(*TOKENS) for _ in range(ANSWERS)]
            for _ in range(streams)
        ]
        began = time.perf_counter()
        await asyncio.gather(*map(self.stream, delays, lengths))
        self.tokens_per_second.append(sum(map(sum, lengths)) / (time.perf_counter() - began))


async def measure(name: str, direct: Side, gateway: Side, scripted: bool = False) -> None:
    """Print this engine's rows of the table."""
    sides = (direct, gateway)
    for streams, turns in (SCRIPTED_TURNS if scripted else TURNS).items():
        for side in sides:  # warm up
            await side.turn(streams, 0, scripted)
            side.first_chunk.clear()
            side.tokens_per_second.clear()
        for number in range(turns):
            for side in sides if number % 2 else reversed(sides):
                await side.turn(streams, number, scripted)
        first = [median(side.first_chunk) * 1000 for side in sides]
        speed = [median(side.tokens_per_second) for side in sides]
        ratio = median(map(truediv, gateway.tokens_per_second, direct.tokens_per_second))
        print(
            f"| {name} | {streams} "
            f"| {first[0]:.1f} ms | {first[1]:.1f} ms | {first[1] - first[0]:+.1f} ms "
            f"| {speed[0]:.0f} | {speed[1]:.0f} | {ratio:.3f} |",
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


def prioritize_client() -> None:
    """Linux shares the cores among sessions. Favour the client's, so that it isn't a bottleneck."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20")


def engine_key(space: Program) -> str:
    """The key that ./start.sh generated for its engine."""
    for process in space.processes():
        if any("app.py" in argument for argument in process.cmdline()):
            return process.environ()["MODEL_API_KEY"]
    raise RuntimeError("app.py is not running")


def main() -> None:
    prioritize_client()
    port, engine_port = free_port(), free_port()
    url, engine_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}"
    print(
        f"{TOKENS[0]} to {TOKENS[1]} tokens per answer (scripted: {SCRIPTED_TOKENS}), "
        f"{psutil.cpu_count()} cores\n"
    )
    print(
        "| engine | streams | first chunk p50: direct | through the gateway | difference "
        "| tokens/s: direct | through the gateway | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")

    script = [sys.executable, str(HERE / "engine.py")]
    arguments = f"{engine_port} {SCRIPTED_TOKENS} {SCRIPTED_RATE}".split()
    engine = Program([*script, *arguments], Path(os.devnull), {})
    page = (sys.executable, "app.py", "--port", str(port))
    try:
        with running(*page, url=url, MODEL_URL=engine_url, API_KEYS=API_KEY):
            direct, gateway = Side(engine_url, "", "benchmark"), Side(url, API_KEY, "benchmark")
            name = f"scripted, {SCRIPTED_RATE} tokens/s per stream"
            asyncio.run(measure(name, direct, gateway, scripted=True))
    finally:
        engine.stop()

    start = (*START, "--port", str(port))
    with running(*start, url=url, ENGINE_PORT=str(engine_port), API_KEYS=API_KEY) as space:
        model = "vllm-space-demo"
        direct, gateway = Side(engine_url, engine_key(space), model), Side(url, API_KEY, model)
        asyncio.run(measure("vLLM, demo model", direct, gateway))


if __name__ == "__main__":
    main()
