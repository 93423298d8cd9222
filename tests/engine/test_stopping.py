"""Visitors who stop an answer, or close the page during one, free the real engine.

tests/page/test_leaving.py has visitors who do so before the first token.
"""

import asyncio

import pytest

from support.programs import active_requests, generated_tokens
from support.visitors import ENDLESS, arrive, connections, gone, in_a_thread, stopped, until

MOST = 16  # the most answers that the Space gives one address: a quarter of MAX_CONCURRENCY


@pytest.mark.parametrize("count", [1, MOST])
@pytest.mark.parametrize("leave", [stopped, gone])
def test_visitors_who_leave_free_the_engine(space, leave, count):
    async def run():
        async with connections() as http:
            visitors = await arrive(http, space.url, count)
            answers = [
                asyncio.create_task(visitor.ask("Tell me everything.")) for visitor in visitors
            ]
            await until(lambda: all(visitor.answer.text for visitor in visitors))
            assert active_requests(space.engine_url) > 0
            await leave(visitors, answers)
            seconds = await until(lambda: active_requests(space.engine_url) == 0)
            results = await asyncio.gather(*answers, return_exceptions=True)
            if leave is stopped:  # to the page a stopped answer is complete
                assert not [result for result in results if isinstance(result, BaseException)]
            return seconds

    before = generated_tokens(space.engine_url)
    seconds = in_a_thread(run())
    print(f"{count} {leave.__name__}: the engine was free after {seconds:.2f} s")
    assert generated_tokens(space.engine_url) - before < count * int(ENDLESS["Max tokens"])
