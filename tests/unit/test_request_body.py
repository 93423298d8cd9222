"""Bodies that are too large, or stop arriving."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.requests import ClientDisconnect, Request

from support import coroutines
from vllm_space import request_body


def read(chunks: Iterable[bytes | None], limit: int = 10, **headers: str) -> bytes:
    """The body that arrives in these chunks; after None, nothing more arrives."""
    waiting = list(chunks)

    async def receive():
        if not waiting:
            return {"type": "http.disconnect"}
        chunk = waiting.pop(0)
        if chunk is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": raw}
    return coroutines.run(request_body.read(Request(scope, receive), limit))


def test_body_is_read_up_to_the_limit():
    assert read([b"12345", b"67890", b""]) == b"1234567890"
    with pytest.raises(request_body.TooLarge):
        read([b"12345", b"678901", None])  # what follows is not waited for


@pytest.mark.parametrize("length", ["11", "9" * 5000])
def test_announced_body_is_not_read(length):
    with pytest.raises(request_body.TooLarge):
        read([None], **{"content-length": length})


def test_stalled_body_is_given_up(monkeypatch):
    monkeypatch.setattr(request_body, "TIMEOUT", 0.05)
    with pytest.raises(request_body.StoppedArriving):
        read([b"123", None])


def test_client_that_leaves_is_reported():
    with pytest.raises(ClientDisconnect):
        read([b"123"])
