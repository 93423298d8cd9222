"""Reads the login form: a small body, in memory, whatever is sent.

Anyone can send one, so its size and the time it takes are limited, and nothing is written to disk.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from vllm_space import request_body

LIMIT = 8 * 2**10  # bytes
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
    try:
        body = await request_body.read(request, LIMIT)
    except request_body.TooLarge:
        raise HTTPException(413, f"The form is larger than {LIMIT // 2**10} KiB.") from None
    except request_body.StoppedArriving:
        raise HTTPException(408, "The form stopped arriving. Send it again.") from None

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    try:
        form = await Request(request.scope, receive).form(max_files=0, max_fields=MAX_FIELDS)
    except (HTTPException, MultiPartException):
        message = (
            "The form could not be read. Send only the fields `username` and `password`, without "
            "files."
        )
        raise HTTPException(400, message) from None
    return {name: value for name, value in form.items() if isinstance(value, str)}
