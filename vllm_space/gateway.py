"""The API gateway: serves the engine's OpenAI-compatible API at /v1 to clients with an API key.

Engine responses are passed through unchanged, byte for byte, as they arrive. Knows nothing of the
page.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import api_error, api_request, auth, errors, text_limit
from vllm_space.api_error import RETRY_AFTER, ApiError
from vllm_space.api_request import ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.context_fit import ContextFit
from vllm_space.key_limits import KeyLimits
from vllm_space.server import Model, Server
from vllm_space.settings import Settings
from vllm_space.upstream import Busy, Call, Upstream

log = logging.getLogger(__name__)

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # not allowed in a header

# Path -> method. All other engine endpoints are blocked: LoRA loading, sleep, profiling, metrics...
ENDPOINTS = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/embeddings": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
}
# Not the client's API key, which is meant for this gateway, nor its cookies, which are the page's.
REQUEST_HEADERS = (
    "content-type",
    "accept",
    "accept-encoding",
    "x-request-id",
    "anthropic-version",
    "anthropic-beta",
)
RESPONSE_HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "cache-control",
    "x-request-id",
    "retry-after",
)


class Gateway:
    """ASGI app: the API in front of one or more engines.

    `counts` maps each key's name to the number of its requests ("requests"), of those that were
    rejected ("rejected"), and of those that no engine answered ("failed").
    """

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.started_at = int(time.time())
        self.keys: dict[str, str] = {}  # key -> its name
        for number, secret in enumerate(config.api_keys, start=1):
            name, colon, key = secret.get_secret_value().partition(":")
            self.keys[key if colon else name] = name if colon and name else f"key {number}"
        self.counts = {name: Counter[str]() for name in self.keys.values()}
        self.limits = {
            name: KeyLimits(config.api_rate_limit, config.api_max_concurrency)
            for name in self.counts
        }
        self.upstream = Upstream()
        self.context_fit = ContextFit(self.upstream, catalog)
        self.app = self._with_cors(self._handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep a connection pool for each engine while the app runs."""
        try:
            async with self.upstream.lifespan(self.catalog.servers):
                yield
        finally:
            for limits in self.limits.values():
                limits.close()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether the gateway handles this path, if only to reject it."""
        return path in ENDPOINTS or path == "/v1" or path.startswith("/v1/")

    def _with_cors(self, app: ASGIApp) -> ASGIApp:
        if not self.config.api_cors_origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self.config.api_cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's clients send x-stainless-... headers
            expose_headers=["x-request-id", "retry-after"],
        )

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, the path and the body, then relay the request to the right engine."""
        request = Request(scope, receive)
        path, key_name, started = scope["path"], None, False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if not self.keys:
                message = "The API is disabled: this Space's owner has not set API_KEYS."
                raise ApiError(404, message, "api_closed")
            key_name = self._key_name(request)
            self.counts[key_name]["requests"] += 1
            self._check_path(request)
            limits = self.limits[key_name]
            await limits.check_rate()
            slot = nullcontext() if request.method == "GET" else limits.slot()
            length = api_request.announced_length(request)
            with slot, limits.holding(length, receive) as counted:
                if not self.catalog.servers:
                    raise api_error.engine_unavailable(errors.no_server())
                body = await api_request.read_body(Request(scope, counted))
                log.info("%s %s by %s", request.method, path, key_name)
                if path == "/v1/models" and len(self.catalog.servers) > 1:
                    response = JSONResponse(await self._list_models())
                    return await response(scope, receive, answer)
                await _while_connected(receive, self._serve(request, body, limits, answer))
        except ClientDisconnect:
            pass
        except Exception as error:
            if started:
                raise
            if not isinstance(error, ApiError):
                log.exception("a request to %s failed", path)
                error = ApiError(500, str(errors.internal()), "internal_error")
            if key_name:
                self.counts[key_name]["rejected" if error.status < 500 else "failed"] += 1
            await error.response(path)(scope, receive, send)

    def _key_name(self, request: Request) -> str:
        """The name of the request's API key. Raises ApiError if it is missing or invalid.

        Both headers are read: with a private Space, Authorization holds a Hugging Face token and
        x-api-key the key. Every key is compared, in constant time.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        candidates = [
            request.headers.get("x-api-key", ""),
            token.strip() if scheme.lower() == "bearer" else "",
        ]
        key_name = None
        for key, name in self.keys.items():
            for candidate in candidates:
                if auth.same_secret(key, candidate):
                    key_name = name
        if key_name is None:
            message = (
                "Missing or invalid API key. "
                "Send one of this Space's keys as `Authorization: Bearer <key>`."
            )
            raise ApiError(401, message, "invalid_api_key", www_authenticate="Bearer")
        return key_name

    def _check_path(self, request: Request) -> None:
        path = request.url.path
        # Compare the raw bytes too: an encoded %2F or %2E must not pass for "/" or ".".
        if path not in ENDPOINTS or request.scope.get("raw_path", path.encode()) != path.encode():
            raise ApiError(404, f"{path} is not an endpoint of this API.", "not_found")
        method = ENDPOINTS[path]
        if request.method != method:
            message = f"{path} accepts {method}, not {request.method}."
            raise ApiError(405, message, "method_not_allowed", allow=method)

    async def _serve(self, request: Request, body: bytes, limits: KeyLimits, send: Send) -> None:
        """Send a request whose body has arrived to the right engine, and relay the answer.

        The body only changes if the model was requested by its label, since an engine knows just
        its name, or if MAX_TOKENS_LIMIT lowers the tokens. Raises ApiError.
        """
        path = request.url.path
        target = f"{path}?{request.url.query}" if request.url.query else path
        headers = _pick(request.headers, REQUEST_HEADERS)
        call = Call(self.catalog.servers[0], request.method, target, headers, body)
        if request.method == "GET":
            return await self._relay(call, None, limits, send)
        parsed = await limits.compute(len(body), partial(ApiRequest.parse, path, body))
        server, changes = await self._route(parsed)
        if "max_tokens_limit" in self.config.model_fields_set:
            changes |= parsed.changes_to_cap(self.config.max_tokens_limit)
        if changes:
            parsed = parsed.changed(changes)
            body = await limits.compute(parsed.length, parsed.encode)
        return await self._relay(replace(call, server=server, body=body), parsed, limits, send)

    async def _route(self, parsed: ApiRequest) -> tuple[Server, dict[str, Any]]:
        """The server that has the model, and the changes that it needs to know it by its name.

        Raises ApiError if there is none, or if the prompt cannot fit into the model's context.
        """
        label = parsed.fields.get("model")
        if len(self.catalog.servers) == 1:
            server = self.catalog.servers[0]
            if parsed.size.characters > text_limit.ALWAYS_ALLOWED:
                _check_context(parsed, await self.context_fit.model(server, label))
            return server, {}
        label = label if isinstance(label, str) else None
        model = await run_in_threadpool(self._find, label)
        _check_context(parsed, model)
        return model.server, {"model": model.name} if label and label != model.name else {}

    def _find(self, label: str | None) -> Model:
        try:
            model = self.catalog.find(label)
        except errors.Rejected as error:
            if down := self.catalog.problems():  # one of these may have the model
                message = f"{error} These servers are not responding: {', '.join(down)}."
                raise api_error.engine_unavailable(errors.Unreachable(message)) from None
            raise ApiError(404, str(error), "model_not_found") from None
        except errors.ModelError as error:
            raise api_error.engine_unavailable(error) from None
        if model.protocol != "openai":
            raise api_error.legacy_server()
        return model

    async def _list_models(self) -> dict[str, Any]:
        """The models of all servers, by name, or by label if two servers share a name."""
        models = await run_in_threadpool(self.catalog.models)
        models = [model for model in models if model.protocol == "openai"]
        names = Counter(model.name for model in models)
        data = [
            {
                "id": model.name if names[model.name] == 1 else model.label,
                "object": "model",
                "created": self.started_at,
                "owned_by": "vllm",
                "max_model_len": model.context_length,
            }
            for model in models
        ]
        return {"object": "list", "data": data}

    async def _relay(
        self, call: Call, parsed: ApiRequest | None, limits: KeyLimits, send: Send
    ) -> None:
        """Send the engine's response to the client as it arrives. Raises ApiError if there is none.

        When cancelled, it closes the connection, upon which the engine stops generating.
        """
        started = streams = False
        data = b""
        try:
            async with self.context_fit.response(call, parsed, limits) as (response, head):
                await self._check_response(call.server, response)
                headers = _pick(response.headers, RESPONSE_HEADERS)
                if response.status in (502, 503):
                    headers.setdefault("retry-after", str(RETRY_AFTER))
                if streams := response.content_type == "text/event-stream":
                    headers["x-accel-buffering"] = "no"  # tells a proxy not to buffer the stream
                raw = [
                    (name.encode(), value.encode("utf-8", "surrogateescape"))  # as aiohttp decodes
                    for name, value in headers.items()
                    if not CONTROL.search(value)
                ]
                start = {"type": "http.response.start", "status": response.status, "headers": raw}
                await send(start)
                started = True
                if head:
                    await send({"type": "http.response.body", "body": head, "more_body": True})
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body"})
        except Busy:
            message = "The engine is busy counting tokens for others. Try again in a moment."
            raise ApiError(503, message, "engine_busy", retry_after=RETRY_AFTER) from None
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            log.error("the engine failed to answer a request: %s", type(error).__name__)
            if not started:
                timed_out = isinstance(error, aiohttp.SocketTimeoutError)
                raise api_error.engine_unavailable(
                    errors.timed_out(call.server.timeout) if timed_out else errors.unreachable()
                ) from None
            if streams and (not data or data.endswith(b"\n\n")):  # not in the middle of an event
                path = call.target
                name = b"event: error\n" if path.startswith("/v1/messages") else b""
                data = api_error.engine_unavailable(errors.cut_off()).body(path)
                event = name + b"data: " + data + b"\n\n"
                await send({"type": "http.response.body", "body": event})
            # Otherwise the connection is closed here, so the client sees an incomplete response.

    async def _check_response(self, server: Server, response: aiohttp.ClientResponse) -> None:
        """Raise ApiError for a response that would mislead the client.

        Namely: the server rejects the gateway's key, redirects, returns HTML or a status that no
        answer has, or has no OpenAI API.
        """
        if response.status in (401, 403):
            error = errors.from_response(response.status, "")
            raise api_error.engine_unavailable(errors.ModelError(str(error)))
        is_answer = 200 <= response.status < 300 or 400 <= response.status < 600
        if response.content_type == "text/html" or not is_answer:
            is_down = response.status in (502, 503)
            raise api_error.engine_unavailable(
                errors.unreachable() if is_down else errors.malformed_response()
            )
        if response.status == 404:
            models = await run_in_threadpool(self.catalog.models)
            if models and all(
                model.protocol != "openai" for model in models if model.server == server
            ):
                raise api_error.legacy_server()


def _check_context(parsed: ApiRequest, model: Model | None) -> None:
    """Raise ApiError if the prompt cannot fit into the model's context."""
    try:
        text_limit.check_context(parsed.size, model.context_length if model else None)
    except errors.Rejected as error:
        raise api_error.too_large(str(error)) from None


def _pick(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


async def _while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Run `work`; cancel it as soon as the client disconnects. The body must have been read."""
    working = asyncio.ensure_future(work)
    disconnecting = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        disconnecting.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
