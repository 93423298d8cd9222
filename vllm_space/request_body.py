"""Reads the body of a request, within limits on its size and on the time it takes."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

TIMEOUT = 30  # seconds in which something more of a body has to arrive


class TooLarge(Exception):
    """The body is larger than allowed: HTTP status 413."""


class StoppedArriving(Exception):
    """Nothing more of the body arrived for TIMEOUT seconds: HTTP status 408."""


async def read(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes.

    Raises TooLarge as soon as that is known, StoppedArriving, and ClientDisconnect if the client
    leaves before the end.
    """
    check_length(request, limit)
    body = bytearray()
    chunks = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), TIMEOUT)
        except StopAsyncIteration:
            return bytes(body)
        except asyncio.TimeoutError:
            raise StoppedArriving from None
        body += chunk
        if len(body) > limit:
            raise TooLarge


def announced_length(request: Request) -> int | None:
    """The Content-Length in bytes; None if it is missing."""
    # The server has checked that it is a number, but not how many digits it has.
    length = request.headers.get("content-length")
    return None if length is None else int(length[:20])


def check_length(request: Request, limit: int) -> None:
    """Raise TooLarge if the announced length is more than `limit` bytes."""
    if (announced_length(request) or 0) > limit:
        raise TooLarge


def reject_constant(name: str) -> None:
    """For json.loads: NaN and Infinity raise ValueError, as they are not JSON."""
    raise ValueError(f"{name} is not JSON")
