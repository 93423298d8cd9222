"""Concurrent visitors of the page without a browser, and the two ways they stop an answer."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from benchmark.browser import Visitor

# Streams -> seconds until the engine is free; 0.2 and 0.8 s on a quiet machine
LIMIT = {1: 10, 64: 20}
# Keeps the model repeating itself, so that it does not end the answer before the visitor does.
ENDLESS = {"Temperature": "0", "Frequency penalty": "-2", "Max tokens": "1900"}


def connections():
    # One connection per request, closed together, as when a browser tab is closed.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))


async def arrive(http, url, count):
    """Open the page as `count` visitors."""
    async with http.get(f"{url}/config") as answer:
        config = await answer.text()
    visitors = [Visitor(http, url, json.loads(config)) for _ in range(count)]
    for visitor in visitors:
        visitor.values |= {visitor.labels[label]: value for label, value in ENDLESS.items()}
        await visitor.arrive()
    return visitors


async def until(condition, timeout=50):
    """Wait until `condition` is true; returns the seconds it took."""
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - began < timeout
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def in_a_thread(coroutine):
    """Run a coroutine in a thread, because Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def stopped(visitors, answers):
    await asyncio.gather(*(visitor.stop() for visitor in visitors))


async def gone(visitors, answers):
    for answer in answers:
        answer.cancel()  # which closes its connection
