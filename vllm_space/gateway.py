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
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from vllm_space import auth, errors
from vllm_space.catalog import Catalog
from vllm_space.client import CONNECT_TIMEOUT, Model, Server
from vllm_space.settings import Settings

log = logging.getLogger(__name__)

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
BODY_LIMIT = 32 * 2**20  # bytes; room for a few images
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
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
# Seconds to keep an idle connection to an engine. vLLM itself closes it after 5.
KEEP_ALIVE = 4
MAX_TRIES = 3
# Seconds within which a request on a dead connection fails. Later, it is the engine that failed.
STALE_WITHIN = 1.0

# https://docs.anthropic.com/en/api/errors. Other statuses are an `invalid_request_error`, or from
# 500 on an `api_error`.
ANTHROPIC_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error response of the gateway: HTTP status, message and the `code` of OpenAI's format."""

    def __init__(self, status: int, message: str, code: str, **headers: object):
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}

    def body(self, path: str) -> bytes:
        """The error in Anthropic's format under /v1/messages, otherwise in OpenAI's."""
        message, is_client_error = str(self), self.status < 500
        error: dict[str, Any]
        if path.startswith("/v1/messages"):
            default = "invalid_request_error" if is_client_error else "api_error"
            kind = ANTHROPIC_ERRORS.get(self.status, default)
            error = {"type": "error", "error": {"type": kind, "message": message}}
        else:
            kind = "invalid_request_error" if is_client_error else "server_error"
            error = {"error": {"message": message, "type": kind, "param": None, "code": self.code}}
        return json.dumps(error).encode()

    def response(self, path: str) -> Response:
        return Response(self.body(path), self.status, self.headers, "application/json")


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
        self.sessions: dict[str, aiohttp.ClientSession] = {}  # by the URL of the server
        self.app = self._with_cors(self._handle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep a connection pool for each engine while the app runs."""
        for server in self.catalog.servers:
            self.sessions[server.url] = self._session(server)
        try:
            yield
        finally:
            for session in self.sessions.values():
                await session.close()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether the gateway handles this path, if only to reject it."""
        return path in ENDPOINTS or path == "/v1" or path.startswith("/v1/")

    def _session(self, server: Server) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT, sock_read=server.timeout
            ),
            # A local engine must not be reached through a proxy, nor with credentials from .netrc.
            trust_env=not server.is_local,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )

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
            if not self.catalog.servers:
                raise _engine_unavailable(errors.no_server())
            body = await _read(request)
            log.info("%s %s by %s", request.method, path, key_name)
            if path == "/v1/models" and len(self.catalog.servers) > 1:
                response = JSONResponse(await self._list_models())
                return await response(scope, receive, send)
            server = self.catalog.servers[0]
            if request.method == "POST":
                server, body = await self._route(body)
            await _while_connected(receive, self._relay(server, request, body, send))
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

    async def _route(self, body: bytes) -> tuple[Server, bytes]:
        """Check the number of tokens; return the server that has the model, and the body to send.

        The body only changes if the model was requested by its label, since an engine knows just
        its name. Raises ApiError.
        """
        fields = _fields(body)
        limit = self.config.max_tokens_limit
        tokens = max(_number(fields.get(name)) for name in TOKEN_FIELDS)
        if tokens > limit:
            message = f"The request asks for {tokens:g} tokens; this Space allows at most {limit}."
            raise ApiError(400, message, "max_tokens_limit")
        if len(self.catalog.servers) == 1:
            return self.catalog.servers[0], body
        label = fields.get("model")
        model = await run_in_threadpool(self._find, label if isinstance(label, str) else None)
        if label and label != model.name:
            body = json.dumps(fields | {"model": model.name}).encode()
        return model.server, body

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

    async def _relay(self, server: Server, request: Request, body: bytes, send: Send) -> None:
        """Send the engine's response to the client as it arrives. Raises ApiError if there is none.

        When cancelled, it closes the connection, upon which the engine stops generating.
        """
        path = request.url.path
        started = streams = False
        data = b""
        try:
            async with await self._request(server, request, body) as response:
                await self._check_response(server, response)
                headers = _pick(response.headers, RESPONSE_HEADERS)
                if response.status in (502, 503):
                    headers.setdefault("retry-after", str(RETRY_AFTER))
                if streams := response.content_type == "text/event-stream":
                    headers["x-accel-buffering"] = "no"  # tells a proxy not to buffer the stream
                raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
                start = {"type": "http.response.start", "status": response.status, "headers": raw}
                await send(start)
                started = True
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body"})
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

    async def _request(
        self, server: Server, request: Request, body: bytes
    ) -> aiohttp.ClientResponse:
        """Forward the request and return once the headers are in. Raises aiohttp.ClientError."""
        query = f"?{request.url.query}" if request.url.query else ""
        url = URL(server.url + request.url.path + query, encoded=True)
        headers = _pick(request.headers, REQUEST_HEADERS) | server.headers
        tries = 0
        while True:
            tries += 1
            started_at = time.monotonic()
            try:
                return await self.sessions[server.url].request(
                    request.method, url, data=body or None, headers=headers, allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Retry if the engine was closing a reused connection, as it does after an error.
                if tries == MAX_TRIES or time.monotonic() - started_at > STALE_WITHIN:
                    raise

    async def _check_response(self, server: Server, response: aiohttp.ClientResponse) -> None:
        """Raise ApiError for a response that would mislead the client.

        Namely: the server rejects the gateway's key, redirects, returns HTML, or has no OpenAI API.
        """
        if response.status in (401, 403):
            error = errors.from_response(response.status, "")
            raise _engine_unavailable(errors.ModelError(str(error)))
        if response.content_type == "text/html" or 300 <= response.status < 400:
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


async def _read(request: Request) -> bytes:
    """The request's body.

    Raises ApiError as soon as it is too large, and ClientDisconnect if the client disconnects.
    """
    message = f"The request body is larger than {BODY_LIMIT // 2**20} MiB."
    too_large = ApiError(413, message, "request_too_large")
    if _number(request.headers.get("content-length")) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise too_large
    return bytes(body)


class _Ambiguous(dict[str, Any]):
    """A JSON object with a duplicate field: the engine might use the other value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Ambiguous(fields)


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON request. Raises ApiError for anything that cannot be checked."""
    try:
        fields = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or isinstance(fields, _Ambiguous):
        message = "The request body must be a JSON object without duplicate fields."
        raise ApiError(400, message, "invalid_json")
    return fields


def _number(value: Any) -> float:
    """`value` as a number if an engine might accept it as one (9, 9.0, "9"), otherwise 0."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf if isinstance(value, int) else 0
