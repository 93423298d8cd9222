"""Gradio's web application with what it lacks: an ingress before everything, and honest answers to what goes wrong.

Everything that works around Gradio's server is here or in page/, tagged "gradio 6.31".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from gradio import Blocks, route_utils
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBody
from gradio.route_utils import FnIndexInferError
from gradio.routes import App, ORJSONResponse
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space import errors

log = logging.getLogger(__name__)


class GradioApp(App):
    """Gradio's FastAPI application, for `Blocks.launch(_app=...)`, which gr.Server uses too (gradio#13117).

    `ingress` gets the whole application and returns the one to serve. gradio 6.31: what `app_kwargs["middleware"]`
    names stands behind Gradio's own CORS layer, which lets the scripts of every site read what is answered
    (gradio#10276).
    """

    def __init__(self, ingress: Callable[[ASGIApp], ASGIApp], **options: Any):
        super().__init__(default_response_class=ORJSONResponse, **options)
        self._ingress = ingress

    def build_middleware_stack(self) -> ASGIApp:
        return self._ingress(super().build_middleware_stack())


def reject_unknown_events() -> None:
    """Let Gradio answer 404 to a request for an event that the page does not have.

    gradio 6.31: route_utils.get_fn raises KeyError or FnIndexInferError, which is answered with 500 like a bug.
    """
    find = route_utils.get_fn

    def get_fn(blocks: Blocks, api_name: str | None, body: PredictBody) -> BlockFunction:
        try:
            event = find(blocks, api_name, body)
        except (KeyError, FnIndexInferError):
            event = None
        if event is None or event.fn is None:  # without a function, it happens in the browser alone
            raise HTTPException(404, "This page has no such event.")
        return event

    route_utils.get_fn = get_fn


class ErrorMiddleware:
    """ASGI: what Gradio answers with HTTP 500 becomes what it is.

    gradio 6.31: outside the queue a gr.Error is answered with 500 like a bug. A refusal that has a sentence for the
    visitor becomes 400; a failure of the page stays 500, with a sentence too.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, failed = False, False
        body = b""

        async def watch(message: Message) -> None:
            nonlocal started, failed, body
            if message["type"] == "http.response.start":
                started, failed = True, message["status"] == 500
            elif failed and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _answer(body)(scope, receive, send)
            if not failed:
                await send(message)

        try:
            await self.app(scope, receive, watch)
        except (
            UnicodeEncodeError
        ):  # half a surrogate pair, which only a request brings, cannot be sent back
            if started:
                raise
            await JSONResponse({"error": str(errors.malformed_request())}, 400)(
                scope, receive, send
            )
        except Exception:
            if started:
                raise
            log.exception("Gradio failed at a request for %r", scope["path"])
            await _answer(b"")(scope, receive, send)


def _answer(body: bytes) -> JSONResponse:
    """The answer in place of one with status 500 and this body."""
    internal = str(errors.internal())
    try:
        answer = json.loads(body)
        sentence = answer["error"]
    except (ValueError, TypeError, KeyError):
        answer, sentence = {}, None
    if isinstance(sentence, str) and sentence != internal:
        return JSONResponse(answer, 400)
    return JSONResponse({**answer, "error": internal, "detail": internal}, 500)
