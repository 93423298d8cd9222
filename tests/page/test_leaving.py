"""Visitors who stop or leave before the first token free the engine: one, then 64 together.

On a scripted engine, because a real one sends its first token too soon. Leaving in mid-answer:
tests/engine/test_stopping.py.
"""

import asyncio
import time

import pytest

from support.scripted_engine import ScriptedEngine
from support.visitors import LIMIT, arrive, connections, gone, in_a_thread, stopped, until


@pytest.fixture(scope="module")
def active() -> list[str]:
    """The requests that the engine is answering."""
    return []


@pytest.fixture(scope="module")
def url(shared_page, active):
    """A page for many visitors, whose engine never sends a token."""

    def script(path, body):
        active.append(path)
        try:
            while True:
                time.sleep(0.2)
                yield b": still reading\n\n"
        finally:  # the connection was closed
            active.pop()

    with ScriptedEngine(script).running() as engine:
        yield shared_page(engine.url, MAX_CONCURRENCY="256", MAX_QUEUE="256")


@pytest.mark.parametrize("streams", [1, 64])
@pytest.mark.parametrize("leave", [stopped, gone])
def test_leaving_before_the_first_token(url, active, leave, streams):
    async def run():
        async with connections() as http:
            visitors = await arrive(http, url, streams)
            answers = [asyncio.create_task(visitor.ask("Hi")) for visitor in visitors]
            await until(
                lambda: len(active) == streams and all(visitor.running for visitor in visitors)
            )
            began = time.monotonic()
            await leave(visitors, answers)
            await until(lambda: not active)
            seconds = time.monotonic() - began
            await asyncio.gather(*answers, return_exceptions=True)
            return seconds

    seconds = in_a_thread(run())
    print(f"{streams} waiting, {leave.__name__}: the engine was free after {seconds:.2f} s")
    assert seconds < LIMIT[streams]
