"""Relays the responses of engines to the clients of the API gateway.

They pass unchanged, byte for byte, as they arrive, except for those that clients could not use: see
api_answer.py, api_models.py and api_response.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
from starlette.concurrency import run_in_threadpool
from starlette.types import Send

from vllm_space import api_answer, api_error, api_models, api_response, errors
from vllm_space.api_answer import AnswerForm
from vllm_space.api_error import RETRY_AFTER, ApiError
from vllm_space.api_request import ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.context_fit import ContextFit, read_head
from vllm_space.key_limits import KeyLimits
from vllm_space.server import Server
from vllm_space.upstream import Busy, Call, Upstream, explain

log = logging.getLogger(__name__)

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # not allowed in a header
RESPONSE_HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "cache-control",
    "x-request-id",
    "retry-after",
)


class Relay:
    """Sends requests to engines, and their responses to clients."""

    def __init__(self, upstream: Upstream, catalog: Catalog):
        self.catalog = catalog
        self.started_at = int(time.time())
        self.context_fit = ContextFit(upstream, catalog)

    async def answer(
        self,
        call: Call,
        parsed: ApiRequest | None,
        limits: KeyLimits,
        send: Send,
        form: AnswerForm | None = None,
    ) -> None:
        """Send the engine's response to the client as it arrives. Raises ApiError if there is none.

        When cancelled, it closes the connection, upon which the engine stops generating.
        """
        async with self._response(call, parsed, limits) as (response, head):
            headers = pick(response.headers, RESPONSE_HEADERS)
            if response.status in (502, 503):
                headers.setdefault("retry-after", str(RETRY_AFTER))
            if response.status != 200 or "content-encoding" in headers:
                form = None
            streams = response.content_type == api_answer.EVENTS
            if form and not streams:
                data = head + await response.read()
                data, headers["content-type"] = await limits.compute(
                    len(data), partial(form.whole, data)
                )
                await send_whole(send, response.status, headers, data)
                return
            if streams:
                headers["x-accel-buffering"] = "no"  # tells a proxy not to buffer the stream
            await _start(send, response.status, headers)
            if head:
                await send({"type": "http.response.body", "body": head, "more_body": True})
            data = b""
            try:
                async for data in response.content.iter_any():
                    data = form.part(data) if form else data
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                data = form.end() if form else b""
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                log.error("the engine cut off an answer: %s", type(error).__name__)
                if not streams or (data and not data.endswith(b"\n\n")):
                    return  # in mid-event: the connection is closed, so that the client notices
                data = api_error.engine_unavailable(errors.cut_off()).event(call.target)
            await send({"type": "http.response.body", "body": data})

    async def models(self, call: Call, name: str, limits: KeyLimits, send: Send) -> None:
        """Send a server's own list of models, or one of them. Raises ApiError."""
        async with self._response(call, None, limits) as (response, head):
            body = head + await response.read()
            if response.status == 404:
                problem = errors.no_model_list(f"{call.server.base}/models", 404)
                raise ApiError(404, str(problem), "not_found")
            if response.status == 200:
                read = partial(api_models.of_server, body, call.server, self.started_at, name)
                try:
                    body = await limits.compute(len(body), read)
                except errors.ModelError as error:
                    raise api_error.engine_unavailable(error) from None
            await send_whole(send, response.status, pick(response.headers, RESPONSE_HEADERS), body)

    @asynccontextmanager
    async def _response(
        self, call: Call, parsed: ApiRequest | None, limits: KeyLimits
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, bytes]]:
        """The engine's response, and the bytes that were already read from it.

        Raises ApiError if there is none, or if it would mislead the client.
        """
        try:
            async with self.context_fit.response(call, parsed, limits) as (response, head):
                if response.status >= 400:
                    head = head or await read_head(response)
                elif response.content_type == api_answer.JSON:
                    head = await response.content.readany()
                if response.status == 404:
                    await self._check_protocol(call.server)
                path = call.target.partition("?")[0]
                api_response.check(response, head, path, call.server.secrets)
                yield response, head
        except Busy:
            message = "The engine is busy counting tokens for others. Try again in a moment."
            raise ApiError(503, message, "engine_busy", retry_after=RETRY_AFTER) from None
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            log.error("the engine failed to answer a request: %s", type(error).__name__)
            raise api_error.engine_unavailable(explain(error, call.server)) from None

    async def _check_protocol(self, server: Server) -> None:
        """Raise ApiError if a server has no OpenAI API."""
        models = await run_in_threadpool(self.catalog.models)
        own = [model for model in models if model.server == server]
        if own and all(model.protocol != "openai" for model in own):
            raise api_error.legacy_server()


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send the head of a response."""
    raw = [
        (name.encode(), value.encode("utf-8", "surrogateescape"))  # as aiohttp decodes
        for name, value in headers.items()
        if not CONTROL.search(value)
    ]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_whole(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a complete response."""
    await _start(send, status, {**headers, "content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body})


def pick(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The headers of these names, in lower case."""
    return {name: headers[name] for name in names if name in headers}
