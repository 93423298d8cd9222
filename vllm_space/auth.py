"""Sign-in for the page, by password or with Hugging Face. Required for every path of Gradio.

Only the sign-in itself is public. /healthz and /v1 are not affected: ingress.py handles them first.
Knows nothing of the page.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Template
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space import csp, login_form
from vllm_space.forwarded import visitor_address
from vllm_space.hardware import Space
from vllm_space.lockout import Lockout
from vllm_space.settings import Settings, shorten
from vllm_space.signing import Signer, claimed_name

log = logging.getLogger(__name__)

DAY = 24 * 3600  # seconds
COOKIE = "vllm_space_login"
COOKIE_MAX_AGE = 30 * DAY
# Set at a sign-in, one for each user, and kept when the visitor signs out: see lockout.py. See also
# https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies
BROWSER_COOKIE = "vllm_space_browser_"
BROWSER_COOKIE_MAX_AGE = 365 * DAY
MAX_ENDED = 10_000  # sessions that were signed out
LOGIN_PAGE = Template(
    Path(__file__).with_name("login.html").read_text(encoding="utf-8"), autoescape=True
)

# Paths that work without signing in. gradio 6.31: launch requests the last one from itself
PUBLIC_PATHS = ("/login", "/logout", "/gradio_api/startup-events")
HUGGING_FACE_PATHS = ("/login/huggingface", "/login/callback")  # public too


class SignIn:
    """Who may use the page, and how they sign in and out.

    A session that was signed out stays invalid while this process runs. After a restart, a copy of
    its cookie is valid again until it expires or, for a password, until that changes.
    """

    def __init__(self, config: Settings, space: Space | None, button_color: str):
        self.config = config
        self.space = space
        self.button_color = button_color  # CSS, for the login page
        self.logins = config.logins
        self.required = is_required(config)
        self.signer = Signer(self.logins)
        self.lockout = Lockout()
        self.ended: dict[str, str] = {}  # session that was signed out -> its account

    # -- who is signed in --------------------------------------------------------------------------

    async def prepare_keys(self) -> None:
        """Derive all keys, in the background at the start. Requests do not have to wait for it."""
        await self.signer.prepare_all()

    async def prepare(self, request: Request) -> None:
        """Derive the key that the other methods need to check the request's cookie."""
        await self.signer.prepare(claimed_name(request.cookies.get(COOKIE, "")))

    def user(self, request: Request) -> str | None:
        """The signed-in visitor's name, or None."""
        return self._password_user(request) or self._hugging_face_user(request)

    def visitor(self, request: Request) -> str:
        """Identifies the sender of a request: the account if signed in, otherwise the address.

        Someone with the same name at Hugging Face is not the user with the password.
        """
        return self.account(request) or visitor_address(request.scope)

    def account(self, request: Request) -> str | None:
        """The account that is signed in, as `visitor` has it, or None."""
        if name := self._password_user(request):
            return f"password:{name}"
        if name := self._hugging_face_user(request):
            return f"hf:{name}"
        return None

    def _password_user(self, request: Request) -> str | None:
        token = self.signer.check(request.cookies.get(COOKIE, ""), COOKIE, COOKIE_MAX_AGE)
        return token.name if token and token.id not in self.ended else None

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
        if _oauth_session(oauth_info) in self.ended:
            return {}
        return dict(oauth_info.get("userinfo") or {})

    def is_owner(self, request: Request) -> bool:
        """Whether the visitor is the Space's owner, or signed in with a password."""
        if self._password_user(request):
            return True
        owner = self.space.id.split("/")[0] if self.space else None
        return owner is not None and self._hugging_face_user(request) == owner

    # -- signing in and out ------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """The routes of the login form and of signing out, in place of Gradio's.

        Gradio has those of "Sign in with Hugging Face".
        """
        return [
            Route("/login", self.login, methods=["GET", "POST"]),
            Route("/logout", self.logout, methods=["GET", "POST"]),
        ]

    async def login(self, request: Request) -> Response:
        """Show the form, or check a user name and a password."""
        if not self.required:
            return RedirectResponse(_root(request), 303)
        if request.method != "POST":
            return self.page(request)
        try:
            name = await self._authenticate(request)
        except HTTPException as error:
            if _is_browser(request):
                response: Response = self.page(request, error.detail, error.status_code)
            else:
                response = JSONResponse({"detail": error.detail}, error.status_code)
            response.headers.update(error.headers or {})
            return response
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        response = _done(request)
        for cookie, path, max_age in (
            (COOKIE, "", COOKIE_MAX_AGE),
            (_browser_cookie(name), "login", BROWSER_COOKIE_MAX_AGE),
        ):
            token = self.signer.sign(name, cookie)
            response.set_cookie(cookie, token, max_age, **_cookie_options(request, path))
        return response

    async def _authenticate(self, request: Request) -> str:
        """The name of the user whose password this is, whose key is then prepared.

        Raises HTTPException with the reason if it is wrong, or too many were; ClientDisconnect.
        """
        address = visitor_address(request.scope)
        browsers = await self._known_browsers(request)
        if not browsers:  # before anything of the body is read
            _check_wait(self.lockout.wait_of_address(address))
        form = await login_form.read(request)
        name, password = form.get("username", "").strip(), form.get("password", "")
        sender = (name, address, browsers.get(name))
        _check_wait(self.lockout.wait(*sender))
        if not self._matches(name, password):
            self.lockout.count(*sender)
            # Masked, in case someone typed the password into the wrong field
            log.info("wrong password for %r from %s", shorten(self.config.mask(name)), address)
            raise HTTPException(400, "Incorrect user name or password.")
        self.lockout.clear(*sender)
        await self.signer.prepare(name)
        return name

    async def _known_browsers(self, request: Request) -> dict[str, str]:
        """The users who have signed in with this browser before -> its identity in lockout.py."""
        known = {}
        for cookie, value in request.cookies.items():
            if cookie.startswith(BROWSER_COOKIE):
                await self.signer.prepare(claimed_name(value))
                if token := self.signer.check(value, cookie, BROWSER_COOKIE_MAX_AGE):
                    known[token.name] = token.id
        return known

    def _matches(self, name: str, password: str) -> bool:
        """Whether this is one of the logins. Every login is compared, in constant time."""
        matches = False
        for login_name, login_password in self.logins.items():
            same_name = same_secret(login_name, name)
            same_password = same_secret(login_password, password)
            matches |= same_name and same_password
        return matches

    async def logout(self, request: Request) -> Response:
        """End the visitor's session, however it began, in the browser and on the server."""
        response = _done(request)
        if token := self.signer.check(request.cookies.get(COOKIE, ""), COOKIE, COOKIE_MAX_AGE):
            self._end(token.id, token.name)
        response.delete_cookie(COOKIE, **_cookie_options(request))
        if "session" in request.scope:
            if oauth_info := request.session.get("oauth_info"):
                self._end(_oauth_session(oauth_info), str(oauth_info.get("userinfo")))
            request.session.clear()
        return response

    def _end(self, session: str, account: str) -> None:
        self.ended[session] = account
        if len(self.ended) > MAX_ENDED:
            # The account with the most of them, so that nobody can push out those of others.
            most = Counter(self.ended.values()).most_common(1)[0][0]
            del self.ended[next(key for key, owner in self.ended.items() if owner == most)]

    # -- the login page ----------------------------------------------------------------------------

    def page_for(self, request: Request) -> HTMLResponse:
        """The login page for a visitor without access."""
        if name := self._profile(request).get("preferred_username"):
            message = (
                f"You are signed in as {name}, but this Space's owner hasn't given you access."
            )
            return self.page(request, message, 403, signed_in=True)
        return self.page(request)

    def page(
        self,
        request: Request,
        message: str = "",
        status: int = 200,
        signed_in: bool = False,
        root: str = "./",
    ) -> HTMLResponse:
        """The login page, a single file. `root` is the relative URL of the app's root."""
        html = LOGIN_PAGE.render(
            root=root,
            title=self.config.app_title,
            message=message,
            passwords=bool(self.logins),
            hugging_face=bool(self.config.oauth_allowed),
            signed_in=signed_in,
            # Hugging Face does not let its own pages be shown in the frame of a Space.
            in_frame=request.headers.get("sec-fetch-dest") in ("iframe", "frame"),
            direct=self.space.url if self.space else "",
            button_color=self.button_color,
        )
        headers = {
            "Content-Security-Policy": csp.login_policy(self.space),
            "Cache-Control": "no-store",
        }
        return HTMLResponse(html, status, headers)


def is_required(config: Settings) -> bool:
    """Whether visitors of the page have to sign in."""
    return bool(config.logins or config.oauth_allowed)


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _root(request: Request) -> str:
    """The URL of the page, or its path."""
    return str(request.scope.get("root_path", "")) + "/"


def _done(request: Request) -> Response:
    """The response to a visitor who has signed in or out, or to a program."""
    if _is_browser(request):
        return RedirectResponse(_root(request), 303)
    return JSONResponse({"success": True})


def _cookie_options(request: Request, path: str = "") -> dict[str, Any]:
    """Attributes of a cookie for the page or, with a `path`, for a path below it."""
    # In another site's frame, browsers only store Secure cookies; on plain http, only others.
    secure = request.url.scheme == "https"
    return {
        "path": urlsplit(_root(request)).path + path,
        "httponly": True,
        "secure": secure,
        "samesite": "none" if secure else "lax",
    }


def _browser_cookie(name: str) -> str:
    """The name of the cookie of a browser that has signed in as this user."""
    return BROWSER_COOKIE + hashlib.sha256(name.encode()).hexdigest()[:8]


def _oauth_session(oauth_info: dict[str, Any]) -> str:
    """Identifies one sign-in with Hugging Face."""
    return hashlib.sha256(json.dumps(oauth_info, sort_keys=True).encode()).hexdigest()


def _check_wait(seconds: int) -> None:
    """Raise HTTPException if it is too early for the next password."""
    if seconds:
        message = f"Too many wrong passwords. Try again in {seconds} s."
        raise HTTPException(429, message, {"Retry-After": str(seconds)})


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
        if scope["type"] != "http" or not self.sign_in.required:  # ingress.py closes websockets
            return await self.app(scope, receive, send)
        request = Request(scope)
        await self.sign_in.prepare(request)
        if scope["path"] in HUGGING_FACE_PATHS:
            return await self._hugging_face_sign_in(request, receive, send)
        if scope["path"] in PUBLIC_PATHS:
            return await self.app(scope, receive, send)
        if self.sign_in.user(request):
            return await self.app(scope, receive, send)
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            response: Response = self.sign_in.page_for(request)
        else:
            message = "Not signed in. Open the page and sign in first."
            response = JSONResponse({"detail": message}, 401)
        return await response(scope, receive, send)

    async def _hugging_face_sign_in(self, request: Request, receive: Receive, send: Send) -> None:
        """Run Gradio's OAuth routes; if the sign-in fails, show the login page with a message."""
        # gradio 6.31: if the visitor declines or Hugging Face is down, it returns a bare 500
        response: Response = self.sign_in.page(
            request, "Sign-in with Hugging Face failed. Try again.", 403, root="../"
        )
        if "error" not in request.query_params:
            try:
                return await self.app(request.scope, receive, send)
            except Exception:
                log.exception("sign-in with Hugging Face failed")
                response.status_code = 502
        return await response(request.scope, receive, send)
