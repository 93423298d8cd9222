"""The API gateway: serves the engine's OpenAI-compatible API at /v1 to clients with an API key.

Engine responses are passed through unchanged, byte for byte, as they arrive. Knows nothing of the
page.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import aiohttp
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space import api_request, auth, errors, text_limit
from vllm_space.api_request import ApiError, ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.client import Model, Server
from vllm_space.settings import Settings
from vllm_space.upstream import Busy, Upstream

log = logging.getLogger(__name__)
Result = TypeVar("Result")

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
# An engine works on these in a single thread and to the end, even if the client has left.
COUNTS = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
CATALOG_WAIT = 2  # seconds to wait for a model's context length
LARGE = 64 * 2**10  # bytes of JSON that can keep the event loop busy for too long
ERROR_LIMIT = 64 * 2**10  # bytes of an engine's error that are read before it is passed on
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
RETRY_AFTER = 5  # seconds; sent to clients when an engine is down


def _engine_unavailable(error: errors.ModelError) -> ApiError:
    return ApiError(error.status, str(error), "engine_unavailable", retry_after=RETRY_AFTER)


def _legacy_server() -> ApiError:
    message = (
        "This model runs on vLLM's legacy server, which has no OpenAI API. "
        "Use the page or its API endpoints instead."
    )
    return ApiError(404, message, "legacy_server")


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
        rate = config.api_rate_limit
        self.limit = RateLimitItemPerMinute(rate) if rate else None
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self.running = Counter[str]()  # requests of each key's name, with API_MAX_CONCURRENCY
        self.models: list[Model] = []  # as they were when the catalog last had any
        self.parser = ThreadPoolExecutor(1)  # for large bodies: they hold the interpreter's lock
        self.upstream = Upstream()
        self.app = self._with_cors(self._handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep a connection pool for each engine while the app runs."""
        try:
            async with self.upstream.running(self.catalog.servers):
                yield
        finally:
            self.parser.shutdown(wait=False, cancel_futures=True)

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
        path, key_name = scope["path"], None
        try:
            if not self.keys:
                message = "The API is disabled: this Space's owner has not set API_KEYS."
                raise ApiError(404, message, "api_closed")
            key_name = self._key_name(request)
            self.counts[key_name]["requests"] += 1
            self._check_path(request)
            await self._check_rate(key_name)
            with self._slot(request.method, key_name):
                if not self.catalog.servers:
                    raise _engine_unavailable(errors.no_server())
                body = await api_request.read_body(request)
                log.info("%s %s by %s", request.method, path, key_name)
                if path == "/v1/models" and len(self.catalog.servers) > 1:
                    response = JSONResponse(await self._list_models())
                    return await response(scope, receive, send)
                await _while_connected(receive, self._serve(request, body, send))
        except ApiError as error:
            if key_name:
                self.counts[key_name]["rejected" if error.status < 500 else "failed"] += 1
            await error.response(path)(scope, receive, send)
        except ClientDisconnect:
            pass

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

    async def _check_rate(self, key_name: str) -> None:
        if self.limit and not await self.limiter.hit(self.limit, key_name):
            window = await self.limiter.get_window_stats(self.limit, key_name)
            wait = max(1, math.ceil(window.reset_time - time.time()))
            message = (
                f"Rate limit exceeded: each key may make {self.limit.amount} requests per minute. "
                f"Try again in {wait} s."
            )
            raise ApiError(429, message, "rate_limit_exceeded", retry_after=wait)

    @contextmanager
    def _slot(self, method: str, key_name: str) -> Iterator[None]:
        """Count a request as one that its key is running. Raises ApiError if it has too many."""
        limit = self.config.api_max_concurrency
        if limit is None or method == "GET":
            yield
            return
        if self.running[key_name] >= limit:
            message = (
                f"Too many concurrent requests: each key may have {limit} running. "
                "Wait for one to finish."
            )
            raise ApiError(429, message, "too_many_requests", retry_after=RETRY_AFTER)
        self.running[key_name] += 1
        try:
            yield
        finally:
            self.running[key_name] -= 1

    async def _serve(self, request: Request, body: bytes, send: Send) -> None:
        """Send a request whose body has arrived to the right engine, and relay the answer.

        The body only changes if the model was requested by its label, since an engine knows just
        its name, or if MAX_TOKENS_LIMIT lowers the tokens. Raises ApiError.
        """
        if request.method == "GET":
            return await self._relay(self.catalog.servers[0], request, None, body, send)
        length, path = len(body), request.url.path
        parsed = await self._compute(length, partial(ApiRequest.parse, path, body))
        server, changes = await self._route(parsed)
        if "max_tokens_limit" in self.config.model_fields_set:
            changes |= parsed.capped(self.config.max_tokens_limit)
        if changes:
            parsed = parsed.changed(changes)
            body = await self._compute(length, parsed.encode)
        return await self._relay(server, request, parsed, body, send)

    async def _compute(self, length: int, work: Callable[[], Result]) -> Result:
        """The result of `work` on so many bytes of JSON, in another thread if there are many."""
        if length <= LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.parser, work)

    async def _route(self, parsed: ApiRequest) -> tuple[Server, dict[str, Any]]:
        """The server that has the model, and the changes that it needs to know it by its name.

        Raises ApiError if there is none, or if the prompt cannot fit into the model's context.
        """
        label = parsed.fields.get("model")
        label = label if isinstance(label, str) else None
        model: Model | None = None
        if len(self.catalog.servers) > 1:
            model = await run_in_threadpool(self._find, label)
            server = model.server
        else:
            server = self.catalog.servers[0]
            if parsed.size.characters > text_limit.ALWAYS_ALLOWED:
                model = await self._model(server, label)
        try:
            text_limit.check_context(parsed.size, model.context_length if model else None)
        except errors.Rejected as error:
            raise api_request.too_large(str(error)) from None
        is_label = len(self.catalog.servers) > 1 and model and label and label != model.name
        return server, {"model": model.name} if is_label and model else {}

    async def _model(self, server: Server, name: str | None) -> Model | None:
        """A server's model, by default the one with the longest context; None if unknown.

        Never waits long, whatever state the servers are in.
        """
        loop = asyncio.get_running_loop()
        listing = loop.run_in_executor(None, self.catalog.models)
        try:
            self.models = await asyncio.wait_for(listing, CATALOG_WAIT) or self.models
        except Exception as error:  # such as a server whose list is of another form
            log.warning("the models could not be listed: %s", type(error).__name__)
        models = [model for model in self.models if model.server == server]
        named = [model for model in models if model.name == name]
        return max(named or models, key=lambda model: model.context_length or 0, default=None)

    def _find(self, label: str | None) -> Model:
        try:
            model = self.catalog.find(label)
        except errors.Rejected as error:
            if down := self.catalog.problems():  # one of these may have the model
                message = f"{error} These servers are not responding: {', '.join(down)}."
                raise _engine_unavailable(errors.Unreachable(message)) from None
            raise ApiError(404, str(error), "model_not_found") from None
        except errors.ModelError as error:
            raise _engine_unavailable(error) from None
        if model.protocol != "openai":
            raise _legacy_server()
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
        self,
        server: Server,
        request: Request,
        parsed: ApiRequest | None,
        body: bytes,
        send: Send,
    ) -> None:
        """Send the engine's response to the client as it arrives. Raises ApiError if there is none.

        When cancelled, it closes the connection, upon which the engine stops generating.
        """
        path = request.url.path
        started = streams = False
        data = b""
        try:
            async with self._response(server, request, parsed, body) as (response, head):
                await self._check_response(server, response)
                headers = _pick(response.headers, RESPONSE_HEADERS)
                if response.status in (502, 503):
                    headers.setdefault("retry-after", str(RETRY_AFTER))
                if streams := response.content_type == "text/event-stream":
                    headers["x-accel-buffering"] = "no"  # tells a proxy not to buffer the stream
                raw = [
                    (name.encode(), value.encode("utf-8", "surrogateescape"))  # as aiohttp decodes
                    for name, value in headers.items()
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
                raise _engine_unavailable(
                    errors.timed_out(server.timeout) if timed_out else errors.unreachable()
                ) from None
            if streams and (not data or data.endswith(b"\n\n")):  # not in the middle of an event
                event = b"event: error\n" if path.startswith("/v1/messages") else b""
                event += b"data: " + _engine_unavailable(errors.cut_off()).body(path) + b"\n\n"
                await send({"type": "http.response.body", "body": event})
            # Otherwise the connection is closed here, so the client sees an incomplete response.

    @asynccontextmanager
    async def _response(
        self, server: Server, request: Request, parsed: ApiRequest | None, body: bytes
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, bytes]]:
        """The engine's response, and the bytes that were already read from it.

        An engine refuses a longer answer than fits into the context, and agents ask for 32,000
        tokens and more, whatever the model: it is then asked once more, for what fits.
        """
        path = request.url.path
        target = f"{path}?{request.url.query}" if request.url.query else path
        headers = _pick(request.headers, REQUEST_HEADERS)
        ask = self.upstream.count if path in COUNTS else self.upstream.request
        async with await ask(server, request.method, target, headers, body) as response:
            if response.status != 400 or not parsed or not parsed.asked:
                yield response, b""
                return
            head = await _head(response)
            changes = await self._fit(server, parsed, headers, _message(response, head))
            if not changes:
                yield response, head
                return
        log.info("asking again for an answer that fits into the context: %s", changes)
        body = await self._compute(parsed.length, parsed.changed(changes).encode)
        async with await self.upstream.request(
            server, request.method, target, headers, body
        ) as response:
            yield response, b""

    async def _fit(
        self,
        server: Server,
        parsed: ApiRequest,
        headers: Mapping[str, str],
        message: str | None,
    ) -> dict[str, Any]:
        """The changes that make a refused answer fit into the context.

        There are none if they would not help. `message` is the engine's; None if it is unreadable.
        """
        if message is not None and not errors.is_about_context(message):
            return {}
        name = parsed.fields.get("model")
        model = await self._model(server, name if isinstance(name, str) else None)
        context = model.context_length if model else None
        context = context or api_request.context_in(message or "")
        prompt = await self._prompt_tokens(server, parsed, headers)
        if prompt is None:
            prompt = api_request.prompt_in(message or "")
        if context and prompt is not None:
            left = context - prompt
            return parsed.lowered(left) if 1 <= left < parsed.asked else {}
        if parsed.path == "/v1/responses" and model and model.is_vllm:
            # Its prompts cannot be counted. vLLM then gives the answer the rest of the context.
            return parsed.without_length()
        return {}

    async def _prompt_tokens(
        self, server: Server, parsed: ApiRequest, headers: Mapping[str, str]
    ) -> int | None:
        """The number of tokens of the longest prompt, by the engine's count; None if unknown."""
        path, bodies = parsed.counts()
        tokens = parsed.token_ids
        headers = {**headers, "accept-encoding": "identity"}
        for fields in bodies:
            body = await self._compute(parsed.length, partial(api_request.encode, fields))
            try:
                asking = self.upstream.count(server, "POST", path, headers, body)
                async with await asking as response:
                    result = json.loads(await response.read()) if response.ok else {}
            except (Busy, aiohttp.ClientError, asyncio.TimeoutError, ValueError):
                return None
            number = result.get("count", result.get("input_tokens"))
            if not isinstance(number, int):
                return None
            tokens = max(tokens, number)
        return tokens or None

    async def _check_response(self, server: Server, response: aiohttp.ClientResponse) -> None:
        """Raise ApiError for a response that would mislead the client.

        Namely: the server rejects the gateway's key, redirects, returns HTML or a status that no
        answer has, or has no OpenAI API.
        """
        if response.status in (401, 403):
            error = errors.from_response(response.status, "")
            raise _engine_unavailable(errors.ModelError(str(error)))
        is_answer = 200 <= response.status < 300 or 400 <= response.status < 600
        if response.content_type == "text/html" or not is_answer:
            is_down = response.status in (502, 503)
            raise _engine_unavailable(
                errors.unreachable() if is_down else errors.malformed_response()
            )
        if response.status == 404:
            models = await run_in_threadpool(self.catalog.models)
            if models and all(
                model.protocol != "openai" for model in models if model.server == server
            ):
                raise _legacy_server()


def _pick(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


async def _head(response: aiohttp.ClientResponse) -> bytes:
    """The first ERROR_LIMIT bytes of a response, or all of it."""
    head = bytearray()
    while len(head) < ERROR_LIMIT and (data := await response.content.readany()):
        head += data
    return bytes(head)


def _message(response: aiohttp.ClientResponse, head: bytes) -> str | None:
    """The text of an error response, unless it is compressed."""
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    return head.decode(errors="replace") if is_plain else None


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
