"""Pieces from the engine -> snapshots of the answer so far, at a pace that the page can carry.

Every update costs the page's one event loop about a millisecond, so pieces that arrive close together are
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

from vllm_space import errors, thinking
from vllm_space.client import Piece, Stream

log = logging.getLogger(__name__)

LIVELY = 1 / 30  # seconds between updates that still look live
HEARTBEAT = 0.25  # seconds without an update at most, also while nothing arrives
UPDATES_PER_SECOND = 250  # what the page's event loop carries beside its other work, over all streams


@dataclass
class Answer:
    """The answer so far. Times are seconds; `error` is a sentence, and what had arrived stays beside it."""

    verbatim: bool = False  # leave <think> tags where they are
    received: str = ""  # the text as it came, such tags included
    text: str = ""
    reasoning: str = ""
    thinking_time: float | None = None  # how long it thought, once the answer proper has begun
    first_token_after: float | None = None  # TTFT
    elapsed: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    ended: bool = False

    def add(self, piece: Piece) -> None:
        if piece.reasoning:  # the server tells it apart
            self.reasoning += piece.reasoning
            self.verbatim = True
        if piece.text:
            self.received += piece.text
            self.show()
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage

    def show(self, ended: bool = False) -> None:
        """Set the text, and the thinking where it came between tags, from what was received."""
        if self.verbatim:
            self.text = self.received
        else:
            self.reasoning, self.text = thinking.split(self.received, ended)
        if self.reasoning and self.text and self.thinking_time is None:
            self.thinking_time = self.elapsed - (self.first_token_after or 0)


class Streams:
    """All streams of the page: how many run decides how often each may update."""

    def __init__(self, per_visitor: int = 1000) -> None:
        self.per_visitor = per_visitor  # streams that one visitor may have running, so that the others have theirs
        self.visitors = Counter[str]()  # how many each has
        self.active = 0
        self.rate = 0.0  # tokens a second of one stream, as the last answers had it

    @contextmanager
    def _running(self, visitor: str, count: int = 1) -> Iterator[None]:
        """Count streams as running for as long as they are. Raises Refused where the visitor would have too many."""
        if self.visitors[visitor] + count > self.per_visitor:
            raise errors.too_many(self.visitors[visitor])
        self.active += count
        self.visitors[visitor] += count
        try:
            yield
        finally:
            self.active -= count
            self.visitors[visitor] -= count
            if not self.visitors[visitor]:
                del self.visitors[visitor]

    @property
    def pace(self) -> float:
        """Seconds between two updates of one stream."""
        return max(LIVELY, self.active / UPDATES_PER_SECOND)

    def _reader(self, stream: Stream, answer: Answer) -> _Reader:
        # vLLM can send several tokens at once, of which the first is not delayed. So many that there is something new
        # for each update, even if it has become slower, spare the reading and parsing of each.
        if stream.model.is_vllm and (interval := int(self.rate * self.pace / 2)) > 1:
            stream.body["stream_interval"] = interval
        return _Reader(stream, answer)

    def _learn(self, answer: Answer) -> None:
        # With the time to the first token: tokens that came at once would seem infinitely fast, and ever more come so.
        tokens = (answer.usage or {}).get("completion_tokens") or 0
        if tokens and answer.elapsed:
            rate = tokens / answer.elapsed
            self.rate = 0.7 * (self.rate or rate) + 0.3 * rate

    def follow(self, stream: Stream, visitor: str = "", verbatim: bool = False) -> Iterator[Answer]:
        """Yield the growing answer (the same object each time), at last complete or with its `error`.

        `visitor` tells who it is for; `verbatim` leaves <think> tags in the text, otherwise what is between them
        becomes the answer's reasoning. Raises nothing: every failure becomes the answer's `error`. Closing it closes
        `stream`. Gradio notices only at a yield that a visitor has left, so there is one every HEARTBEAT even while
        nothing arrives.
        """
        answer = Answer(verbatim)
        try:
            with self._running(visitor):
                reader = self._reader(stream, answer)
                reader.start()
                reader.news.wait(HEARTBEAT)
                reader.news.clear()
                while not reader.ended:
                    yield answer
                    reader.wait(self.pace)
                yield answer
        except errors.Refused as error:
            answer.error, answer.ended = str(error), True
            yield answer
        finally:
            self._learn(answer)
            stream.close()

    def follow_all(self, streams: list[Stream], visitor: str = "") -> Iterator[list[Answer]]:
        """The growing answers of several streams that run at the same time. Otherwise as `follow`."""
        answers = [Answer() for _ in streams]
        try:
            with self._running(visitor, len(streams)):
                readers = [self._reader(stream, answer) for stream, answer in zip(streams, answers, strict=True)]
                for reader in readers:
                    reader.start()
                while not all(reader.ended for reader in readers):
                    time.sleep(self.pace)
                    yield answers
                yield answers
        except errors.Refused as error:
            for answer in answers:
                answer.error, answer.ended = str(error), True
            yield answers
        finally:
            for stream in streams:
                stream.close()


class _Reader(threading.Thread):
    """Reads a stream into an answer, whatever the page is doing meanwhile."""

    def __init__(self, stream: Stream, answer: Answer):
        super().__init__(daemon=True)
        self.stream = stream
        self.answer = answer
        self.ended = False
        self.starved = False  # the page waits for anything new
        self.began = time.monotonic()
        self.news = threading.Event()  # the first token, or the end: what must be shown at once

    def wait(self, interval: float) -> None:
        """Return after `interval` seconds; where nothing new came meanwhile, when it does, or after HEARTBEAT."""
        before = self.size
        self.news.wait(interval)
        if self.size == before and not self.ended:
            self.starved = True
            self.news.wait(max(0.0, HEARTBEAT - interval))
            self.starved = False
        self.news.clear()

    @property
    def size(self) -> int:
        return len(self.answer.text) + len(self.answer.reasoning)

    def run(self) -> None:
        answer = self.answer
        try:
            for piece in self.stream:
                answer.elapsed = time.monotonic() - self.began
                first = answer.first_token_after is None and bool(piece.text or piece.reasoning)
                if first:
                    answer.first_token_after = answer.elapsed
                answer.add(piece)
                if first or self.starved:
                    self.news.set()
        except errors.SpaceError as error:
            answer.error = str(error)
        except Exception:
            log.exception("an answer failed")
            answer.error = "Something went wrong on this page's side. Try again; the log of the Space says more."
        finally:
            answer.show(ended=True)
            self.ended = answer.ended = True
            self.news.set()
