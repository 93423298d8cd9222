"""What one API key may use of the gateway, so that there is enough left for the others."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.types import Message, Receive

from vllm_space import api_error

LARGE = 64 * 2**10  # bytes of JSON that can keep the event loop busy for too long
MAX_HELD = 64 * 2**20  # bytes of the bodies of requests that have not been answered

Result = TypeVar("Result")


class KeyLimits:
    """The limits of one key: requests per minute and at the same time, bytes held, one thread.

    None means no limit.
    """

    def __init__(self, rate: int | None, concurrency: int | None):
        self.rate = RateLimitItemPerMinute(rate) if rate else None
        self.concurrency = concurrency
        self.running = 0  # requests, with a limit on them
        self.held = 0  # bytes
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._thread = ThreadPoolExecutor(1)  # starts with the first large body

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def check_rate(self) -> None:
        """Count a request. Raises ApiError if there were too many in the last minute."""
        if self.rate and not await self._window.hit(self.rate):
            window = await self._window.get_window_stats(self.rate)
            wait = max(1, math.ceil(window.reset_time - time.time()))
            message = (
                f"Rate limit exceeded: each key may make {self.rate.amount} requests per minute. "
                f"Try again in {wait} s."
            )
            raise api_error.too_many(message, "rate_limit_exceeded", wait)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count a request as running. Raises ApiError if too many are."""
        if self.concurrency is not None and self.running >= self.concurrency:
            message = (
                f"Too many concurrent requests: each key may have {self.concurrency} running. "
                "Wait for one to finish."
            )
            raise api_error.too_many(message, "too_many_requests")
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    @contextmanager
    def holding(self, length: int, receive: Receive) -> Iterator[Receive]:
        """`receive` for a request's body: its bytes count as held until the request has ended.

        `length` is what is announced of them. Both raise ApiError if they would be too many with
        those of the key's other requests.
        """
        arrived, held = 0, self._hold(length)

        async def counted() -> Message:
            nonlocal arrived, held
            message = await receive()
            arrived += len(message.get("body", b""))
            held += self._hold(max(0, arrived - held))
            return message

        try:
            yield counted
        finally:
            self.held -= held

    def _hold(self, size: int) -> int:
        if self.held + size > MAX_HELD:
            message = (
                "Too much at once: the running requests of each key may have "
                f"{MAX_HELD // 2**20} MiB together. Wait for one to finish."
            )
            raise api_error.too_many(message, "too_many_bytes")
        self.held += size
        return size

    async def compute(self, length: int, work: Callable[[], Result]) -> Result:
        """Run `work` on a body of `length` bytes; in the key's thread if that is large.

        The large bodies of one key wait for each other, but no other key waits for them.
        """
        if length <= LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
