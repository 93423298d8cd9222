"""Keeps a browser tab's session to the visitor who began it.

Gradio identifies a tab by a random `session_hash`, and an event by its `event_id`. Both are in
URLs, and so in the logs of proxies. Whoever knows one could listen to the answers of its owner or
cancel them. That matters only if visitors sign in; otherwise they cannot be told apart.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space.auth import SignIn
from vllm_space.bodies import FIELDS

MAX_SESSIONS = 100_000  # sessions and events that are remembered; the oldest are forgotten
BY_PATH = ("/gradio_api/heartbeat/", "/gradio_api/call/")  # whose last part is an id


class SessionMiddleware:
    """ASGI middleware: rejects requests for a session or an event of another user."""

    def __init__(self, app: ASGIApp, sign_in: SignIn):
        self.app = app
        self.sign_in = sign_in
        self.owners: OrderedDict[str, str] = OrderedDict()  # session or event -> user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.sign_in.required:
            return await self.app(scope, receive, send)
        user = self.sign_in.user(Request(scope)) or ""
        for id in _ids(scope):
            if self._owner(id, user) != user:
                message = "This session belongs to another user. Reload the page."
                return await JSONResponse({"detail": message}, 403)(scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)

        async def send_and_claim(message: Message) -> None:
            if event := _event_id(message):
                self._owner(event, user)
            await send(message)

        return await self.app(scope, receive, send_and_claim)

    def _owner(self, id: str, user: str) -> str:
        """The owner of a session or an event, which is `user` if it is new."""
        owner = self.owners.setdefault(id, user)
        self.owners.move_to_end(id)
        if len(self.owners) > MAX_SESSIONS:
            self.owners.popitem(last=False)
        return owner


def _ids(scope: Scope) -> list[str]:
    """The sessions and events that a request names."""
    fields: dict[str, Any] = scope.get(FIELDS, {})
    ids = [fields.get("session_hash"), fields.get("event_id")]
    ids += parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])
    if scope["method"] == "GET" and scope["path"].startswith(BY_PATH):
        ids.append(scope["path"].rpartition("/")[2])
    return [id for id in ids if isinstance(id, str) and id]


def _event_id(message: Message) -> str:
    """The id of the event that a response announces; empty if it announces none."""
    body = message.get("body", b"")
    if not body.startswith(b'{"event_id"'):
        return ""
    try:
        return str(json.loads(body)["event_id"])
    except (ValueError, KeyError):
        return ""
