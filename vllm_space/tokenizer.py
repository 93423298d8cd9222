"""The tokenizer of a model server: counts tokens, and tells whether a model takes images."""

from __future__ import annotations

import threading
from typing import Any

import requests

from vllm_space import errors
from vllm_space.client import Message, continuation
from vllm_space.connection import CONNECT_TIMEOUT, session
from vllm_space.server import Model, Server

TIMEOUT = 30  # seconds
COUNT_WAIT = 5  # seconds for the token counts of other visitors of the page; not of the gateway

# A white square of 64 x 64 pixels, to find out whether a model accepts images.
TEST_IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAS0lEQVR42u3PMQ0AAAwDoPo33UrYvQQckD4XAQEBAQ"
    "EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYHLAMpT0sIcNbcEAAAAAElFTkSuQmCC"
)
NO_IMAGE = "data:image/png;base64,AAAA"

_counting: dict[str, threading.Lock] = {}  # URL of a server -> held while it counts


def count_tokens(model: Model, prompt: str | list[Message]) -> int | None:
    """Number of tokens in a text, or in a conversation after the chat template.

    None if the server has no /tokenize, or is busy counting for others. Raises ModelError.
    """
    if isinstance(prompt, str):
        body: dict[str, Any] = {"model": model.name, "prompt": prompt}
    else:
        body = {"model": model.name, "messages": prompt, **continuation(prompt)}
    # vLLM counts in a single thread that every request needs: the page does it once at a time, as
    # does the gateway (upstream.py), so that at most two counts per server keep others waiting.
    counting = _counting.setdefault(model.server.url, threading.Lock())
    if not counting.acquire(timeout=COUNT_WAIT):
        return None
    try:
        status, result = _tokenize(model.server, body)
    finally:
        counting.release()
    return _count(result) if status == 200 else None


def _count(result: dict[str, Any]) -> int | None:
    count = result.get("count")
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def takes_images(model: Model) -> bool | None:
    """Whether the model accepts images: whether the server can tokenize one. Raises ModelError.

    A text-only model of vLLM returns an error. None if the server cannot tell: some have no
    /tokenize, and some do not look at what they tokenize, so they take what is no image as well.
    """
    status, result = _tokenize_image(model, TEST_IMAGE)
    if status >= 500:  # it may be starting
        raise errors.not_answering(model.server.label)
    if status != 200:
        return False if model.is_vllm and status in (400, 422) else None
    if not _count(result) or _tokenize_image(model, NO_IMAGE)[0] == 200:
        return None
    return True


def _tokenize_image(model: Model, url: str) -> tuple[int, dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": model.name, "messages": [{"role": "user", "content": [image]}]}
    return _tokenize(model.server, body)


def _tokenize(server: Server, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST /tokenize -> the HTTP status and the JSON object of the response, {} if it has none."""
    timeout = (CONNECT_TIMEOUT, TIMEOUT)
    with session(server) as http:
        try:
            response = http.post(server.endpoint("/tokenize"), json=body, timeout=timeout)
        except requests.exceptions.ReadTimeout:
            raise errors.not_answering(server.label) from None
        try:
            value = response.json()
        except (ValueError, RecursionError):
            value = {}
        return response.status_code, value if isinstance(value, dict) else {}
