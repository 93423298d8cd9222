"""Separates reasoning between <think> tags from the rest of an answer, for servers that don't.

Works on the whole text so far, so it does not matter where the chunks were cut.
"""

from __future__ import annotations

import re

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"

# Some chat templates put the opening tag into the prompt. Then the model only writes the closing
# tag, on a separate line.
LONE_CLOSE_TAG = re.compile(r"^[ \t]*</think>[ \t]*\n", re.MULTILINE)


def split(text: str, ended: bool = False) -> tuple[str, str]:
    """(reasoning, answer) of the text so far. A partial tag is held back until `ended`."""
    start = text.lstrip()
    if not ended and OPEN_TAG.startswith(start):
        return "", ""
    if start.startswith(OPEN_TAG):
        reasoning, closed, answer = start.removeprefix(OPEN_TAG).partition(CLOSE_TAG)
        if not closed and not ended:
            reasoning = _without_partial_tag(reasoning)
        return reasoning.strip(), answer.lstrip()
    if CLOSE_TAG in text and (close := LONE_CLOSE_TAG.search(text)):
        return text[: close.start()].strip(), text[close.end() :].lstrip()
    return "", text


def _without_partial_tag(text: str) -> str:
    for size in range(len(CLOSE_TAG) - 1, 0, -1):
        if text.endswith(CLOSE_TAG[:size]):
            return text[:-size]
    return text
