"""Chunks from the engine -> snapshots of the answer so far, at a pace that the page can carry.

Every update costs the page's one event loop about a millisecond, so chunks that arrive close together are
shown together. The first is never delayed, and reading goes on in between. Knows nothing of Gradio or HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm_space import errors, reasoning
from vllm_space.client import Chunk, Stream

log = logging.getLogger(__name__)

LIVELY = 1 / 30  # seconds between updates that still look live
HEARTBEAT = 0.25  # seconds without an update at most, also while nothing arrives
UPDATES_PER_SECOND = (
    250  # what the page's event loop carries beside its other work, over all streams
)


@dataclass
class Answer:
    """The answer so far. Times are seconds; `error` is a sentence, and what had arrived stays beside it."""

    verbatim: bool = False  # leave <think> tags where they are
    received: str = ""  # the text as it came, such tags included
    text: str = ""
    reasoning: str = ""
    reasoning_time: float | None = None  # how long it thought, once the answer proper has begun
    ttft: float | None = None  # TTFT
    elapsed: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    ended: bool = False

    def add(self, chunk: Chunk) -> None:
        if chunk.reasoning:  # the server tells it apart
            self.reasoning += chunk.reasoning
            self.verbatim = True
        if chunk.text:
            self.received += chunk.text
            self.show()
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage

    def fail(self, error: errors.SpaceError) -> None:
        """End with an error."""
        self.error, self.ended = str(error), True

    def show(self, ended: bool = False) -> None:
        """Set the text, and the thinking where it came between tags, from what was received."""
        if self.verbatim:
            self.text = self.received
        else:
            self.reasoning, self.text = reasoning.split(self.received, ended)
        if self.reasoning and self.text and self.reasoning_time is None:
            self.reasoning_time = self.elapsed - (self.ttft or 0)


class Streams:
    """All streams of the page: how many run decides how often each may update."""

    def __init__(self, per_visitor: int = 1000) -> None:
        self.per_visitor = (
            per_visitor  # streams that one visitor may have running, so that the others have theirs
        )
        self.visitors = Counter[str]()  # how many each has
        self.active = 0
        self._lock = threading.Lock()  # streams begin and end in threads of their own
        self.rate = 0.0  # tokens a second of one stream, as the last answers had it

    @contextmanager
    def _running(self, visitor: str, count: int) -> Iterator[None]:
        """Count streams as running for as long as they are. Raises Rejected where the visitor would have too many."""
        with self._lock:
            if self.visitors[visitor] + count > self.per_visitor:
                raise errors.too_many_answers(self.visitors[visitor])
            self.active += count
            self.visitors[visitor] += count
        try:
            yield
        finally:
            with self._lock:
                self.active -= count
                self.visitors[visitor] -= count
                if not self.visitors[visitor]:
                    del self.visitors[visitor]

    @property
    def pace(self) -> float:
        """Seconds between two updates of one stream."""
        return max(LIVELY, self.active / UPDATES_PER_SECOND)

    def _paced(self, stream: Stream) -> Stream:
        # vLLM can send several tokens at a time, and never delays the first. Ask for about half of what one update can
        # show: fewer events to parse, and still something new each time if generation slows down.
        if stream.model.is_vllm and (interval := int(self.rate * self.pace / 2)) > 1:
            stream.body["stream_interval"] = interval
        return stream

    def _learn(self, answer: Answer) -> None:
        # With the time to the first token: tokens that came at once would seem infinitely fast, and ever more come so.
        tokens = (answer.usage or {}).get("completion_tokens") or 0
        if tokens and answer.elapsed:
            rate = tokens / answer.elapsed
            with self._lock:
                self.rate = 0.7 * (self.rate or rate) + 0.3 * rate

    def follow(self, streams: list[tuple[Stream, Answer]], visitor: str = "") -> Iterator[None]:
        """Let answers grow with their streams, all at the same time; yield when there is something new to show.

        `visitor` tells who they are for. Raises nothing: every failure becomes its answer's `error`. Closing the
        generator closes the streams. Gradio notices only at a yield that a visitor has left, so there is one every
        HEARTBEAT even while nothing arrives.
        """
        try:
            with self._running(visitor, len(streams)):
                news = threading.Event()
                readers = [_Reader(self._paced(stream), answer, news) for stream, answer in streams]
                for reader in readers:
                    reader.start()
                news.wait(HEARTBEAT)
                news.clear()
                while not all(reader.ended for reader in readers):
                    yield
                    _wait(readers, news, self.pace)
                yield
        except errors.Rejected as error:
            for _, answer in streams:
                answer.fail(error)
            yield
        finally:
            for stream, answer in streams:
                self._learn(answer)
                stream.close()


def _wait(readers: list[_Reader], news: threading.Event, interval: float) -> None:
    """Return after `interval` seconds; if nothing new came meanwhile, when it does, or after HEARTBEAT."""
    before = sum(reader.size for reader in readers)
    news.wait(interval)
    if sum(reader.size for reader in readers) == before and not all(
        reader.ended for reader in readers
    ):
        for reader in readers:
            reader.starved = True
        news.wait(max(0.0, HEARTBEAT - interval))
        for reader in readers:
            reader.starved = False
    news.clear()


class _Reader(threading.Thread):
    """Reads a stream into an answer, whatever the page is doing meanwhile."""

    def __init__(self, stream: Stream, answer: Answer, news: threading.Event):
        super().__init__(daemon=True)
        self.stream = stream
        self.answer = answer
        self.news = news  # set at the first token and at the end: what must be shown immediately
        self.ended = False
        self.starved = False  # the page waits for anything new
        self.began = time.monotonic()

    @property
    def size(self) -> int:
        return len(self.answer.text) + len(self.answer.reasoning)

    def run(self) -> None:
        answer = self.answer
        try:
            for chunk in self.stream:
                answer.elapsed = time.monotonic() - self.began
                first = answer.ttft is None and bool(chunk.text or chunk.reasoning)
                if first:
                    answer.ttft = answer.elapsed
                answer.add(chunk)
                if first or self.starved:
                    self.news.set()
        except errors.SpaceError as error:
            answer.error = str(error)
        except Exception:
            log.exception("an answer failed")
            answer.error = str(errors.internal())
        finally:
            answer.show(ended=True)
            self.ended = answer.ended = True
            self.news.set()
