"""Reads the login form: a small body, in memory, whatever is sent.

Anyone can send one, so its size and the time it takes are limited, and nothing is written to disk.
"""

from __future__ import annotations

import anyio
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

LIMIT = 8 * 2**10  # bytes
TIMEOUT = 30  # seconds until the whole body has arrived
# Gradio's JavaScript client signs in with the second one; browsers and its Python client with the
# first.
CONTENT_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
MAX_FIELDS = 10


async def read(request: Request) -> dict[str, str]:
    """The fields of the form.

    Raises HTTPException, with a sentence for the visitor, if it is too large or too slow, has
    files, or is not a form; ClientDisconnect if the client leaves before the end.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in CONTENT_TYPES:
        raise HTTPException(415, "Send the user name and the password as form fields.")
    body = await _body(request)

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    try:
        form = await Request(request.scope, receive).form(max_files=0, max_fields=MAX_FIELDS)
    except (HTTPException, MultiPartException):
        raise HTTPException(400, "The form could not be read, or contains a file.") from None
    return {name: value for name, value in form.items() if isinstance(value, str)}


async def _body(request: Request) -> bytes:
    too_large = HTTPException(413, f"The form is larger than {LIMIT // 2**10} KiB.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > LIMIT:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LIMIT:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The form did not arrive within {TIMEOUT} s.") from None
    return bytes(body)
