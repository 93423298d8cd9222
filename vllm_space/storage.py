"""Limits for what visitors store on this machine's disk: uploads, exports and images."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

from limits import RateLimitItemPerDay
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from vllm_space import errors

QUOTA = 500 * 2**20  # bytes a visitor may store within a day, after which Gradio deletes the files
MIN_COST = 256 * 2**10  # bytes that a request counts at least: tiny files take space, too
MIN_FREE = 2**30  # bytes that stay free on the disk, for everything else on this machine


def make_private_folder() -> str:
    """Make a folder that only this user can read. It is deleted when this process ends."""
    folder = tempfile.mkdtemp(prefix="vllm-space.")

    def delete() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def end(number: int, frame: object) -> None:
        delete()
        os._exit(128 + number)  # an ordinary exit would wait for threads that read from the engine

    atexit.register(delete)
    signal.signal(signal.SIGTERM, end)
    return folder


class Storage:
    """The folder for files of visitors, and how much each of them has stored there.

    All counts are lost at a restart, as are the files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._quota = RateLimitItemPerDay(QUOTA)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._lock = threading.Lock()  # handlers run in threads

    def reserve(self, visitor: str, size: int) -> None:
        """Count `size` bytes against a visitor's quota. Raises Rejected if there is no room."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free - size < MIN_FREE:
            raise errors.disk_full()
        cost = max(size, MIN_COST)
        with self._lock:
            if not self._limiter.test(self._quota, visitor, cost=cost):  # `hit` counts it anyway
                raise errors.quota_exceeded(QUOTA)
            self._limiter.hit(self._quota, visitor, cost=cost)
