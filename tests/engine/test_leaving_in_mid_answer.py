"""A visitor who stops an answer or leaves in the middle of it frees the real engine: one, and 64 at once."""

import asyncio
import time

import pytest

from support.programs import active_requests
from support.visitors import LIMIT, arrive, connections, gone, in_a_thread, stopped, until


@pytest.fixture(scope="module")
def url(space, shared_page):
    """A page before the real engine that lets one address have all the streams."""
    limits = {"MAX_CONCURRENCY": "256", "MAX_QUEUE": "256"}
    return shared_page(space.engine_url, MODEL_API_KEY=space.engine_key, **limits)


@pytest.mark.parametrize("streams", [1, 64])
@pytest.mark.parametrize("leave", [stopped, gone])
def test_in_mid_answer(space, url, leave, streams):
    async def run():
        async with connections() as http:
            visitors = await arrive(http, url, streams)
            answers = [
                asyncio.create_task(visitor.ask("Tell me everything.")) for visitor in visitors
            ]
            await until(lambda: all(visitor.answer.text for visitor in visitors))
            assert active_requests(space.engine_url) > 0
            began = time.monotonic()
            await leave(visitors, answers)
            await until(lambda: active_requests(space.engine_url) == 0)
            took = time.monotonic() - began
            ended = await asyncio.gather(*answers, return_exceptions=True)
            if leave is stopped:  # the page is told that it is over, and goes on
                assert not [one for one in ended if isinstance(one, BaseException)]
            return took

    took = in_a_thread(run())
    print(f"{streams} {leave.__name__}: the engine was free after {took:.2f} s")
    assert took < LIMIT[streams]
