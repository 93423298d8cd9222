"""The API gateway: serves the engine's OpenAI-compatible API at /v1 to clients with an API key.

It checks the key, the path, the limits and the request, and finds the engine that has the model.
Knows nothing of the page.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import (
    api_answer,
    api_error,
    api_models,
    api_paths,
    api_relay,
    api_request,
    auth,
    errors,
    text_limit,
)
from vllm_space.api_answer import AnswerForm
from vllm_space.api_error import ApiError
from vllm_space.api_paths import MODELS
from vllm_space.api_relay import Relay
from vllm_space.api_request import ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.key_limits import KeyLimits
from vllm_space.server import Model, Server
from vllm_space.settings import Settings, shorten
from vllm_space.upstream import Call, Upstream

log = logging.getLogger(__name__)


# Not the client's API key, which is meant for this gateway, nor its cookies, which are the page's.
REQUEST_HEADERS = (
    "content-type",
    "accept",
    "accept-encoding",
    "x-request-id",
    "x-session-id",  # vLLM's, and its router's, to find the KV cache of the session
    "traceparent",  # https://www.w3.org/TR/trace-context
    "tracestate",
    "anthropic-version",
    "anthropic-beta",
)


class Gateway:
    """ASGI app: the API in front of one or more engines.

    `counts` maps each key's name to the number of its requests ("requests"), of those that were
    rejected ("rejected"), and of those that no engine answered ("failed").
    """

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
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
        self.relay = Relay(self.upstream, catalog)
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
            if key_name:
                self.counts[key_name]["requests"] += 1
            api_paths.check(request)
            if not key_name:
                raise _invalid_key()
            limits = self.limits[key_name]
            await limits.check_rate()
            slot = nullcontext() if request.method == "GET" else limits.slot()
            length = api_request.announced_length(request)
            with slot, limits.holding(length, receive) as counted:
                if not self.catalog.servers:
                    raise api_error.engine_unavailable(errors.no_server())
                body = await api_request.read_body(Request(scope, counted))
                log.info("%s %s by %s", request.method, shorten(path), key_name)
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

    def _key_name(self, request: Request) -> str | None:
        """The name of the request's API key, or None if it is missing or invalid.

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
        return key_name

    async def _serve(self, request: Request, body: bytes, limits: KeyLimits, send: Send) -> None:
        """Send a request whose body has arrived to the right engine, and relay the answer.

        The body only changes if the model was requested by its label, since an engine knows just
        its name, or if MAX_TOKENS_LIMIT lowers the tokens. Raises ApiError.
        """
        path = request.scope["path"]
        await self._find_base()
        if path.startswith(MODELS):
            return await self._serve_models(request, limits, send)
        target = f"{path}?{request.url.query}" if request.url.query else path
        headers = api_relay.pick(request.headers, REQUEST_HEADERS)
        call = Call(self.catalog.servers[0], request.method, target, headers, body)
        if request.method == "GET":
            return await self.relay.answer(call, None, limits, send)
        headers.setdefault("content-type", "application/json")
        parsed = await limits.compute(len(body), partial(ApiRequest.parse, path, body))
        server, changes = await self._route(parsed)
        asked = str(parsed.fields["model"]) if "model" in changes else ""
        if asked:
            headers["accept-encoding"] = "identity"
        form = AnswerForm(path, asked, parsed.streams) if asked or parsed.streams else None
        if "max_tokens_limit" in self.config.model_fields_set:
            changes |= parsed.changes_to_cap(self.config.max_tokens_limit)
        if changes:
            parsed = parsed.changed(changes)
            body = await limits.compute(parsed.length, parsed.encode)
        call = replace(call, server=server, body=body)
        return await self.relay.answer(call, parsed, limits, send, form)

    async def _find_base(self) -> None:
        """Find out where the API of a single server is, if its address allows for several places.

        With several servers, `_route` lists the models, which finds it too.
        """
        server = self.catalog.servers[0]
        if len(server.bases) > 1 and not server.is_found:
            await self.relay.context_fit.refresh()

    async def _serve_models(self, request: Request, limits: KeyLimits, send: Send) -> None:
        """Send the list of models, or one of them. Raises ApiError.

        A single server's own list is sent, which says more about the models than the catalog.
        """
        name = api_paths.model_id(request)
        call = Call(
            self.catalog.servers[0],
            "GET",
            f"{MODELS}?{request.url.query}".rstrip("?"),
            api_relay.pick(request.headers, REQUEST_HEADERS) | {"accept-encoding": "identity"},
            b"",
        )
        problem = None
        if len(self.catalog.servers) == 1:
            try:
                await self.relay.models(call, name, limits, send)
                return
            except ApiError as error:
                if error.status != 404 or error.code == "model_not_found":
                    raise
                problem = error  # the server has no list, but MODEL_ID may name its model
        models = await run_in_threadpool(self.catalog.models)
        listing = api_models.of_servers(models, self.relay.started_at)
        if not listing["data"] and problem:
            raise problem
        if not models and (problems := await run_in_threadpool(self.catalog.problems)):
            raise api_error.engine_unavailable(errors.Unreachable(" ".join(problems.values())))
        body = json.dumps(api_models.find(listing, name) if name else listing).encode()
        await api_relay.send_whole(send, 200, {"content-type": api_answer.JSON}, body)

    async def _route(self, parsed: ApiRequest) -> tuple[Server, dict[str, Any]]:
        """The server that has the model, and the changes that it needs to know it by its name.

        Raises ApiError if there is none, or if the prompt cannot fit into the model's context.
        """
        label = parsed.fields.get("model")
        if len(self.catalog.servers) == 1:
            server = self.catalog.servers[0]
            if parsed.size.characters > text_limit.ALWAYS_ALLOWED:
                _check_context(parsed, await self.relay.context_fit.model(server, label))
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


def _check_context(parsed: ApiRequest, model: Model | None) -> None:
    """Raise ApiError if the prompt cannot fit into the model's context."""
    try:
        text_limit.check_context(parsed.size, model.context_length if model else None)
    except errors.Rejected as error:
        raise api_error.too_large(str(error)) from None


def _invalid_key() -> ApiError:
    message = (
        "Missing or invalid API key. "
        "Send one of this Space's keys as `Authorization: Bearer <key>`."
    )
    return ApiError(401, message, "invalid_api_key", www_authenticate="Bearer")


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
