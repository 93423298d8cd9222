"""Gradio's web application, changed where it is too open, too forgetful or misleading.

Workarounds for Gradio, here and elsewhere, are tagged "gradio 6.31".
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from fastapi import HTTPException
from gradio import Blocks, oauth, processing_utils, route_utils
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBody
from gradio.route_utils import FnIndexInferError
from gradio.routes import App, ORJSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import errors

log = logging.getLogger(__name__)

UNCOLLECTED_AFTER = 60  # seconds
MAX_FILES = 20  # in one upload


class GradioApp(App):
    """Gradio's FastAPI application, for `Blocks.launch(_app=...)`, which gr.Server uses too.

    `ingress` receives the complete application and returns the one to serve (gradio#13117).
    """

    def __init__(self, ingress: Callable[[ASGIApp], ASGIApp], **options: Any):
        super().__init__(default_response_class=ORJSONResponse, **options)
        self._ingress = ingress

    def build_middleware_stack(self) -> ASGIApp:
        # gradio 6.31: its CORS middleware lets the scripts of any site read the responses, with the
        # visitor's cookies (gradio#10276)
        self.user_middleware = [
            middleware
            for middleware in self.user_middleware
            if cast(object, middleware.cls) is not route_utils.CustomCORSMiddleware
        ]
        return self._ingress(super().build_middleware_stack())


def fetch_nothing() -> None:
    """Make Gradio reject the URL of another site in place of an uploaded file.

    gradio 6.31: it downloads the file, of any size, and the visitor can read it.
    """

    async def reject(url: str, cache_dir: str = "") -> Any:
        raise ValueError("a URL in place of an uploaded file")

    # All of its downloads use one of these two.
    processing_utils.async_ssrf_protected_get = reject
    processing_utils.async_ssrf_protected_download = reject


def log_no_redirects() -> None:
    """Keep Gradio from printing three lines whenever someone begins to sign in.

    gradio 6.31: they are left over from debugging, and anyone can fill the log with them.
    """
    vars(oauth)["print"] = lambda *_: None


def limit_files() -> None:
    """Make Gradio reject an upload of more files than a message can have.

    gradio 6.31: it accepts 1,000, each of which gets a folder of its own.
    """

    class Parser(route_utils.GradioMultiPartParser):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options | {"max_files": MAX_FILES, "max_fields": 1})

    route_utils.GradioMultiPartParser = Parser  # type: ignore[misc]


async def drop_uncollected_answers(blocks: Blocks) -> None:
    """Forget the messages of events that ended a minute ago, if nobody has collected them.

    Runs until it is cancelled. gradio 6.31: it keeps them for the next 2,000 sessions.
    """
    queue = blocks._queue
    waiting: dict[str, tuple[int, float]] = {}  # session -> (messages, time of the last change)
    while True:
        await asyncio.sleep(UNCOLLECTED_AFTER / 6)
        now = time.monotonic()
        before, waiting = waiting, {}
        for session, messages in list(queue.pending_messages_per_session.items()):
            events = queue.pending_event_ids_session.get(session, set())
            is_running = bool(events & queue.event_ids_to_events.keys())
            if is_running or messages.empty():
                continue
            size, since = before.get(session, (0, now))
            waiting[session] = (messages.qsize(), since if size == messages.qsize() else now)
            if now - waiting[session][1] >= UNCOLLECTED_AFTER:
                queue.pending_messages_per_session.pop(session, None)
                queue.pending_event_ids_session.pop(session, None)


def reject_unknown_events() -> None:
    """Make Gradio return 404 for an event that the page does not have."""
    # gradio 6.31: get_fn raises KeyError or FnIndexInferError, which becomes a 500 like a bug
    gradio_get_fn = route_utils.get_fn

    def get_fn(blocks: Blocks, api_name: str | None, body: PredictBody) -> BlockFunction:
        try:
            event = gradio_get_fn(blocks, api_name, body)
        except (KeyError, FnIndexInferError):
            event = None
        if event is None or event.fn is None:  # without a function, it runs in the browser only
            raise HTTPException(404, "This page has no such event.")
        return event

    route_utils.get_fn = get_fn


class ErrorMiddleware:
    """ASGI middleware: turns Gradio's 500 for a rejected request into a 400.

    A bug remains a 500, with a message for the visitor.
    """

    # gradio 6.31: outside the queue, a gr.Error becomes a 500 like a bug

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, failed = False, False
        body = b""

        async def intercept(message: Message) -> None:
            nonlocal started, failed, body
            if message["type"] == "http.response.start":
                started, failed = True, message["status"] == 500
            elif failed and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _error_response(body)(scope, receive, send)
            if not failed:
                await send(message)

        try:
            await self.app(scope, receive, intercept)
        except ClientDisconnect:
            return log.info("a visitor left in the middle of a request for %r", scope["path"])
        except Exception as error:
            if started and isinstance(error.__cause__, HTTPException):
                # gradio 6.31: raised in the stream of an unknown session, after telling the client
                log.info("a stream for %r ended: %s", scope["path"], error.__cause__)
                return await send({"type": "http.response.body"})
            if started and isinstance(error, RuntimeError) and "is closed" in str(error):
                return log.info("a visitor left before a response to %r", scope["path"])  # uvloop's
            if started:
                raise
            # The request contains a lone surrogate, which Gradio sends back: a UnicodeEncodeError
            # in an error message, orjson's TypeError in a result.
            if "surrogates not allowed" in str(error):
                message = str(errors.malformed_request())
                return await JSONResponse({"error": message}, 400)(scope, receive, send)
            log.exception("Gradio failed to handle a request for %r", scope["path"])
            return await _error_response(b"")(scope, receive, send)


def _error_response(body: bytes) -> JSONResponse:
    """The response that replaces a 500 with this body."""
    internal = str(errors.internal())
    try:
        fields = json.loads(body)
        message = fields["error"]
    except (ValueError, TypeError, KeyError):
        fields, message = {}, None
    if isinstance(message, str) and message != internal:
        return JSONResponse(fields, 400)
    return JSONResponse({**fields, "error": internal, "detail": internal}, 500)
