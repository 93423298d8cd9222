"""The other door: /healthz, and the engine's OpenAI API under /v1 for those who hold a key.

What is answered comes from the engine byte for byte. Knows nothing of the page.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vllm_space import engine, errors
from vllm_space.client import CONNECT_TIMEOUT, Catalog, Server
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
}
BODY_LIMIT = 32 * 2**20  # bytes; room for a few images
KEPT_HEADERS = ("content-type", "content-length", "content-encoding", "x-request-id")  # of the engine's answer
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def routes(config: Settings, catalog: Catalog) -> list[Route]:
    """The routes of this door, for the app's one port."""
    door = Door(config, catalog)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [
        Route("/healthz", door.healthz),
        Route("/v1", door.refuse_path, methods=methods),
        Route("/v1/{path:path}", door.pass_through, methods=methods),
    ]


class Door:
    """The API of this port, in front of one engine or several."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.keys = {}  # digest of the key -> its name
        for number, secret in enumerate(config.api_keys, start=1):
            name, _, key = secret.get_secret_value().rpartition(":")
            self.keys[_digest(key)] = name or f"key {number}"
        timeout = httpx.Timeout(config.request_timeout, connect=CONNECT_TIMEOUT)
        self.http = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None))

    # -- /healthz --------------------------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        """200 when an engine answers, 503 with the reason when none does. Open to all; tells no more than that."""
        status = engine.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            reason = f"The engine is {status.state}" + (f": {status.phase}." if status.phase else ".")
            return JSONResponse({"status": status.state, "reason": reason}, 503)
        answers = await asyncio.gather(*(self._answers(server) for server in self.catalog.servers))
        if any(answers):
            return JSONResponse({"status": "ok"})
        reason = str(errors.unreachable() if answers else errors.no_server())
        return JSONResponse({"status": "down", "reason": reason}, 503)

    async def _answers(self, server: Server) -> bool:
        try:
            answer = await self.http.get(f"{server.url}/health", headers=server.headers, timeout=3)
            return answer.status_code < 500  # servers that are not vLLM may lack /health, and still answer
        except httpx.HTTPError:
            return False

    # -- /v1 -------------------------------------------------------------------------------------------------

    async def refuse_path(self, request: Request) -> Response:
        return _error(404, f"There is no {request.url.path} here.", "not_found")

    async def pass_through(self, request: Request) -> Response:
        """Check key, path and body, then hand the request to the engine that has its model."""
        if not self.keys:
            return _error(404, "The API of this Space is closed: its owner has set no API_KEYS.", "api_closed")
        who = self._key_name(request)
        if who is None:
            return _error(401, "This needs one of the keys in API_KEYS: Authorization: Bearer KEY.", "invalid_api_key")
        path = request.url.path
        if path not in ALLOWED:
            return await self.refuse_path(request)
        if request.method != ALLOWED[path]:
            return _error(405, f"{path} takes {ALLOWED[path]}, not {request.method}.", "method_not_allowed")
        try:
            body = await _read(request)
        except _TooLarge:
            return _error(413, f"The request is larger than {BODY_LIMIT // 2**20} MiB.", "request_too_large")
        log.info("%s %s by %s", request.method, path, who)
        if path == "/v1/models" and len(self.catalog.servers) > 1:
            return await self._all_models()
        fields = _json_object(body)
        asked = max((fields[name] for name in TOKEN_FIELDS if isinstance(fields.get(name), int)), default=0)
        if asked > self.config.max_tokens_limit:
            limit = self.config.max_tokens_limit
            return _error(
                400, f"{asked} tokens are more than this Space allows: ask for at most {limit}.", "max_tokens"
            )
        try:
            server = await self._server_of(fields.get("model"))
        except errors.ModelError as error:
            return _error(404 if error.status == 400 else error.status, str(error), "model_not_found")
        return await self._relay(server, request, body)

    def _key_name(self, request: Request) -> str | None:
        """The name of the key that came with the request, or None. Keys are compared in constant time."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        given, found = _digest(key), None
        for digest, name in self.keys.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found

    async def _server_of(self, model: Any) -> Server:
        if len(self.catalog.servers) == 1:
            return self.catalog.servers[0]
        found = await run_in_threadpool(self.catalog.find, model if isinstance(model, str) else None)
        return found.server

    async def _all_models(self) -> Response:
        found = await run_in_threadpool(self.catalog.models)
        data = [
            {"id": model.label, "object": "model", "owned_by": "vllm", "max_model_len": model.context_length}
            for model in found
        ]
        return JSONResponse({"object": "list", "data": data})

    async def _relay(self, server: Server, request: Request, body: bytes) -> Response:
        headers = {"content-type": request.headers.get("content-type", "application/json"), **server.headers}
        url = httpx.URL(server.url + request.url.path, query=request.url.query.encode())
        outgoing = self.http.build_request(request.method, url, content=body, headers=headers)
        sending = asyncio.ensure_future(self.http.send(outgoing, stream=True))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()  # the client is gone: the engine must not go on for nobody
                return Response(status_code=499)
            return _Relay(sending.result())
        except httpx.HTTPError as error:
            failure = errors.timed_out(server.timeout) if isinstance(error, httpx.ReadTimeout) else errors.unreachable()
            log.error("the engine failed a request: %s", type(error).__name__)
            return _error(failure.status, str(failure), "engine_unavailable", retry_after=5)
        finally:
            leaving.cancel()


class _Relay(StreamingResponse):
    """The engine's answer as it comes; closed, however it ends, so that the engine stops with the client."""

    def __init__(self, upstream: httpx.Response):
        self.upstream = upstream
        kept = {name: upstream.headers[name] for name in KEPT_HEADERS if name in upstream.headers}
        super().__init__(self._chunks(), upstream.status_code, kept)

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.upstream.aiter_raw():
                yield chunk
        except httpx.HTTPError:
            log.error("the engine's answer broke off")
            if "text/event-stream" in self.upstream.headers.get("content-type", ""):
                yield b"data: " + _error_body(502, str(errors.cut_off()), "engine_unavailable") + b"\n\n"
            else:
                raise

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            await asyncio.shield(self.upstream.aclose())


class _TooLarge(Exception):
    pass


async def _read(request: Request) -> bytes:
    """The request's body. Raises _TooLarge as soon as it is."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise _TooLarge
    return bytes(body)


async def _disconnected(request: Request) -> None:
    """Return when the client has gone. Only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as an object; an empty one where it is none, which the engine will say in its own words."""
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _error_body(status: int, message: str, code: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _error(status: int, message: str, code: str, retry_after: int | None = None) -> Response:
    """A refusal in the form that OpenAI's clients understand."""
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    return Response(_error_body(status, message, code), status, headers, "application/json")
