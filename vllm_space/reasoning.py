"""Thinking that a model wrote into its answer between bare <think> tags -> apart from the answer.

For servers without a reasoning parser. Works on the whole text so far, so it does not matter how it was cut into
pieces. Knows nothing of where the text comes from.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"

# Some chat templates open the tag in the prompt: then only the closing one comes, on a line of its own.
LONE_CLOSE = re.compile(r"^[ \t]*</think>[ \t]*\n", re.MULTILINE)


def split(text: str, ended: bool = False) -> tuple[str, str]:
    """(thinking, answer) of the text so far. Half a tag at its end is held back until `ended`."""
    start = text.lstrip()
    if not ended and OPEN.startswith(start):
        return "", ""
    if start.startswith(OPEN):
        thinking, closed, answer = start.removeprefix(OPEN).partition(CLOSE)
        if not closed and not ended:
            thinking = _without_half_tag(thinking)
        return thinking.strip(), answer.lstrip()
    if CLOSE in text and (closing := LONE_CLOSE.search(text)):
        return text[: closing.start()].strip(), text[closing.end() :].lstrip()
    return "", text


def _without_half_tag(text: str) -> str:
    for size in range(len(CLOSE) - 1, 0, -1):
        if text.endswith(CLOSE[:size]):
            return text[:-size]
    return text
