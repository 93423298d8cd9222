"""vLLM's /metrics -> numbers, and their course over the last minutes.

Nothing is asked of an engine unless somebody looks; however many look, it is asked once a second at most.
Knows nothing of Gradio.
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

from vllm_space import client, errors
from vllm_space.client import Server

T = TypeVar("T")

OFTEN = 1.0  # seconds between two looks at an engine or a GPU, at least
KEPT = 300  # seconds

NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
}


@dataclass(frozen=True)
class Reading:
    """One look at an engine. The token counts grow from its start on; `kv_cache` is a part from 0 to 1."""

    time: float  # seconds since the epoch
    running: float = 0
    waiting: float = 0
    kv_cache: float = 0
    prompt_tokens: float = 0
    generation_tokens: float = 0


@dataclass(frozen=True)
class Point:
    """What an engine did between two looks."""

    time: float  # seconds since the epoch
    running: float
    waiting: float
    kv_cache: float
    prompt_rate: float  # tokens per second
    generation_rate: float


def read(text: str, now: float) -> Reading | None:
    """The numbers in a /metrics text, over all models and ranks of the engine; None where it is not vLLM's."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if name := NAMES.get(sample.name):
                together = max if name == "kv_cache" else float.__add__
                found[name] = together(found.get(name, 0.0), float(sample.value))
    return Reading(now, **found) if found else None


def between(earlier: Reading, later: Reading) -> Point:
    """What was done between two readings. An engine that restarted meanwhile counts from zero again."""
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
    """The answer to a question that is asked at most once every OFTEN seconds, however many want to know."""

    def __init__(self, ask: Callable[[], T]):
        self._ask = ask
        self._lock = threading.Lock()
        self._asked = -math.inf

    def get(self) -> T:
        """The answer, at most OFTEN seconds old."""
        with self._lock:
            if time.monotonic() - self._asked >= OFTEN:
                self._answer = self._ask()
                self._asked = time.monotonic()
            return self._answer


class Recorder:
    """The course of one server's numbers, for everybody who looks."""

    def __init__(self, server: Server):
        self.server = server
        self._last: Reading | None = None
        self._points: deque[Point] = deque()
        self._shared = Cached(self._look)

    def points(self) -> list[Point]:
        """The last minutes, now included. Empty where the server tells nothing or cannot be reached."""
        return self._shared.get()

    def _look(self) -> list[Point]:
        try:
            text = client.metrics(self.server)
            reading = read(text, time.time()) if text else None
        except (errors.ModelError, ValueError):
            reading = None
        if reading and self._last:
            # After a time in which nobody looked, the rate is that of the whole time.
            self._points.append(between(self._last, reading))
        self._last = reading
        while self._points and self._points[0].time < time.time() - KEPT:
            self._points.popleft()
        return list(self._points)
