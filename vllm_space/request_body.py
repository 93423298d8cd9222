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


def check_length(request: Request, limit: int) -> None:
    """Raise TooLarge if the Content-Length is more than `limit` bytes. It can be missing."""
    # The server has checked that it is a number, but not how many digits it has.
    if int(request.headers.get("content-length", "0")[:20]) > limit:
        raise TooLarge
