"""The doors of the page: passwords and "Sign in with Hugging Face", in front of every path of the app.

What is open without either: the login itself; and /healthz and /v1, which stand before this door (see api.py).
Knows nothing of the page.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from jinja2 import Template
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space.hardware import Space
from vllm_space.settings import Settings

log = logging.getLogger(__name__)

COOKIE = "vllm_space_login"
STAYS_SIGNED_IN = 30 * 24 * 3600  # seconds
FREE_FAILURES = 5  # wrong passwords of one address before it has to wait
LONGEST_WAIT = 300  # seconds
LOGIN_PAGE = Template(
    Path(__file__).with_name("login.html").read_text(encoding="utf-8"), autoescape=True
)
REMEMBERED = 10_000  # addresses; the oldest is forgotten, so that a flood cannot fill the memory

# Paths that need no login. gradio 6.31: launch calls the last one on itself.
OPEN = ("/login", "/logout", "/gradio_api/startup-events")
HUGGING_FACE = ("/login/huggingface", "/login/callback")  # as open


class SignIn:
    """Who may come in."""

    def __init__(self, config: Settings, space: Space | None):
        self.config = config
        self.space = space
        self.logins = config.logins
        self.required = bool(self.logins or config.oauth_allowed)
        # The key is made of the passwords: logins survive a restart, and end when a password changes.
        key = hashlib.sha256(json.dumps(sorted(self.logins.items())).encode()).hexdigest()
        self.signer = URLSafeTimedSerializer(key, salt=COOKIE)
        self.failures: OrderedDict[str, tuple[int, float]] = (
            OrderedDict()
        )  # address -> (how many, when it may again)

    def user(self, request: Request) -> str | None:
        """The signed-in visitor's name, or None."""
        return self._login(request) or self._hugging_face_user(request)

    def visitor(self, request: Request) -> str:
        """Who a request is from: a signed-in name, or an address."""
        return self.user(request) or client_address(request, self.space)

    def _login(self, request: Request) -> str | None:
        try:
            name = self.signer.loads(request.cookies.get(COOKIE, ""), max_age=STAYS_SIGNED_IN)
        except BadSignature:
            return None
        return name if name in self.logins else None

    def _hugging_face_user(self, request: Request) -> str | None:
        profile = self._profile(request)
        names = [
            profile,
            *(profile.get("orgs") or []),
        ]  # an organisation's "name" may be anything, as a person's
        groups = {(one.get("preferred_username") or "").lower() for one in names}
        allowed = {name.lower() for name in self.config.oauth_allowed}
        return profile.get("preferred_username") if "*" in allowed or groups & allowed else None

    def _profile(self, request: Request) -> dict[str, Any]:
        """What Hugging Face says of the visitor, allowed in or not; empty where nobody is signed in."""
        if not self.config.oauth_allowed or "session" not in request.scope:
            return {}
        known = request.session.get("oauth_info") or {}
        return (
            dict(known.get("userinfo") or {})
            if known.get("expires_at", math.inf) > time.time()
            else {}
        )

    def is_owner(self, request: Request) -> bool:
        """Whether a visitor may see what is the owner's: who knows a password, or the Space's owner signed in."""
        if self._login(request):
            return True
        owner = self.space.id.split("/")[0] if self.space else None
        return owner is not None and self._hugging_face_user(request) == owner

    def routes(self) -> list[Route]:
        """The login form; Gradio's own handles "Sign in with Hugging Face"."""
        if not self.required:
            return []
        return [Route("/login", self.login, methods=["GET", "POST"])]

    async def login(self, request: Request) -> Response:
        """Show the form, or check a name and a password (form fields, as Gradio's client sends them)."""
        if request.method == "GET":
            return self.page()
        form = await request.form()
        name, password = str(form.get("username", "")).strip(), str(form.get("password", ""))
        browser = "text/html" in request.headers.get("accept", "")
        address = client_address(request, self.space)
        wait = math.ceil(self.failures.get(address, (0, 0.0))[1] - time.monotonic())
        if wait > 0:
            message = f"Too many wrong passwords: try again in {wait} s."
            response: Response = (
                self.page(message, 429) if browser else JSONResponse({"detail": message}, 429)
            )
            response.headers["Retry-After"] = str(wait)
            return response
        if not self._matches(name, password):
            self._count_failure(address)
            message = "This name and password do not match."
            return self.page(message) if browser else JSONResponse({"detail": message}, 400)
        self.failures.pop(address, None)
        root = request.scope.get("root_path", "") + "/"
        response = RedirectResponse(root, 303) if browser else JSONResponse({"success": True})
        token = self.signer.dumps(name)
        # In a frame of another site only a Secure cookie is kept; on plain http only one that is not.
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(
            COOKIE,
            token,
            STAYS_SIGNED_IN,
            path=urlsplit(root).path,
            httponly=True,
            secure=secure,
            samesite="none" if secure else "lax",
        )
        if secure:  # kept for this site within that one, also where a browser blocks cookies in frames (CHIPS)
            response.headers["set-cookie"] += "; Partitioned"
        return response

    def _count_failure(self, address: str) -> None:
        count = self.failures.pop(address, (0, 0.0))[0] + 1
        wait = min(2 ** (count - FREE_FAILURES), LONGEST_WAIT) if count >= FREE_FAILURES else 0
        self.failures[address] = (count, time.monotonic() + wait)
        if len(self.failures) > REMEMBERED:
            self.failures.popitem(last=False)

    def _matches(self, name: str, password: str) -> bool:
        """Whether that is one of the logins, in a time that tells nothing of either."""
        found = False
        for known_name, known_password in self.logins.items():
            same_name, same_password = (
                same_secret(known_name, name),
                same_secret(known_password, password),
            )
            found |= same_name and same_password
        return found

    def welcome(self, request: Request) -> HTMLResponse:
        """The login page as a visitor who may not come in first sees it."""
        if name := self._profile(request).get("preferred_username"):
            message = f"You are signed in to Hugging Face as {name}, who may not use this Space: its owner decides who may."
            return self.page(message, 403, signed_in=True)
        return self.page()

    def page(
        self, message: str = "", status: int = 200, signed_in: bool = False, root: str = "./"
    ) -> HTMLResponse:
        """The login page, which needs no other file. `root` leads from the address it is shown at to the page's."""
        html = LOGIN_PAGE.render(
            root=root,
            title=self.config.app_title,
            message=message,
            passwords=bool(self.logins),
            hugging_face=bool(self.config.oauth_allowed),
            signed_in=signed_in,
            direct=self.space.url if self.space else "",
        )
        return HTMLResponse(html, status)


def client_address(request: Request, space: Space | None) -> str:
    """Where a request comes from. On a Space, what its proxy says; elsewhere a header could say anything.

    A proxy appends the address it sees, so the last public one is true, whatever the visitor sent in front of it.
    """
    direct = request.client.host if request.client else ""
    if not space:
        return direct
    for part in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        try:
            if ipaddress.ip_address(part.strip()).is_global:
                return part.strip()
        except ValueError:
            continue
    return direct


def same_secret(known: str, given: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of either."""
    known_digest, given_digest = (
        hashlib.sha256(each.encode("utf-8", "replace")).digest() for each in (known, given)
    )
    return hmac.compare_digest(known_digest, given_digest)


class SignInMiddleware:
    """ASGI: without a login nothing passes but the open paths, whatever Gradio would answer."""

    def __init__(self, app: ASGIApp, sign_in: SignIn):
        self.app = app
        self.sign_in = sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.sign_in.required:
            return await self.app(scope, receive, send)
        if scope["path"] in HUGGING_FACE:
            return await self._hugging_face_sign_in(scope, receive, send)
        if scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope)
        if self.sign_in.user(request):
            return await self.app(scope, receive, send)
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            response: Response = self.sign_in.welcome(request)
        else:
            response = JSONResponse(
                {"detail": "Not signed in: open the page and sign in first."}, 401
            )
        return await response(scope, receive, send)

    async def _hugging_face_sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's part of the sign-in.

        gradio 6.31: it knows no failure. If the visitor declined or Hugging Face is down, it answers a bare 500.
        """
        response: Response = self.sign_in.page(
            "Hugging Face has not signed you in. Try again.", 403, root="../"
        )
        if "error" not in Request(scope).query_params:
            try:
                return await self.app(scope, receive, send)
            except Exception:
                log.exception("sign-in with Hugging Face failed")
                response.status_code = 502
        return await response(scope, receive, send)
