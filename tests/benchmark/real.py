"""The page before the real vLLM, against the same load straight on the engine, in one run.

    python tests/benchmark/real.py [--streams 8 32] [--json FILE]

Boots ./start.sh: with the demo model, or what MODEL_ID and ENGINE_ARGS say. On a GPU without a Hub, a model of random
weights does: MODEL_ID=<folder with config.json and tokenizer> ENGINE_ARGS="--load-format dummy". So many streams run
all the time, each the next answer after the last, of lengths that keep them out of step. The sides take turns with
the same work, so that whatever else the machine does falls on both. Every answer on the page must be the one that the
engine gives to the same request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from pathlib import Path
from statistics import median

import aiohttp
from browser import Visitor
from door import START, come_first, running
from page import config_of, free_port

QUESTION = "Tell me everything about this Space."
LENGTHS = range(64, 257, 32)  # tokens of an answer
ANSWERS = 4  # of each stream in one turn
TURNS = 6  # of each side
KEPT = ("MODEL_ID", "ENGINE_ARGS", "ENGINE_DEVICE", "CUDA_VISIBLE_DEVICES")


class Engine:
    """The engine, asked as the page asks it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str, model: str):
        self.http, self.url, self.key, self.model = http, url, key, model

    async def answer(self, length: int) -> str:
        """The text of an answer of so many tokens."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": length,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text, tokens = "", 0
        head = {"Authorization": f"Bearer {self.key}"}
        async with self.http.post(
            f"{self.url}/v1/chat/completions", json=body, headers=head
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    text += "".join(
                        choice["delta"].get("content") or "" for choice in event["choices"]
                    )
        if tokens != length:
            raise SystemExit(
                f"The model ends its answer to {QUESTION!r} after {tokens} tokens already."
            )
        return text

    async def stream(self, lengths: list[int]) -> None:
        for length in lengths:
            await self.answer(length)


class Tab(Visitor):
    """A visitor who starts anew after each answer. `expected` has the answer of each length."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, config: dict, expected: dict[int, str]
    ):
        super().__init__(http, url, config)
        self.expected = expected
        labels = {
            component["props"].get("label"): component["id"] for component in config["components"]
        }
        self.values[labels["Temperature"]] = "0"
        self.max_tokens = labels["Max tokens"]

    async def stream(self, lengths: list[int]) -> None:
        for length in lengths:
            self.values[self.chatbot] = []
            self.values[self.max_tokens] = str(length)
            seen = await self.ask(QUESTION)
            if seen.text.strip() != self.expected[length].strip():
                raise SystemExit(
                    f"The page shows\n{seen.text}\nand the engine said\n{self.expected[length]}"
                )


def work(streams: int, seed: int) -> list[list[int]]:
    """The lengths of the answers of each stream."""
    dice = random.Random(seed)
    return [dice.choices(LENGTHS, k=ANSWERS) for _ in range(streams)]


async def speed(side: list[Engine] | list[Tab], seed: int) -> float:
    """Tokens a second while the work of this seed is done."""
    lengths = work(len(side), seed)
    began = time.perf_counter()
    await asyncio.gather(*(one.stream(its) for one, its in zip(side, lengths, strict=True)))
    return sum(map(sum, lengths)) / (time.perf_counter() - began)


async def measure(url: str, engine_url: str, key: str, counts: list[int]) -> list[dict]:
    rows = []
    connector = aiohttp.TCPConnector(
        limit=0, force_close=True
    )  # a server may close an idle one as it is taken up
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=600)
    ) as http:
        async with http.get(
            f"{engine_url}/v1/models", headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            model = (await answer.json())["data"][0]["id"]
        engine = Engine(http, engine_url, key, model)
        expected = {length: await engine.answer(length) for length in LENGTHS}
        config = json.dumps(await config_of(http, url))
        for count in counts:
            sides = {
                "engine": [engine] * count,
                "page": [Tab(http, url, json.loads(config), expected) for _ in range(count)],
            }
            for tab in sides["page"]:
                await tab.arrive()
            found: dict[str, list[float]] = {name: [] for name in sides}
            for name in sides:
                await speed(sides[name], -1)  # warm
            for number in range(TURNS):
                for name in sorted(sides, reverse=bool(number % 2)):
                    found[name].append(await speed(sides[name], number))
            row = {
                "model": model,
                "streams": count,
                **{name: median(speeds) for name, speeds in found.items()},
            }
            row["ratio"] = median(
                page / engine for page, engine in zip(found["page"], found["engine"], strict=True)
            )
            print(
                f"| {model} | {count} | {row['engine']:.0f} | {row['page']:.0f} | {row['ratio']:.3f} |",
                flush=True,
            )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    come_first()
    print(
        "| model | streams | tokens/s: engine | page | ratio |\n|---|---|---|---|---|", flush=True
    )
    port, engine_port = free_port(), free_port()
    url, engine_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}"
    env = {name: os.environ[name] for name in KEPT if name in os.environ}
    env |= {"ENGINE_PORT": str(engine_port), "MAX_CONCURRENCY": "1000", "MAX_QUEUE": "1000"}
    with running(*START, "--port", str(port), url=url, **env) as space:
        app = next(one for one in space.family() if any("app.py" in part for part in one.cmdline()))
        rows = asyncio.run(
            measure(url, engine_url, app.environ()["MODEL_API_KEY"], options.streams)
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
