"""The API gateway: the engine's OpenAI API at /v1, for those who hold a key.

What is answered comes from the engine byte for byte, as it comes. Knows nothing of the page.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
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

# Everything else that the engine answers stays inside: loading adapters, sleeping, profiling, metrics, ...
ALLOWED = {
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
# Of the request; never its key, which is ours and not the engine's, nor its cookies, which are the page's.
PASSED_HEADERS = (
    "content-type",
    "accept",
    "accept-encoding",
    "x-request-id",
    "anthropic-version",
    "anthropic-beta",
)
# Of the engine's answer.
KEPT_HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "cache-control",
    "x-request-id",
    "retry-after",
)
RETRY_AFTER = 5  # seconds that a client is told to wait for an engine that is down
# Seconds that an idle connection to an engine is kept: less than vLLM's own 5, or a request may meet its end.
KEEP_ALIVE = 4
STALE_WITHIN = (
    1.0  # seconds in which a kept connection shows that it was dead; later, the engine is
)

# What Anthropic's clients expect an error to be called. Others are `invalid_request_error`, or from 500 `api_error`.
ANTHROPIC_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Refusal(Exception):
    """A request that the gateway answers itself: the HTTP status, a sentence, and OpenAI's word for it."""

    def __init__(self, status: int, message: str, code: str, **headers: object):
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}

    def body(self, path: str) -> bytes:
        """The error in the form that the clients of `path` understand: Anthropic's or OpenAI's."""
        if path.startswith("/v1/messages"):
            kind = ANTHROPIC_ERRORS.get(
                self.status, "invalid_request_error" if self.status < 500 else "api_error"
            )
            error: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": str(self)}}
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            error = {
                "error": {"message": str(self), "type": kind, "param": None, "code": self.code}
            }
        return json.dumps(error).encode()

    def response(self, path: str) -> Response:
        return Response(self.body(path), self.status, self.headers, "application/json")


def _down(failure: errors.ModelError) -> Refusal:
    return Refusal(failure.status, str(failure), "engine_unavailable", retry_after=RETRY_AFTER)


class Gateway:
    """ASGI: the API of this port, in front of one engine or several.

    `counts` holds for each key's name how many requests it made ("requests"), how many of them the gateway
    refused ("refused"), and to how many no engine gave an answer ("failed").
    """

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.began = int(time.time())
        self.keys: dict[str, str] = {}  # key -> its name
        for number, secret in enumerate(config.api_keys, start=1):
            name, colon, key = secret.get_secret_value().partition(":")
            self.keys[key if colon else name] = name if colon and name else f"key {number}"
        self.counts = {name: Counter[str]() for name in self.keys.values()}
        self.limit = (
            RateLimitItemPerMinute(config.api_rate_limit) if config.api_rate_limit else None
        )
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self.sessions: dict[
            str, aiohttp.ClientSession
        ] = {}  # root of a server -> connections to it
        self.app = self._with_cors(self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the connections to the engines for as long as the app runs."""
        for server in self.catalog.servers:
            self.sessions[server.url] = self._session(server)
        try:
            yield
        finally:
            for session in self.sessions.values():
                await session.close()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is the gateway's to answer."""
        return path in ALLOWED or path == "/v1" or path.startswith("/v1/")

    def _session(self, server: Server) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT, sock_read=server.timeout
            ),
            # No proxy and no .netrc between this page and an engine on the same machine.
            trust_env=not server.is_here,
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
            allow_headers=["*"],  # the clients send x-stainless-... of their own
            expose_headers=["x-request-id", "retry-after"],
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: check key, path and body, then hand the request to the engine that has its model."""
        request = Request(scope, receive)
        path, who = scope["path"], None
        try:
            if not self.keys:
                raise Refusal(
                    404,
                    "The API of this Space is closed: its owner has set no API_KEYS.",
                    "api_closed",
                )
            who = self._key_name(request)
            self.counts[who]["requests"] += 1
            self._check_path(request)
            await self._check_rate(who)
            if not self.catalog.servers:
                raise _down(errors.no_server())
            body = await _read(request)
            log.info("%s %s by %s", request.method, path, who)
            if path == "/v1/models" and len(self.catalog.servers) > 1:
                response = JSONResponse(await self._all_models())
                return await response(scope, receive, send)
            server = self.catalog.servers[0]
            if request.method == "POST":
                server, body = await self._route(body)
            await _while_connected(receive, self._relay(server, request, body, send))
        except Refusal as refusal:
            if who:
                self.counts[who]["refused" if refusal.status < 500 else "failed"] += 1
            await refusal.response(path)(scope, receive, send)
        except ClientDisconnect:
            pass

    def _key_name(self, request: Request) -> str:
        """The name of the key that came with the request. Keys are compared in constant time.

        Both headers count: at a private Space, Authorization holds a token of Hugging Face's, and x-api-key the key.
        """
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = [
            request.headers.get("x-api-key", ""),
            bearer.strip() if scheme.lower() == "bearer" else "",
        ]
        found = None
        for known, name in self.keys.items():
            for key in given:
                if auth.same_secret(known, key):
                    found = name
        if found is None:
            message = "This needs one of the keys in API_KEYS: Authorization: Bearer KEY."
            raise Refusal(401, message, "invalid_api_key", www_authenticate="Bearer")
        return found

    def _check_path(self, request: Request) -> None:
        path = request.url.path
        # The bytes that were sent, too: %2F and %2E are refused, not read as / and .
        if path not in ALLOWED or request.scope.get("raw_path", path.encode()) != path.encode():
            raise Refusal(404, f"There is no {path} here.", "not_found")
        if request.method != ALLOWED[path]:
            message = f"{path} takes {ALLOWED[path]}, not {request.method}."
            raise Refusal(405, message, "method_not_allowed", allow=ALLOWED[path])

    async def _check_rate(self, who: str) -> None:
        if self.limit and not await self.limiter.hit(self.limit, who):
            window = await self.limiter.get_window_stats(self.limit, who)
            wait = max(1, math.ceil(window.reset_time - time.time()))
            message = f"This key may make {self.limit.amount} requests a minute. Try again in {wait} seconds."
            raise Refusal(429, message, "rate_limit_exceeded", retry_after=wait)

    async def _route(self, body: bytes) -> tuple[Server, bytes]:
        """The server that has the model which `body` asks for, and the body for it.

        Only a model that was asked for by its label gets another body: its engine knows it by name. Raises Refusal.
        """
        fields = _fields(body)
        limit = self.config.max_tokens_limit
        asked = max(_number(fields.get(name)) for name in TOKEN_FIELDS)
        if asked > limit:
            message = f"{asked:g} tokens are more than this Space allows: ask for at most {limit}."
            raise Refusal(400, message, "max_tokens_limit")
        if len(self.catalog.servers) == 1:
            return self.catalog.servers[0], body
        wanted = fields.get("model")
        model = await run_in_threadpool(self._find, wanted if isinstance(wanted, str) else None)
        if wanted and wanted != model.name:
            body = json.dumps(fields | {"model": model.name}).encode()
        return model.server, body

    def _find(self, label: str | None) -> Model:
        try:
            model = self.catalog.find(label)
        except errors.Rejected as error:
            if missing := self.catalog.problems():
                down = f"{error} These servers do not answer: {', '.join(missing)}."
                raise Refusal(503, down, "engine_unavailable", retry_after=RETRY_AFTER) from None
            raise Refusal(404, str(error), "model_not_found") from None
        except errors.ModelError as error:
            raise _down(error) from None
        if model.protocol != "openai":
            raise _legacy()
        return model

    async def _all_models(self) -> dict[str, Any]:
        """The models of all servers: by name, and by label where two servers have one of the same name."""
        found = [
            model
            for model in await run_in_threadpool(self.catalog.models)
            if model.protocol == "openai"
        ]
        names = Counter(model.name for model in found)
        data = [
            {
                "id": model.name if names[model.name] == 1 else model.label,
                "object": "model",
                "created": self.began,
                "owned_by": "vllm",
                "max_model_len": model.context_length,
            }
            for model in found
        ]
        return {"object": "list", "data": data}

    async def _relay(self, server: Server, request: Request, body: bytes, send: Send) -> None:
        """Send the engine's answer on as it comes. Raises Refusal where there is none.

        Cancelled, it closes the connection to the engine, which then stops.
        """
        path = request.url.path
        started = streams = False
        last = b""
        try:
            async with await self._ask(server, request, body) as answer:
                await self._check_answer(server, answer)
                kept = {
                    name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers
                }
                if answer.status in (502, 503):
                    kept.setdefault("retry-after", str(RETRY_AFTER))
                if streams := answer.content_type == "text/event-stream":
                    kept["x-accel-buffering"] = (
                        "no"  # asks a proxy in front not to hold the stream back
                    )
                raw = [(name.encode(), value.encode("latin-1")) for name, value in kept.items()]
                await send({"type": "http.response.start", "status": answer.status, "headers": raw})
                started = True
                async for last in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": last, "more_body": True})
                await send({"type": "http.response.body"})
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            log.error("the engine failed a request: %s", type(error).__name__)
            if not started:
                late = isinstance(error, aiohttp.SocketTimeoutError)
                raise _down(
                    errors.timed_out(server.timeout) if late else errors.unreachable()
                ) from None
            if streams and (
                not last or last.endswith(b"\n\n")
            ):  # between two events, there is room for another
                event = b"event: error\n" if path.startswith("/v1/messages") else b""
                event += b"data: " + _down(errors.cut_off()).body(path) + b"\n\n"
                await send({"type": "http.response.body", "body": event})
            # Else the connection ends here, with the answer incomplete: that is what the client must see.

    async def _ask(self, server: Server, request: Request, body: bytes) -> aiohttp.ClientResponse:
        """The engine's answer, of which no more than the head has come. Raises what aiohttp raises."""
        query = f"?{request.url.query}" if request.url.query else ""
        url = URL(server.url + request.url.path + query, encoded=True)
        headers = {
            name: request.headers[name] for name in PASSED_HEADERS if name in request.headers
        }
        tries = 0
        while True:
            tries += 1
            began = time.monotonic()
            try:
                return await self.sessions[server.url].request(
                    request.method,
                    url,
                    data=body or None,
                    headers=headers | server.headers,
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A kept connection that the engine was just closing, as it does after an error of its own.
                if tries == 3 or time.monotonic() - began > STALE_WITHIN:
                    raise

    async def _check_answer(self, server: Server, answer: aiohttp.ClientResponse) -> None:
        """Raise Refusal for what would mislead a client of ours: the engine's view of our key, or a web page."""
        if answer.status in (401, 403):
            raise _down(errors.ModelError(str(errors.from_response(answer.status, ""))))
        if answer.content_type == "text/html" or 300 <= answer.status < 400:
            down = answer.status in (502, 503)
            raise _down(errors.unreachable() if down else errors.malformed_response())
        if answer.status == 404:
            found = await run_in_threadpool(self.catalog.models)
            if found and all(
                model.protocol != "openai" for model in found if model.server == server
            ):
                raise _legacy()


def _legacy() -> Refusal:
    message = "This model's server speaks the legacy protocol, which has no OpenAI API. Use the page, or its endpoints."
    return Refusal(404, message, "legacy_server")


async def _while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work, unless the client leaves first: then it is cancelled at once. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request) -> bytes:
    """The request's body. Raises Refusal as soon as it is too large, ClientDisconnect when its sender leaves."""
    too_large = Refusal(
        413, f"The request is larger than {BODY_LIMIT // 2**20} MiB.", "request_too_large"
    )
    if _number(request.headers.get("content-length")) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise too_large
    return bytes(body)


class _Repeated(dict[str, Any]):
    """A JSON object that names a field twice. Two readers may read two different requests out of it."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Repeated(fields)


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a request. Raises Refusal where it is no JSON object: what cannot be read cannot be checked."""
    try:
        fields = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or isinstance(fields, _Repeated):
        raise Refusal(
            400,
            "The body of the request must be a JSON object that names each field once.",
            "invalid_json",
        )
    return fields


def _number(value: Any) -> float:
    """A number in any form that engines take for one: 9, 9.0, "9". 0 for anything else, which they refuse."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf if isinstance(value, int) else 0
