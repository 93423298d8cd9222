"""Reads streams from the engine and paces the updates of the page.

Every update costs the page's only event loop about a millisecond, so chunks that arrive close
together are shown together. The first token is never delayed. Each stream is read by a thread, so
reading never waits for the page. Knows nothing of Gradio or HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm_space import errors
from vllm_space.chunks import Chunk
from vllm_space.client import Stream
from vllm_space.reasoning import Splitter

log = logging.getLogger(__name__)

MIN_INTERVAL = 1 / 30  # seconds between updates of a stream; shorter would not look any smoother
HEARTBEAT = 0.25  # seconds between updates at most, even if nothing arrives
MAX_UPDATES = 250  # per second over all streams; more would block the event loop's other work

# Set for what has not waited in the page's queue: it only runs while there is room.
unqueued: ContextVar[bool] = ContextVar("unqueued", default=False)


@dataclass
class Answer:
    """An answer so far. Times are in seconds. After an `error`, the text received so far stays."""

    verbatim: bool = False  # leave the tags of reasoning in the text
    received: str = ""  # all text received, including these tags
    text: str = ""
    reasoning: str = ""
    reasoning_time: float | None = None  # how long it took; set once the text has begun
    ttft: float | None = None  # time to first token
    elapsed: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    ended: bool = False
    _splitter: Splitter = field(default_factory=Splitter, repr=False, compare=False)

    def add(self, chunk: Chunk) -> None:
        if chunk.reasoning:  # the server separates it, so any tags in the text belong there
            self.reasoning += chunk.reasoning
            self.verbatim = True
        if chunk.text:
            self.received += chunk.text
            if not self.verbatim:
                self._splitter.add(chunk.text)
            self.update_text()
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage

    def fail(self, error: errors.SpaceError) -> None:
        """End with an error."""
        self.error, self.ended = str(error), True

    def update_text(self, ended: bool = False) -> None:
        """Set the text and the reasoning between tags, if any, from what was received."""
        if self.verbatim:
            self.text = self.received
        else:
            if ended:
                self._splitter.end()
            self.reasoning, self.text = self._splitter.split()
        if not self.text:  # what was shown as text has turned out to be reasoning
            self.reasoning_time = None
        elif self.reasoning and self.reasoning_time is None:
            self.reasoning_time = self.elapsed - (self.ttft or 0)


class Streams:
    """All running streams of the page. Their number decides how often each one may update.

    One visitor may have `per_visitor` streams at the same time. `total` is for streams that are
    `unqueued`: they are refused while as many are running. The page's queue limits its own events.
    """

    def __init__(self, per_visitor: int = 1000, total: int = 1000) -> None:
        self.per_visitor = per_visitor
        self.total = total
        self.visitors = Counter[str]()  # running streams by visitor
        self.active = 0
        self.rate = 0.0  # tokens per second of one stream, a moving average
        self._lock = threading.Lock()  # handlers run in threads

    @contextmanager
    def _running(self, visitor: str, count: int) -> Iterator[None]:
        """Count streams as running. Raises Rejected if there are too many, here or of a visitor."""
        with self._lock:
            if self.visitors[visitor] + count > self.per_visitor:
                raise errors.too_many_answers(self.visitors[visitor])
            if unqueued.get() and self.active + count > self.total:
                raise errors.busy()
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
    def interval(self) -> float:
        """Seconds between two updates of one stream."""
        return max(MIN_INTERVAL, self.active / MAX_UPDATES)

    def _with_stream_interval(self, stream: Stream) -> Stream:
        # vLLM can send several tokens per event, and never delays the first. Ask for about half of
        # what one update can show: fewer events to parse, and still something new each time if
        # generation slows down.
        if stream.model.is_vllm and (tokens := int(self.rate * self.interval / 2)) > 1:
            stream.body["stream_interval"] = tokens
        return stream

    def _measure(self, answer: Answer) -> None:
        # The elapsed time includes the time to first token. Without it, tokens that arrive in one
        # event would seem infinitely fast, and the next answers would ask for ever more per event.
        tokens = (answer.usage or {}).get("completion_tokens") or 0
        if tokens and answer.elapsed:
            rate = tokens / answer.elapsed
            with self._lock:
                self.rate = 0.7 * (self.rate or rate) + 0.3 * rate

    def follow(self, streams: list[tuple[Stream, Answer]], visitor: str = "") -> Iterator[None]:
        """Read the streams into their answers, concurrently; yield whenever there is something new.

        The streams count towards `visitor`'s limit. Nothing is raised: every failure becomes the
        `error` of its answer. Closing the generator closes the streams. Gradio only notices at a
        yield that a visitor has left, so there is one every HEARTBEAT even if nothing arrives.
        """
        try:
            with self._running(visitor, len(streams)):
                news = threading.Event()
                readers = [
                    _Reader(self._with_stream_interval(stream), answer, news)
                    for stream, answer in streams
                ]
                for reader in readers:
                    reader.start()
                news.wait(HEARTBEAT)
                news.clear()
                while not all(reader.ended for reader in readers):
                    yield
                    _wait(readers, news, self.interval)
                yield
        except errors.Rejected as error:
            for _, answer in streams:
                answer.fail(error)
            yield
        finally:
            for stream, answer in streams:
                self._measure(answer)
                stream.close()


def _wait(readers: list[_Reader], news: threading.Event, interval: float) -> None:
    """Wait `interval` seconds; if nothing new has arrived, until it does, or HEARTBEAT in all."""
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
    """Reads a stream into an answer, independently of what the page is doing."""

    def __init__(self, stream: Stream, answer: Answer, news: threading.Event):
        super().__init__(daemon=True)
        self.stream = stream
        self.answer = answer
        self.news = news  # set when something must be shown immediately: first token, end
        self.ended = False
        self.starved = False  # the page has shown everything: report whatever comes next
        self.started_at = time.monotonic()

    @property
    def size(self) -> int:
        return len(self.answer.text) + len(self.answer.reasoning)

    def run(self) -> None:
        answer = self.answer
        try:
            for chunk in self.stream:
                answer.elapsed = time.monotonic() - self.started_at
                is_first = answer.ttft is None and bool(chunk.text or chunk.reasoning)
                if is_first:
                    answer.ttft = answer.elapsed
                answer.add(chunk)
                if is_first or self.starved:
                    self.news.set()
        except errors.SpaceError as error:
            answer.error = str(error)
        except Exception:
            log.exception("an answer failed")
            answer.error = str(errors.internal())
        finally:
            answer.update_text(ended=True)
            self.ended = answer.ended = True
            self.news.set()
