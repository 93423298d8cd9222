"""Limits for the bodies of requests to the page. The API gateway and sign-in have their own.

Without a limit, Gradio reads a body of any size into memory, and everyone else waits while it is
decoded and copied.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import errors
from vllm_space.auth import SignIn
from vllm_space.storage import Storage

UPLOAD = "/gradio_api/upload"
SIGN_IN = ("/login", "/login/", "/logout", "/logout/")  # whose bodies are their own concern
UPLOAD_LIMIT = 100 * 2**20  # bytes of a request, which can have several files
BODY_LIMIT = 4 * 2**20  # bytes of any other request; it refers to files by their paths
MAX_VALUES = 100_000  # in a JSON body: copying each of them takes longer than its bytes suggest
LARGE = 64 * 2**10  # bytes of a body that is decoded only while no other large one is

FIELDS = "vllm_space.fields"  # key in the scope: the fields of the JSON object in the body


class BodyMiddleware:
    """ASGI middleware: rejects a body that is too large as soon as that is known.

    Uploads are passed on as they arrive. Any other body is complete before Gradio is called; if it
    is a JSON object, its fields are in the scope as FIELDS.
    """

    def __init__(self, app: ASGIApp, sign_in: SignIn, storage: Storage):
        self.app = app
        self.sign_in = sign_in
        self.storage = storage
        self._decoding = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")
        if not is_post or scope["path"] in SIGN_IN:
            return await self.app(scope, receive, send)
        if scope["path"] == UPLOAD:
            return await self._upload(scope, receive, send)
        body = await _read(scope, receive)
        if body is None:
            message = f"The request is larger than {BODY_LIMIT // 2**20} MiB."
            return await PlainTextResponse(message, 413)(scope, receive, send)
        fields = await self._decode(body)
        if _has_more_values(fields, MAX_VALUES):
            message = f"The request has more than {MAX_VALUES:,} values."
            return await PlainTextResponse(message, 413)(scope, receive, send)
        scope[FIELDS] = fields if isinstance(fields, dict) else {}
        return await self.app(scope, _replay(body, receive), send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = Headers(scope=scope).get("content-length", "")
        if not size:
            response = PlainTextResponse("An upload needs the header Content-Length.", 411)
            return await response(scope, receive, send)
        if int(size) > UPLOAD_LIMIT:
            message = f"The files are larger than {UPLOAD_LIMIT // 2**20} MiB together."
            return await PlainTextResponse(message, 413)(scope, receive, send)
        try:
            self.storage.take(self.sign_in.visitor(Request(scope)), int(size))
        except errors.Rejected as error:
            return await PlainTextResponse(str(error), 413)(scope, receive, send)
        return await self.app(scope, _upload_receive(receive), send)

    async def _decode(self, body: bytes) -> Any:
        """The JSON value of a body; None if it is none, which Gradio will say."""
        if len(body) > LARGE:
            async with self._decoding:
                await asyncio.sleep(0)  # for everyone who has been waiting meanwhile
                return _loads(body)
        return _loads(body)


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body, or None as soon as it is too large. Raises ClientDisconnect."""
    if int(Headers(scope=scope).get("content-length", 0)) > BODY_LIMIT:
        return None
    body = bytearray()
    async for chunk in Request(scope, receive).stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            return None
    return bytes(body)


def _loads(body: bytes) -> Any:
    # At least one opening bracket for each container, so this bounds the memory of what follows.
    if body.count(b"{") + body.count(b"[") > 10 * MAX_VALUES:
        return [None] * (MAX_VALUES + 1)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _has_more_values(value: Any, limit: int) -> bool:
    """Whether a JSON value consists of more than `limit` values."""
    count, pending = 0, [value]
    while pending and count <= limit:
        value = pending.pop()
        values = value.values() if isinstance(value, dict) else value
        if isinstance(value, (dict, list)):
            count += len(value)
            pending.extend(item for item in values if isinstance(item, (dict, list)))
    return count > limit


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that starts with a body that has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _upload_receive(receive: Receive) -> Receive:
    """`receive` for an upload, which Gradio can clean up after if the visitor leaves.

    gradio 6.31: it deletes the files of an incomplete upload after this exception only.
    """

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MultiPartException("The upload was cut off.")
        return message

    return checked
