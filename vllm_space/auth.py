"""Sign-in for the page, by password or with Hugging Face. Required for every path of Gradio.

Only the sign-in itself is public. /healthz and /v1 are not affected: ingress.py handles them first.
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
COOKIE_MAX_AGE = 30 * 24 * 3600  # seconds
FREE_FAILURES = 5  # wrong passwords from one address before it has to wait
MAX_WAIT = 300  # seconds
MAX_ADDRESSES = 10_000  # remembered; the oldest is dropped, so a flood cannot fill the memory
LOGIN_PAGE = Template(
    Path(__file__).with_name("login.html").read_text(encoding="utf-8"), autoescape=True
)

# Paths that work without signing in. gradio 6.31: launch requests the last one from itself
PUBLIC_PATHS = ("/login", "/logout", "/gradio_api/startup-events")
HUGGING_FACE_PATHS = ("/login/huggingface", "/login/callback")  # public too


class SignIn:
    """Who may use the page, and how they sign in."""

    def __init__(self, config: Settings, space: Space | None, button_color: str):
        self.config = config
        self.space = space
        self.button_color = button_color  # CSS, for the login page
        self.logins = config.logins
        self.required = bool(self.logins or config.oauth_allowed)
        # The signing key is derived from the passwords: visitors stay signed in after a restart,
        # and are signed out when a password changes.
        key = hashlib.sha256(json.dumps(sorted(self.logins.items())).encode()).hexdigest()
        self.signer = URLSafeTimedSerializer(key, salt=COOKIE)
        # address -> (wrong passwords so far, time.monotonic() from which the next try is allowed)
        self.failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def user(self, request: Request) -> str | None:
        """The signed-in visitor's name, or None."""
        return self._password_user(request) or self._hugging_face_user(request)

    def visitor(self, request: Request) -> str:
        """Identifies the sender of a request: the name if signed in, otherwise the address."""
        return self.user(request) or client_address(request, self.space)

    def _password_user(self, request: Request) -> str | None:
        try:
            name = self.signer.loads(request.cookies.get(COOKIE, ""), max_age=COOKIE_MAX_AGE)
        except BadSignature:
            return None
        return name if name in self.logins else None

    def _hugging_face_user(self, request: Request) -> str | None:
        profile = self._profile(request)
        accounts = [profile, *(profile.get("orgs") or [])]
        # Only "preferred_username" is unique. "name" is a display name that anyone can choose.
        names = {(account.get("preferred_username") or "").lower() for account in accounts}
        allowed = {name.lower() for name in self.config.oauth_allowed}
        return profile.get("preferred_username") if "*" in allowed or names & allowed else None

    def _profile(self, request: Request) -> dict[str, Any]:
        """The visitor's userinfo from Hugging Face, allowed or not; empty if not signed in."""
        if not self.config.oauth_allowed or "session" not in request.scope:
            return {}
        oauth_info = request.session.get("oauth_info") or {}
        if oauth_info.get("expires_at", math.inf) <= time.time():
            return {}
        return dict(oauth_info.get("userinfo") or {})

    def is_owner(self, request: Request) -> bool:
        """Whether the visitor is the Space's owner, or signed in with a password."""
        if self._password_user(request):
            return True
        owner = self.space.id.split("/")[0] if self.space else None
        return owner is not None and self._hugging_face_user(request) == owner

    def routes(self) -> list[Route]:
        """The route of the login form. Gradio has those of "Sign in with Hugging Face"."""
        if not self.required:
            return []
        return [Route("/login", self.login, methods=["GET", "POST"])]

    async def login(self, request: Request) -> Response:
        """Show the form, or check a user name and a password.

        Browsers and Gradio's client both send them as form fields.
        """
        if request.method == "GET":
            return self.page()
        form = await request.form()
        name, password = str(form.get("username", "")).strip(), str(form.get("password", ""))
        is_browser = "text/html" in request.headers.get("accept", "")

        def failure(message: str, page_status: int, status: int) -> Response:
            if is_browser:
                return self.page(message, page_status)
            return JSONResponse({"detail": message}, status)

        address = client_address(request, self.space)
        wait = math.ceil(self.failures.get(address, (0, 0.0))[1] - time.monotonic())
        if wait > 0:
            response = failure(f"Too many wrong passwords. Try again in {wait} s.", 429, 429)
            response.headers["Retry-After"] = str(wait)
            return response
        if not self._matches(name, password):
            self._count_failure(address)
            return failure("Incorrect user name or password.", 200, 400)
        self.failures.pop(address, None)
        root = request.scope.get("root_path", "") + "/"
        response = RedirectResponse(root, 303) if is_browser else JSONResponse({"success": True})
        # In another site's frame, browsers only store Secure cookies; on plain http, only others.
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(
            COOKIE,
            self.signer.dumps(name),
            COOKIE_MAX_AGE,
            path=urlsplit(root).path,
            httponly=True,
            secure=secure,
            samesite="none" if secure else "lax",
        )
        if secure:
            # One cookie per embedding site (CHIPS), for browsers that block others in frames.
            response.headers["set-cookie"] += "; Partitioned"
        return response

    def _count_failure(self, address: str) -> None:
        count = self.failures.pop(address, (0, 0.0))[0] + 1
        wait = min(2 ** (count - FREE_FAILURES), MAX_WAIT) if count >= FREE_FAILURES else 0
        self.failures[address] = (count, time.monotonic() + wait)
        if len(self.failures) > MAX_ADDRESSES:
            self.failures.popitem(last=False)

    def _matches(self, name: str, password: str) -> bool:
        """Whether this is one of the logins. Every login is compared, in constant time."""
        matches = False
        for login_name, login_password in self.logins.items():
            same_name = same_secret(login_name, name)
            same_password = same_secret(login_password, password)
            matches |= same_name and same_password
        return matches

    def page_for(self, request: Request) -> HTMLResponse:
        """The login page for a visitor without access."""
        if name := self._profile(request).get("preferred_username"):
            message = (
                f"You are signed in as {name}, but this Space's owner hasn't given you access."
            )
            return self.page(message, 403, signed_in=True)
        return self.page()

    def page(
        self, message: str = "", status: int = 200, signed_in: bool = False, root: str = "./"
    ) -> HTMLResponse:
        """The login page, a single file. `root` is the relative URL of the app's root."""
        html = LOGIN_PAGE.render(
            root=root,
            title=self.config.app_title,
            message=message,
            passwords=bool(self.logins),
            hugging_face=bool(self.config.oauth_allowed),
            signed_in=signed_in,
            direct=self.space.url if self.space else "",
            button_color=self.button_color,
        )
        return HTMLResponse(html, status)


def client_address(request: Request, space: Space | None) -> str:
    """The IP address of the client. On a Space, it comes from the proxy's X-Forwarded-For header.

    A proxy appends the address it sees, so the last public address is genuine, whatever the client
    sent before it. Elsewhere the header is not trusted.
    """
    direct = request.client.host if request.client else ""
    if not space:
        return direct
    for address in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        try:
            if ipaddress.ip_address(address.strip()).is_global:
                return address.strip()
        except ValueError:
            continue
    return direct


def same_secret(secret: str, candidate: str) -> bool:
    """Whether two secrets are equal, in constant time."""
    digests = [
        hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (secret, candidate)
    ]
    return hmac.compare_digest(*digests)


class SignInMiddleware:
    """ASGI middleware: rejects every request that is not signed in, except for the public paths."""

    def __init__(self, app: ASGIApp, sign_in: SignIn):
        self.app = app
        self.sign_in = sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.sign_in.required:
            return await self.app(scope, receive, send)
        if scope["path"] in HUGGING_FACE_PATHS:
            return await self._hugging_face_sign_in(scope, receive, send)
        if scope["path"] in PUBLIC_PATHS:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope)
        if self.sign_in.user(request):
            return await self.app(scope, receive, send)
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            response: Response = self.sign_in.page_for(request)
        else:
            message = "Not signed in. Open the page and sign in first."
            response = JSONResponse({"detail": message}, 401)
        return await response(scope, receive, send)

    async def _hugging_face_sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run Gradio's OAuth routes; if the sign-in fails, show the login page with a message."""
        # gradio 6.31: if the visitor declines or Hugging Face is down, it returns a bare 500
        response: Response = self.sign_in.page(
            "Sign-in with Hugging Face failed. Try again.", 403, root="../"
        )
        if "error" not in Request(scope).query_params:
            try:
                return await self.app(scope, receive, send)
            except Exception:
                log.exception("sign-in with Hugging Face failed")
                response.status_code = 502
        return await response(scope, receive, send)
