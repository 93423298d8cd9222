"""vLLM's Prometheus metrics and their history over the last minutes.

An engine is only scraped while somebody is looking, and at most once a second for all viewers
together. Knows nothing of Gradio.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from vllm_space import errors
from vllm_space.connection import CONNECT_TIMEOUT, session
from vllm_space.server import Server

T = TypeVar("T")

MAX_AGE = 1.0  # seconds for which a reading is cached
HISTORY = 300  # seconds
TIMEOUT = 10  # seconds

# https://docs.vllm.ai/en/latest/usage/metrics.html
NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
}


@dataclass(frozen=True)
class Reading:
    """One scrape. The token counts are totals since the engine started."""

    time: float  # seconds since the epoch
    running: float = 0
    waiting: float = 0
    kv_cache: float = 0  # a fraction, 0 to 1
    prompt_tokens: float = 0
    generation_tokens: float = 0


@dataclass(frozen=True)
class Point:
    """A point of the plots: the later of two readings, with the token rates between them."""

    time: float  # seconds since the epoch
    running: float
    waiting: float
    kv_cache: float  # a fraction, 0 to 1
    prompt_rate: float  # tokens per second
    generation_rate: float  # tokens per second


def read(text: str, now: float) -> Reading | None:
    """Parse a /metrics text, combining all models and ranks of the engine. None if not vLLM's."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if name := NAMES.get(sample.name):
                combine = max if name == "kv_cache" else float.__add__
                values[name] = combine(values.get(name, 0.0), float(sample.value))
    return Reading(now, **values) if values else None


def between(earlier: Reading, later: Reading) -> Point:
    """The point of two successive readings. A restarted engine counts from zero again."""
    seconds = max(later.time - earlier.time, 1e-3)

    def rate(before: float, after: float) -> float:
        return (after - before if after >= before else after) / seconds

    return Point(
        later.time,
        later.running,
        later.waiting,
        later.kv_cache,
        rate(earlier.prompt_tokens, later.prompt_tokens),
        rate(earlier.generation_tokens, later.generation_tokens),
    )


class Cached(Generic[T]):
    """The result of a function, called at most once every MAX_AGE seconds whatever the demand."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._lock = threading.Lock()
        self._called_at = -math.inf

    def get(self) -> T:
        """The result, at most MAX_AGE seconds old."""
        with self._lock:
            if time.monotonic() - self._called_at >= MAX_AGE:
                self._result = self._function()
                self._called_at = time.monotonic()
            return self._result


def scrape(server: Server) -> str | None:
    """The text of the server's /metrics, or None if it has none. Raises ModelError."""
    with session(server) as http:
        response = http.get(server.endpoint("/metrics"), timeout=(CONNECT_TIMEOUT, TIMEOUT))
        return response.text if response.ok else None


class Recorder:
    """The recent history of one server's metrics, shared by all viewers."""

    def __init__(self, server: Server):
        self.server = server
        self._last: Reading | None = None
        self._points: deque[Point] = deque()
        self._cached = Cached(self._scrape)

    def points(self) -> list[Point]:
        """The points of the last HISTORY seconds; none for times without metrics."""
        return self._cached.get()

    def _scrape(self) -> list[Point]:
        try:
            text = scrape(self.server)
            reading = read(text, time.time()) if text else None
        except (errors.ModelError, ValueError):
            reading = None
        if reading and self._last:
            # If nobody was looking for a while, the rates are averages over all that time.
            self._points.append(between(self._last, reading))
        self._last = reading
        while self._points and self._points[0].time < time.time() - HISTORY:
            self._points.popleft()
        return list(self._points)
