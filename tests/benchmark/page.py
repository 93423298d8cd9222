"""How much slower than the engine is the page? One command, one table, everything in one run on this machine.

    python tests/benchmark/page.py [--streams 1 16 64] [--pages ours load_chat] [--tokens 256] [--rate 50] [--json FILE]
    python tests/benchmark/page.py --soak [1000]

A scripted engine sends TOKENS tokens at RATE a second to each of N visitors, who all press Enter at the same time, on
our page and on the competitors' (competitors.py); "floor" reads the engine directly. Stretch is the time from Enter to
the last token over the engine's own. Every stream is checked: every token, in order, exactly once.

--soak has so many conversations of two short answers each on our page instead, every one a new visitor's, and prints
after each hundred what the page holds: a page that stays up for weeks must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from browser import Seen, Visitor  # noqa: E402
from engine import MODEL, token  # noqa: E402

PAGES = ["floor", "ours", "interface", "generate_page", "load_chat"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], core: int | None = None, **env: str) -> psutil.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen([sys.executable, *command], env={**os.environ, **env}, cwd=ROOT, **quiet)
    if core is not None and len(os.sched_getaffinity(0)) > 1:
        process.cpu_affinity([core])
    return process


async def config_of(http: aiohttp.ClientSession, url: str) -> dict:
    for _ in range(600):
        try:
            async with http.get(f"{url}/config") as answer:
                if answer.status == 200:
                    return await answer.json()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not come up")


async def read_directly(http: aiohttp.ClientSession, url: str) -> Seen:
    """The floor: the same stream, straight from the engine."""
    seen, began = Seen(), time.perf_counter()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        seen.text += text
                        seen.done = time.perf_counter() - began
                        seen.updates.append(seen.done)
    return seen


def summary(name: str, seen: list[Seen], tokens: int, rate: float, cpu: float, memory: int) -> dict:
    expected = "".join(token(number) for number in range(tokens)).strip()
    broken = sum(one.text.strip() != expected for one in seen)
    if broken:
        raise SystemExit(
            f"{name}: {broken} of {len(seen)} streams lost, repeated or reordered tokens"
        )
    first = sorted(one.updates[0] for one in seen)
    gaps = sorted(b - a for one in seen for a, b in itertools.pairwise(one.updates))
    return {
        "page": name,
        "streams": len(seen),
        "stretch": statistics.median(one.done for one in seen) / (tokens / rate),
        "stretch_worst": max(one.done for one in seen) / (tokens / rate),
        "first_p50_ms": statistics.median(first) * 1000 - 1000 / rate,  # over the engine's own
        "first_p99_ms": first[int(0.99 * (len(first) - 1))] * 1000 - 1000 / rate,
        "gap_p99_ms": gaps[int(0.99 * (len(gaps) - 1))] * 1000 if gaps else 0.0,
        "cpu_s_per_1000_tokens": cpu / (len(seen) * tokens / 1000),
        "memory_mib": memory / 2**20,
    }


async def measure(name: str, streams: int, tokens: int, rate: float) -> dict:
    """One page with one number of streams, in processes of its own."""
    engine_url = f"http://127.0.0.1:{(engine_port := free_port())}"
    port = free_port()
    engine = start([str(HERE / "engine.py"), str(engine_port), str(tokens), str(rate)], core=0)
    page = None
    if name == "ours":
        limits = {"MAX_CONCURRENCY": "1000", "MAX_QUEUE": "1000"}
        page = start(["app.py", "--port", str(port)], MODEL_URL=engine_url, **limits)
    elif name != "floor":
        page = start([str(HERE / "competitors.py"), name, engine_url, str(port)])
    try:
        timeout = aiohttp.ClientTimeout(total=600)
        async with AsyncExitStack() as stack:
            # A server closes idle connections after 5 s; a browser would try again, so this one never uses those.
            # One address for each hundred visitors: the page lets none have too many answers at once.
            connectors = [
                aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=2, local_addr=(f"127.0.0.{number + 1}", 0)
                )
                for number in range(streams // 100 + 1)
            ]
            sessions = [
                await stack.enter_async_context(
                    aiohttp.ClientSession(connector=one, timeout=timeout)
                )
                for one in connectors
            ]
            http = sessions[0]
            if page is None:
                await asyncio.sleep(1)
                cpu, memory = 0.0, 0
                seen = await asyncio.gather(
                    *(read_directly(http, engine_url) for _ in range(streams))
                )
            else:
                url = f"http://127.0.0.1:{port}"
                config = await config_of(http, url)
                visitors = [
                    Visitor(sessions[number // 100], url, json.loads(json.dumps(config)))
                    for number in range(streams + 1)
                ]
                for visitor in visitors:
                    await visitor.arrive()
                await visitors[0].ask("warm up")
                before = sum(page.cpu_times()[:2])
                seen = await asyncio.gather(*(visitor.ask("Hi") for visitor in visitors[1:]))
                cpu, memory = sum(page.cpu_times()[:2]) - before, page.memory_info().rss
            return summary(name, list(seen), tokens, rate, cpu, memory)
    finally:
        for process in filter(None, (page, engine)):
            process.kill()
            process.wait()


VISITORS = 16  # of a soak, at a time
EVERY = 100  # conversations between two rows of a soak
WARM = 400  # conversations of a soak after which nothing should grow any more


async def soak(conversations: int) -> None:
    """So many conversations on our page, each with a new visitor, and what the page's process holds meanwhile."""
    engine_url = f"http://127.0.0.1:{(engine_port := free_port())}"
    url = f"http://127.0.0.1:{(port := free_port())}"
    engine = start([str(HERE / "engine.py"), str(engine_port), "16", "200"])
    page = start(["app.py", "--port", str(port)], MODEL_URL=engine_url)
    expected = "".join(token(number) for number in range(16)).strip()
    waiting = iter(range(conversations))
    memory: dict[int, float] = {}  # MiB after so many conversations
    done = 0

    def row() -> None:
        memory[done] = page.memory_info().rss / 2**20
        print(
            f"| {done} | {memory[done]:.1f} | {page.num_threads()} | {page.num_fds()} |", flush=True
        )

    async def visits(http: aiohttp.ClientSession, config: str) -> None:
        nonlocal done
        for _ in waiting:
            visitor = Visitor(http, url, json.loads(config))
            await visitor.arrive()
            for question in ("Hi", "And then?"):
                seen = await visitor.ask(question)
                if seen.text.strip() != expected:
                    raise SystemExit(f"Instead of {expected!r} the page shows {seen.text!r}")
            done += 1
            if done % EVERY == 0:
                row()

    try:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=60)
        ) as http:
            config = json.dumps(await config_of(http, url))
            print("| conversations | memory_mib | threads | files |\n|---|---|---|---|", flush=True)
            row()
            await asyncio.gather(*(visits(http, config) for _ in range(VISITORS)))
        if conversations > WARM:
            print(f"Growth after the first {WARM}: {memory[max(memory)] - memory[WARM]:.1f} MiB")
    finally:
        for process in (page, engine):
            process.kill()
            process.wait()


COLUMNS = [
    "page",
    "streams",
    "stretch",
    "stretch_worst",
    "first_p50_ms",
    "first_p99_ms",
    "gap_p99_ms",
    "cpu_s_per_1000_tokens",
    "memory_mib",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 128, 256])
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--soak", type=int, nargs="?", const=1000, metavar="N", help="N conversations instead"
    )
    options = parser.parse_args()
    if options.soak:
        asyncio.run(soak(options.soak))
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows = []
    for streams in options.streams:
        for name in options.pages:
            row = asyncio.run(measure(name, streams, options.tokens, options.rate))
            cells = [
                f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name])
                for name in COLUMNS
            ]
            print("| " + " | ".join(cells) + " |", flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
