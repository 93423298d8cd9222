"""Decides whether an engine's response can be passed on to a client, or which error replaces it.

Errors in the format of the client's API pass unchanged, whatever they say, unless it is a secret.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

import aiohttp

from vllm_space import api_error, connection, error_body, errors
from vllm_space.api_error import RETRY_AFTER, ApiError

SMALL = 16 * 2**10  # bytes; an error that comes with status 200 is smaller
# What web frameworks say about a path that they do not have.
BARE_404 = re.compile(r"(?:404:? )?(?:page |path |route |url )?not found\.?", re.IGNORECASE)


def check(response: aiohttp.ClientResponse, head: bytes, path: str, secrets: Iterable[str]) -> None:
    """Raise ApiError if a response would mislead the client of this path.

    `head` is the beginning of its body. `secrets` are masked in what the server says.
    """
    status = response.status
    if 300 <= status < 400:
        location = response.headers.get("location", "")
        raise api_error.engine_unavailable(connection.redirected(str(response.url), location))
    if status == 400:
        text = head.decode(errors="replace")
        if wrong := connection.wrong_scheme(str(response.url), text):
            raise api_error.engine_unavailable(wrong)
    is_answer = 200 <= status < 300 or 400 <= status < 600
    if response.content_type == "text/html" or not is_answer:
        is_down = status in (502, 503)
        raise api_error.engine_unavailable(
            errors.unreachable() if is_down else errors.malformed_response()
        )
    if status < 300 and (len(head) > SMALL or b"error" not in head):
        return
    body = _decoded(response, head)
    if status < 300:
        if not _is_error(body):
            return
        status = error_body.status(body) or 502
    elif status not in (401, 403) and (body is None or _is_in_format(body, path)):
        text = head.decode(errors="replace") if body is None else json.dumps(body)
        if error_body.mask(text, secrets) == text:
            return
    message = _message(status, body, path, secrets)
    if status in (401, 403):  # the gateway's key, not the client's
        raise api_error.engine_unavailable(errors.ModelError(message))
    headers: dict[str, object] = {"retry_after": RETRY_AFTER} if status in (502, 503) else {}
    for name in ("retry-after", "x-request-id"):
        if name in response.headers:
            headers[name.replace("-", "_")] = response.headers[name]
    raise ApiError(status, message, _code_in(body), **headers)


def _decoded(response: aiohttp.ClientResponse, head: bytes) -> Any:
    """The JSON in a body, or its text; None if it is compressed in a way that cannot be read."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding in ("gzip", "deflate"):
        try:
            head = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(head, SMALL)
        except zlib.error:
            return None
    elif encoding != "identity":
        return None
    try:
        return json.loads(head)
    except (ValueError, RecursionError):
        return head.decode(errors="replace")


def _is_in_format(body: Any, path: str) -> bool:
    """Whether an error is in the format of the path's clients, Anthropic's or OpenAI's."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return False
    return body.get("type") == "error" or not api_error.is_for_anthropic(path)


def _is_error(body: Any) -> bool:
    """Whether the body of a successful response is an error; a failed "response" is none."""
    is_object = isinstance(body, dict) and body.get("object", "error") == "error"
    return is_object and error_body.is_error(body)


def _message(status: int, body: Any, path: str, secrets: Iterable[str]) -> str:
    """The server's own words, or what its status means if it says no more than that."""
    words = error_body.words(body, secrets)
    if status in (401, 403) or not words:
        return str(errors.from_response(status, body, secrets))
    if status == 404 and BARE_404.fullmatch(words):
        return f"The model server does not offer {path}."
    return words


def _code_in(body: Any) -> str:
    """The `code` of OpenAI's format, such as insufficient_quota, if the error has one."""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else "engine_error"
