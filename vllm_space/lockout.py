"""Delays sign-in after wrong passwords.

Failures are counted per user name and address, so nobody is locked out by the failures of others
at another address, and per address, whatever the names, so that no one can try many names or fill
the table. A browser that has signed in before is counted separately: failures of strangers at the
same address, such as that of a shared proxy, do not lock it out.

Whether a user of that name exists makes no difference. Guesses that come from very many addresses
are not slowed down: only a password that cannot be guessed helps against those.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

FREE_FAILURES = 5  # of one user name
LONGEST_WAIT = 300  # seconds
FREE_FAILURES_OF_ADDRESS = 50
LONGEST_WAIT_OF_ADDRESS = 30  # seconds; short, since many people may share the address
# Seconds after the last failure. Waiting for this gains nothing: about 14 tries an hour either way.
FORGET_AFTER = 3600
MAX_COUNTS = 10_000


class Lockout:
    """Counts wrong passwords. `browser` identifies a browser that has signed in as `name` before.

    The counts are lost when this process ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._of_name = _Failures(FREE_FAILURES, LONGEST_WAIT, clock)
        self._of_address = _Failures(FREE_FAILURES_OF_ADDRESS, LONGEST_WAIT_OF_ADDRESS, clock)

    def wait_of_address(self, address: str) -> int:
        """Seconds until an address may try again, whatever the name."""
        return self._of_address.wait(address)

    def wait(self, name: str, address: str, browser: str | None) -> int:
        """Seconds until the password of `name` may be tried again; 0 if it may be now."""
        if browser:
            return self._of_name.wait(name, browser)
        return max(self._of_name.wait(name, address), self._of_address.wait(address))

    def count(self, name: str, address: str, browser: str | None) -> None:
        """A password was wrong."""
        self._of_name.count(name, browser or address)
        if not browser:
            self._of_address.count(address)

    def clear(self, name: str, address: str, browser: str | None) -> None:
        """A password was right."""
        self._of_name.clear(name, browser or address)


class _Failures:
    """Failures by key. After `free` of them, each makes the next wait twice as long."""

    def __init__(self, free: int, longest_wait: int, clock: Callable[[], float]):
        self.free = free
        self.longest_wait = longest_wait
        self.clock = clock
        # key -> (failures, time of the last one), sorted by that time
        self.counts: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def wait(self, *key: str) -> int:
        count, last = self.counts.get(_digest(key), (0, -math.inf))
        if count < self.free or self.clock() - last > FORGET_AFTER:
            return 0
        # The exponent is bounded, since counts are not.
        wait: int = min(2 ** min(count - self.free, 16), self.longest_wait)
        return max(0, math.ceil(last + wait - self.clock()))

    def count(self, *key: str) -> None:
        now = self.clock()
        while self.counts and now - next(iter(self.counts.values()))[1] > FORGET_AFTER:
            self.counts.popitem(last=False)
        count, _ = self.counts.pop(_digest(key), (0, now))
        if len(self.counts) >= MAX_COUNTS:
            # The lowest count, and of those the oldest, so that a flood of invented names pushes
            # out nothing but itself.
            del self.counts[min(self.counts, key=lambda other: self.counts[other][0])]
        self.counts[_digest(key)] = (count + 1, now)

    def clear(self, *key: str) -> None:
        self.counts.pop(_digest(key), None)


def _digest(key: tuple[str, ...]) -> bytes:
    """A key of constant size: a name can be long."""
    return hashlib.sha256(repr(key).encode("utf-8", "replace")).digest()
