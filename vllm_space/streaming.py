"""Pieces from the engine -> snapshots of the answer so far, at a pace that the page can carry.

Every update costs the page's one event loop about a millisecond, so pieces that arrive close together are
shown together. The first is never delayed, and reading goes on in between. Knows nothing of Gradio or HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from vllm_space import errors
from vllm_space.client import Piece

log = logging.getLogger(__name__)

LIVELY = 1 / 30  # seconds between updates that still look live
UPDATES_PER_SECOND = 250  # what the page's event loop carries beside its other work, over all streams


@dataclass
class Answer:
    """The answer so far. Times are seconds; `error` is a sentence, and what had arrived stays beside it."""

    text: str = ""
    reasoning: str = ""
    thinking_time: float | None = None  # how long it thought, once the answer proper has begun
    first_token_after: float | None = None  # TTFT
    elapsed: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None

    def add(self, piece: Piece) -> None:
        if piece.reasoning:
            self.reasoning += piece.reasoning
        if piece.text:
            if self.reasoning and self.thinking_time is None:
                self.thinking_time = self.elapsed - (self.first_token_after or 0)
            self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage


class Streams:
    """All streams of the page: how many run decides how often each may update."""

    def __init__(self) -> None:
        self.active = 0

    def follow(self, pieces: Iterator[Piece]) -> Iterator[Answer]:
        """Yield the growing answer (the same object each time), at last complete or with its `error`.

        Raises nothing: every failure becomes the answer's `error`. Closing it closes `pieces`.
        """
        answer = Answer()
        began = time.monotonic()
        next_update = 0.0
        self.active += 1
        try:
            with closing(pieces):
                for piece in pieces:
                    now = time.monotonic()
                    answer.elapsed = now - began
                    if answer.first_token_after is None and (piece.text or piece.reasoning):
                        answer.first_token_after = answer.elapsed
                    answer.add(piece)
                    if answer.first_token_after is not None and now >= next_update:
                        next_update = now + max(LIVELY, self.active / UPDATES_PER_SECOND)
                        yield answer
        except errors.SpaceError as error:
            answer.error = str(error)
        except Exception:
            log.exception("an answer failed")
            answer.error = "Something went wrong on this page's side. Try again; the log of the Space says more."
        finally:
            self.active -= 1
        yield answer
