"""A visitor who stops an answer or leaves before its first token frees the engine: one, and 64 at once.

On a scripted engine, because the real one's first token comes too soon. The rest: engine/test_stopping.py.
"""

import asyncio
import time

import pytest

from support.scripted_engine import ScriptedEngine
from support.visitors import LIMIT, arrive, connections, gone, in_a_thread, stopped, until


@pytest.mark.parametrize("streams", [1, 64])
@pytest.mark.parametrize("leave", [stopped, gone])
def test_before_the_first_token(page, leave, streams):
    at_work = []

    def silent(path, body):
        at_work.append(path)
        try:
            while True:
                time.sleep(0.2)
                yield b": still reading\n\n"
        finally:  # the connection is gone
            at_work.pop()

    async def run(url):
        async with connections() as http:
            visitors = await arrive(http, url, streams)
            answers = [asyncio.create_task(visitor.ask("Hi")) for visitor in visitors]
            await until(
                lambda: len(at_work) == streams and all(visitor.running for visitor in visitors)
            )
            began = time.monotonic()
            await leave(visitors, answers)
            await until(lambda: not at_work)
            took = time.monotonic() - began
            await asyncio.gather(*answers, return_exceptions=True)
            return took

    with ScriptedEngine(silent).running() as engine:
        took = in_a_thread(run(page(engine.url, MAX_CONCURRENCY="256", MAX_QUEUE="256")))
    print(f"{streams} waiting, {leave.__name__}: the engine was free after {took:.2f} s")
    assert took < LIMIT[streams]
