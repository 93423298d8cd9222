"""How much slower than the engine is the page? One command, one table, one run.

    python tests/benchmark/page.py [--streams 1 16 64] [--pages ours load_chat] [--tokens 256]
                                   [--rate 50] [--json FILE]
    python tests/benchmark/page.py --soak [1000]

Simulates N visitors who all press Enter at once, on our page and on the competitors'
(competitors.py). A scripted engine (engine.py) sends each of them TOKENS tokens at RATE per second;
"floor" reads the engine directly. Stretch is the time from Enter to the last token divided by the
engine's own; first token is the delay that the page adds. Every stream is checked: every token, in
order, exactly once.

--soak holds N conversations on our page instead, each a new visitor's with two short answers, and
prints the memory of the page's process every hundred: a page that stays up for weeks must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import aiohttp
import psutil
from browser import Answer, Visitor
from engine import MODEL, token

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.programs import ROOT, free_port

HERE = Path(__file__).resolve().parent

PAGES = ["floor", "ours", "interface", "generate_page", "load_chat"]
COLUMNS = {  # heading -> how a row of `summary` is printed there
    "page": "{page}",
    "streams": "{streams}",
    "stretch": "{stretch:.2f}",
    "worst stretch": "{stretch_worst:.2f}",
    "first token p50": "{first_p50_ms:.0f} ms",
    "first token p99": "{first_p99_ms:.0f} ms",
    "gap p99": "{gap_p99_ms:.0f} ms",
    "CPU seconds per 1000 tokens": "{cpu_s_per_1000_tokens:.2f}",
    "memory": "{memory_mib:.0f} MiB",
}

SOAK_VISITORS = 16  # at the same time
SOAK_INTERVAL = 100  # conversations between two rows of the table
SOAK_WARM_UP = 400  # conversations after which memory should no longer grow


def start(command: list[str], core: int | None = None, **env: str) -> psutil.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen([sys.executable, *command], env={**os.environ, **env}, cwd=ROOT, **quiet)
    if core is not None and len(os.sched_getaffinity(0)) > 1:
        process.cpu_affinity([core])
    return process


def stop(*processes: psutil.Popen) -> None:
    for process in processes:
        process.kill()
        process.wait()


async def config_of(http: aiohttp.ClientSession, url: str) -> dict:
    """Wait until the page is up; return its /config."""
    for _ in range(600):
        try:
            async with http.get(f"{url}/config") as response:
                if response.status == 200:
                    return await response.json()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} did not come up")


async def read_directly(http: aiohttp.ClientSession, url: str) -> Answer:
    """The floor: the same stream, straight from the engine."""
    answer, began = Answer(), time.perf_counter()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        answer.text += text
                        answer.done = time.perf_counter() - began
                        answer.updates.append(answer.done)
    return answer


def complete_answer(tokens: int) -> str:
    """The text of the scripted engine's answer, as the page shows it."""
    return "".join(map(token, range(tokens))).strip()


def percentile_99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else 0.0


def summary(
    page: str, answers: list[Answer], tokens: int, rate: float, cpu: float, memory: int
) -> dict:
    """One row: `cpu` in seconds, `memory` in bytes, both of the page's process."""
    broken = sum(answer.text.strip() != complete_answer(tokens) for answer in answers)
    if broken:
        raise SystemExit(
            f"{page}: {broken} of {len(answers)} streams lost, repeated or reordered tokens"
        )
    duration = tokens / rate  # of the engine's own stream
    first = [answer.updates[0] - 1 / rate for answer in answers]
    gaps = [
        later - earlier
        for answer in answers
        for earlier, later in itertools.pairwise(answer.updates)
    ]
    return {
        "page": page,
        "streams": len(answers),
        "stretch": median(answer.done for answer in answers) / duration,
        "stretch_worst": max(answer.done for answer in answers) / duration,
        "first_p50_ms": median(first) * 1000,
        "first_p99_ms": percentile_99(first) * 1000,
        "gap_p99_ms": percentile_99(gaps) * 1000,
        "cpu_s_per_1000_tokens": cpu / (len(answers) * tokens / 1000),
        "memory_mib": memory / 2**20,
    }


async def measure(name: str, streams: int, tokens: int, rate: float) -> dict:
    """Measure one page with one number of streams, with a new engine and a new page."""
    engine_url = f"http://127.0.0.1:{(engine_port := free_port())}"
    url = f"http://127.0.0.1:{(port := free_port())}"
    engine = start([str(HERE / "engine.py"), str(engine_port), str(tokens), str(rate)], core=0)
    page = None
    if name == "ours":
        limits = {"MAX_CONCURRENCY": "1000", "MAX_QUEUE": "1000"}
        page = start(["app.py", "--port", str(port)], MODEL_URL=engine_url, **limits)
    elif name != "floor":
        page = start([str(HERE / "competitors.py"), name, engine_url, str(port)])
    try:
        async with AsyncExitStack() as stack:
            # One client address per hundred visitors, since the page limits each address.
            sessions = []
            for number in range(streams // 100 + 1):
                connector = aiohttp.TCPConnector(
                    limit=0,
                    keepalive_timeout=2,  # servers close idle connections after 5 s
                    local_addr=(f"127.0.0.{number + 1}", 0),
                )
                session = aiohttp.ClientSession(
                    connector=connector, timeout=aiohttp.ClientTimeout(total=600)
                )
                sessions.append(await stack.enter_async_context(session))
            if page is None:
                await asyncio.sleep(1)
                reads = [read_directly(sessions[0], engine_url) for _ in range(streams)]
                answers = await asyncio.gather(*reads)
                return summary(name, answers, tokens, rate, cpu=0.0, memory=0)
            config = json.dumps(await config_of(sessions[0], url))
            first, *visitors = [
                Visitor(sessions[number // 100], url, json.loads(config))
                for number in range(streams + 1)
            ]
            for visitor in (first, *visitors):
                await visitor.arrive()
            await first.ask("warm up")
            cpu = sum(page.cpu_times()[:2])
            answers = await asyncio.gather(*(visitor.ask("Hi") for visitor in visitors))
            cpu = sum(page.cpu_times()[:2]) - cpu
            return summary(name, answers, tokens, rate, cpu, page.memory_info().rss)
    finally:
        stop(*filter(None, (page, engine)))


async def soak(conversations: int) -> None:
    """Hold that many conversations on our page and print what its process uses meanwhile."""
    engine_url = f"http://127.0.0.1:{(engine_port := free_port())}"
    url = f"http://127.0.0.1:{(port := free_port())}"
    tokens = 16
    engine = start([str(HERE / "engine.py"), str(engine_port), str(tokens), "200"])
    page = start(["app.py", "--port", str(port)], MODEL_URL=engine_url)
    pending = iter(range(conversations))
    memory: dict[int, float] = {}  # conversations held -> MiB
    done = 0

    def print_row() -> None:
        memory[done] = page.memory_info().rss / 2**20
        print(
            f"| {done} | {memory[done]:.1f} MiB | {page.num_threads()} | {page.num_fds()} |",
            flush=True,
        )

    async def hold_conversations(http: aiohttp.ClientSession, config: str) -> None:
        nonlocal done
        for _ in pending:
            visitor = Visitor(http, url, json.loads(config))
            await visitor.arrive()
            for question in ("Hi", "And then?"):
                answer = await visitor.ask(question)
                if answer.text.strip() != complete_answer(tokens):
                    raise SystemExit(
                        f"The page shows {answer.text!r} instead of {complete_answer(tokens)!r}"
                    )
            done += 1
            if done % SOAK_INTERVAL == 0:
                print_row()

    try:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            config = json.dumps(await config_of(http, url))
            print(
                "| conversations | memory | threads | open files |\n|---|---|---|---|", flush=True
            )
            print_row()
            await asyncio.gather(*(hold_conversations(http, config) for _ in range(SOAK_VISITORS)))
        if conversations > SOAK_WARM_UP:
            growth = memory[max(memory)] - memory[SOAK_WARM_UP]
            print(f"Growth after the first {SOAK_WARM_UP}: {growth:.1f} MiB")
    finally:
        stop(page, engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 128, 256])
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--rate", type=float, default=50, help="tokens per second of each stream")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--soak", type=int, nargs="?", const=1000, metavar="N", help="hold N conversations instead"
    )
    options = parser.parse_args()
    if options.soak:
        asyncio.run(soak(options.soak))
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows = []
    for streams in options.streams:
        for page in options.pages:
            row = asyncio.run(measure(page, streams, options.tokens, options.rate))
            cells = [cell.format(**row) for cell in COLUMNS.values()]
            print("| " + " | ".join(cells) + " |", flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
