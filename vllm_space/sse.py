"""Parses server-sent events from blocks of bytes, however they were cut.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream and
accepts what model servers send besides: see `events`. Does not know what the events mean.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator

from vllm_space import errors

log = logging.getLogger(__name__)

LIMIT = 16 * 2**20  # bytes of one event; whole answers arrive as one, but none is this long
BOM = b"\xef\xbb\xbf"
MESSAGE, ERROR, BODY = "message", "error", ""  # names of events; BODY is no event


def events(blocks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, data) of each event; its name is "message" unless the server gives another.

    Beyond the standard: the last event needs no blank line after it, and neither does one whose
    data is a JSON object on one line. `error: ...` is an event named "error", as in llama.cpp until
    2025. A JSON object on a line of its own counts as data. Any other text that the response
    begins with, such as JSON on several lines or HTML, comes as a whole, named BODY.

    Raises ModelError for an event of more than LIMIT bytes.
    """
    name, data, body = MESSAGE, list[bytes](), list[bytes]()
    size, is_stream = 0, False
    for lines in _lines(blocks):
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line.startswith(b"data: ") else line[5:]
                if data:
                    if len(data) == 1 and _is_object(data[0]):
                        yield name, data.pop()
                        size = 0
                    size = _checked(size + len(value) + 1)
                data.append(value)
                is_stream = True
            elif not line:
                if data:
                    yield name, b"\n".join(data)
                    data, size = [], 0
                name = MESSAGE
                continue
            else:
                field, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if field == b"event":
                    name = value.decode("utf-8", "replace")
                elif field == b"error":
                    yield ERROR, value
                elif field == b"data":
                    size = _checked(size + 1)
                    data.append(b"")
                elif field.strip() not in (b"", b"id", b"retry"):
                    if not body and _is_object(line):
                        if data:
                            yield name, b"\n".join(data)
                            data, size = [], 0
                        yield MESSAGE, line
                    elif body or not is_stream or line.lstrip().startswith((b"{", b"[")):
                        size = _checked(size + len(line) + 1)
                        body.append(line)
                    continue  # anything else is a field that the standard ignores
                is_stream = True
            if body:
                yield BODY, b"\n".join(body)
                body, size = [], 0
    if data:
        yield name, b"\n".join(data)
    if body:
        yield BODY, b"\n".join(body)


def _lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines of each block, without their endings; an incomplete one comes with its rest."""
    incomplete: list[bytes] = []
    size, is_start, after_cr = 0, True, False
    for block in blocks:
        if after_cr and block:  # a line feed that follows belongs to it
            block = block.removeprefix(b"\n")
            after_cr = False
        if b"\r" in block:
            after_cr = block.endswith(b"\r")
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = block.split(b"\n")
        rest = lines.pop()
        if lines:
            if incomplete:
                lines[0] = b"".join([*incomplete, lines[0]])
                incomplete, size = [], 0
            if is_start:
                lines[0] = lines[0].removeprefix(BOM)
                is_start = False
            yield lines
        if rest:
            size = _checked(size + len(rest))
            incomplete.append(rest)
    if incomplete:
        line = b"".join(incomplete)
        yield [line.removeprefix(BOM) if is_start else line]


def _is_object(line: bytes) -> bool:
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        return isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return False


def _checked(size: int) -> int:
    if size > LIMIT:
        log.error("the model server sent an event of more than %d MiB", LIMIT // 2**20)
        raise errors.malformed_response()
    return size
