"""The page in front of a real vLLM, compared with the same load sent directly to the engine.

    python tests/benchmark/real.py [--streams 8 32] [--json FILE]

Boots ./start.sh with the demo model, or with whatever MODEL_ID and ENGINE_ARGS say. On a GPU
without access to the Hub, a model with random weights is enough:
MODEL_ID=<folder with config.json and tokenizer> ENGINE_ARGS="--load-format dummy".

Each stream requests one answer after another, of lengths that keep the streams out of step. The
two sides take turns with the same work, so that background load on the machine affects both. Every
answer on the page must be the one that the engine gives to the same request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from operator import truediv
from pathlib import Path
from statistics import median

import aiohttp
from browser import Visitor
from gateway import START, engine_key, free_port, prioritize_client, running
from page import config_of

QUESTION = "Tell me everything about this Space."
LENGTHS = range(64, 257, 32)  # tokens of an answer
ANSWERS = 4  # of each stream in one turn
TURNS = 6  # of each side
WARM_UP = -1  # seed of the turn that is not measured
INHERITED = ("MODEL_ID", "ENGINE_ARGS", "ENGINE_DEVICE", "CUDA_VISIBLE_DEVICES")


class Engine:
    """Sends the engine the requests that the page sends it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str, model: str):
        self.http, self.url, self.key, self.model = http, url, key, model

    async def answer(self, length: int) -> str:
        """The text of an answer of `length` tokens."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": length,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"{self.url}/v1/chat/completions"
        text, tokens = "", 0
        async with self.http.post(url, json=body, headers=headers) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in chunk["choices"]:
                        text += choice["delta"].get("content") or ""
        if tokens != length:
            raise SystemExit(
                f"The model's answer to {QUESTION!r} ends after {tokens} tokens; "
                f"the benchmark needs {length}."
            )
        return text

    async def stream(self, lengths: list[int]) -> None:
        for length in lengths:
            await self.answer(length)


class Tab(Visitor):
    """A visitor who starts a new conversation for each answer, and checks it.

    `expected` maps the length of an answer to its text.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, config: dict, expected: dict[int, str]
    ):
        super().__init__(http, url, config)
        self.expected = expected
        self.values[self.labels["Temperature"]] = "0"

    async def stream(self, lengths: list[int]) -> None:
        for length in lengths:
            self.values[self.chatbot] = []
            self.values[self.labels["Max tokens"]] = str(length)
            answer = await self.ask(QUESTION)
            if answer.text.strip() != self.expected[length].strip():
                raise SystemExit(
                    f"The page shows\n{answer.text}\nbut the engine sent\n{self.expected[length]}"
                )


async def speed(side: list[Engine] | list[Tab], seed: int) -> float:
    """Do the work of this seed, the same for both sides; return tokens per second."""
    rng = random.Random(seed)
    lengths = [rng.choices(LENGTHS, k=ANSWERS) for _ in side]
    began = time.perf_counter()
    await asyncio.gather(*(stream.stream(work) for stream, work in zip(side, lengths, strict=True)))
    return sum(map(sum, lengths)) / (time.perf_counter() - began)


async def measure(url: str, engine_url: str, key: str, counts: list[int]) -> list[dict]:
    """Print and return a row for each number of streams."""
    rows = []
    # A server may close an idle connection just as it is reused.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        headers = {"Authorization": f"Bearer {key}"}
        async with http.get(f"{engine_url}/v1/models", headers=headers) as response:
            model = (await response.json())["data"][0]["id"]
        engine = Engine(http, engine_url, key, model)
        expected = {length: await engine.answer(length) for length in LENGTHS}
        config = json.dumps(await config_of(http, url))
        for count in counts:
            tabs = [Tab(http, url, json.loads(config), expected) for _ in range(count)]
            for tab in tabs:
                await tab.arrive()
            sides = {"engine": [engine] * count, "page": tabs}
            speeds: dict[str, list[float]] = {name: [] for name in sides}
            for side in sides.values():
                await speed(side, WARM_UP)
            for number in range(TURNS):
                for name in sorted(sides, reverse=bool(number % 2)):
                    speeds[name].append(await speed(sides[name], number))
            row = {
                "model": model,
                "streams": count,
                "engine": median(speeds["engine"]),
                "page": median(speeds["page"]),
                "ratio": median(map(truediv, speeds["page"], speeds["engine"])),
            }
            cells = "| {model} | {streams} | {engine:.0f} | {page:.0f} | {ratio:.3f} |"
            print(cells.format(**row), flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    prioritize_client()
    print("| model | streams | tokens/s: direct | through the page | ratio |")
    print("|---|---|---|---|---|", flush=True)
    port, engine_port = free_port(), free_port()
    url, engine_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}"
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"ENGINE_PORT": str(engine_port), "MAX_CONCURRENCY": "1000", "MAX_QUEUE": "1000"}
    with running(*START, "--port", str(port), url=url, **env) as space:
        rows = asyncio.run(measure(url, engine_url, engine_key(space), options.streams))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
