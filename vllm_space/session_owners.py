"""Keeps a browser tab's session to the visitor who began it.

Gradio identifies a tab by a random `session_hash`, and an event by its `event_id`. Both are in
URLs, and so in the logs of proxies. Whoever knows one could listen to the answers of its owner or
cancel them. That matters only if visitors sign in; otherwise they cannot be told apart.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_space.auth import SignIn
from vllm_space.bodies import FIELDS

MAX_IDS = 100_000  # sessions and events that are remembered
MAX_LENGTH = 64  # characters of an id; Gradio's have at most 36
BY_PATH = ("/gradio_api/heartbeat/", "/gradio_api/call/")  # whose last part is an id


class SessionOwnerMiddleware:
    """ASGI middleware: rejects requests for a session or an event of another user.

    Requests to public paths, from someone who is not signed in, begin no session.
    """

    def __init__(self, app: ASGIApp, sign_in: SignIn):
        self.app = app
        self.sign_in = sign_in
        self.owners: dict[str, str] = {}  # session or event -> user
        self.ids: dict[str, OrderedDict[str, None]] = {}  # user -> theirs, the last used at the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = self.sign_in.account(Request(scope)) if scope["type"] == "http" else None
        if user is None:
            return await self.app(scope, receive, send)
        ids = _ids(scope)
        if ids is None or any(len(id) > MAX_LENGTH for id in ids):
            message = "The session in this request is not valid. Reload the page."
            return await JSONResponse({"detail": message}, 400)(scope, receive, send)
        for id in ids:
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
        if owner == user:
            self.ids.setdefault(user, OrderedDict())[id] = None
            self.ids[user].move_to_end(id)
        if len(self.owners) > MAX_IDS:
            self._forget_one()
        return owner

    def _forget_one(self) -> None:
        """Forget the oldest of the user who has the most, so that nobody can push out others'."""
        most = max(self.ids, key=lambda user: len(self.ids[user]))
        oldest, _ = self.ids[most].popitem(last=False)
        del self.owners[oldest]
        if not self.ids[most]:
            del self.ids[most]


def _ids(scope: Scope) -> list[str] | None:
    """The sessions and events that a request names; None if its query names several sessions."""
    fields: dict[str, Any] = scope.get(FIELDS, {})
    in_query = Request(scope).query_params.getlist("session_hash")
    if len(in_query) > 1:
        return None
    ids = [fields.get("session_hash"), fields.get("event_id"), *in_query]
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
