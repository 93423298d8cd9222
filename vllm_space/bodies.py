"""Limits for the bodies of requests to the page. The API gateway and sign-in have their own.

Without a limit, Gradio reads a body of any size into memory, and everyone else waits while it is
decoded and copied.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import errors, request_body
from vllm_space.auth import PUBLIC_PATHS, SignIn
from vllm_space.request_body import reject_constant
from vllm_space.storage import Storage

UPLOAD = "/gradio_api/upload"
UPLOAD_LIMIT = 100 * 2**20  # bytes of a request, which can have several files
BODY_LIMIT = 3 * 2**20  # bytes of any other request; it refers to files by their paths
MAX_VALUES = 20_000  # in a JSON body: copying each of them takes longer than its bytes suggest
LARGE = 64 * 2**10  # bytes of a body that is decoded only while no other large one is
MAX_LARGE = 8  # of these, from one visitor at the same time

FIELDS = "vllm_space.fields"  # key in the scope: the fields of the JSON object in the body


class BodyMiddleware:
    """ASGI middleware: rejects a body that is too large as soon as that is known.

    Uploads are passed on as they arrive. Any other body is complete before Gradio is called, and
    is a JSON object, whose fields are in the scope as FIELDS.
    """

    def __init__(self, app: ASGIApp, sign_in: SignIn, storage: Storage):
        self.app = app
        self.sign_in = sign_in
        self.storage = storage
        self._decoding = asyncio.Lock()
        self._large = Counter[str]()  # requests with large bodies, by visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or scope["path"] in PUBLIC_PATHS:  # these read their own bodies, or none
            return await self.app(scope, receive, send)
        if scope["path"] == UPLOAD:
            return await self._upload(scope, receive, send)
        request = Request(scope, receive)
        try:
            with self._slot(request):
                body = await request_body.read(request, BODY_LIMIT)
                scope[FIELDS] = await self._decode(body)
        except request_body.TooLarge:
            message = "This request is too large. Shorten the conversation, or start a new one."
            return await _rejection(413, message)(scope, receive, send)
        except request_body.StoppedArriving:
            message = "This request stopped arriving. Send it again."
            return await _rejection(408, message)(scope, receive, send)
        except errors.Rejected as error:
            return await _rejection(400, str(error))(scope, receive, send)
        return await self.app(scope, _replay(body, receive), send)

    @contextmanager
    def _slot(self, request: Request) -> Iterator[None]:
        """Count a request whose body may be large. Raises Rejected if its visitor has too many."""
        length = request_body.announced_length(request)
        if length is not None and length <= LARGE:
            yield
            return
        visitor = self.sign_in.visitor(request)
        if self._large[visitor] >= MAX_LARGE:
            raise errors.too_many_requests()
        self._large[visitor] += 1
        try:
            yield
        finally:
            self._large[visitor] -= 1
            if not self._large[visitor]:
                del self._large[visitor]

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        size = request_body.announced_length(request)
        try:
            if size is None or "transfer-encoding" in request.headers:  # h11 allows both
                message = "An upload needs the header Content-Length, and no Transfer-Encoding."
                return await PlainTextResponse(message, 411)(scope, receive, send)
            request_body.check_length(request, UPLOAD_LIMIT)
            self.storage.reserve(self.sign_in.visitor(request), size)
        except request_body.TooLarge:
            limit = UPLOAD_LIMIT // 2**20
            message = f"The files are larger than {limit} MiB together. Upload fewer at a time."
            return await PlainTextResponse(message, 413)(scope, receive, send)
        except errors.Rejected as error:
            return await PlainTextResponse(str(error), 413)(scope, receive, send)
        return await self.app(scope, _upload_receive(receive), send)

    async def _decode(self, body: bytes) -> dict[str, Any]:
        """The fields of a JSON object; of an empty body, none. Raises Rejected and TooLarge."""
        if len(body) <= LARGE:
            return _fields(body)
        async with self._decoding:  # one in each turn of the event loop, and small ones in between
            await asyncio.sleep(0)
            return _fields(body)


def _fields(body: bytes) -> dict[str, Any]:
    # Each container has a bracket, so this bounds the memory that decoding takes.
    if body.count(b"{") + body.count(b"[") > 10 * MAX_VALUES:
        raise request_body.TooLarge
    try:
        # With the parser that Gradio uses, so that both read the same. That one accepts NaN, and
        # other encodings, too.
        fields = json.loads(body.decode(), parse_constant=reject_constant) if body else {}
    except (ValueError, RecursionError):
        raise errors.malformed_request() from None
    if not isinstance(fields, dict):
        raise errors.malformed_request()
    if _has_more_values(fields, MAX_VALUES):
        raise request_body.TooLarge
    return fields


def _has_more_values(value: Any, limit: int) -> bool:
    """Whether a JSON value consists of more than `limit` values."""
    count, pending = 0, [value]
    while pending and count <= limit:
        container = pending.pop()
        count += len(container)
        values = container.values() if isinstance(container, dict) else container
        pending.extend(item for item in values if isinstance(item, (dict, list)))
    return count > limit


def _rejection(status: int, message: str) -> Response:
    return JSONResponse({"detail": message}, status)  # as Gradio's page expects it


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that starts with a body that has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _upload_receive(receive: Receive) -> Receive:
    """`receive` for an upload that can stop arriving, so that Gradio deletes what it has stored.

    gradio 6.31: it does so after this exception only.
    """
    is_complete = False

    async def checked() -> Message:
        nonlocal is_complete
        if is_complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), request_body.TIMEOUT)
        except asyncio.TimeoutError:
            raise MultiPartException("The upload stopped arriving. Try again.") from None
        if message["type"] == "http.disconnect":
            raise MultiPartException("The upload was cut off.")
        is_complete = not message.get("more_body", False)
        return message

    return checked
