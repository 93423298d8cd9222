"""Keeps other web sites from using the page in the name of a visitor's browser.

A browser sends a visitor's cookies, and reaches private networks, on behalf of any site that the
visitor has open. Browsers say where a request comes from: in `Sec-Fetch-Site` on https and
localhost, otherwise in `Origin` (https://www.w3.org/TR/fetch-metadata). Programs send neither.
Knows nothing of cookies or Gradio.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_space import hardware
from vllm_space.forwarded import TrustedProxies, parse_address

OWN_SITE = ("same-origin", "none")  # "none": the visitor typed the address, or used a bookmark
DEFAULT_PORTS = {"http": 80, "https": 443}


class OriginMiddleware:
    """ASGI middleware: rejects requests that another web site sends through a visitor's browser.

    Links to the page and redirects back from a sign-in are not such requests. `own_hosts` are
    names of the page besides the one in the Host header. If `checks_host`, a request that arrives
    on a loopback address must not name another host: a site can have its own name resolve to
    127.0.0.1 (DNS rebinding), and is then of the same origin as the page. Proxies that are trusted
    may pass on any name.
    """

    def __init__(
        self, app: ASGIApp, own_hosts: tuple[str, ...], checks_host: bool, trusts: TrustedProxies
    ):
        self.app = app
        self.own_hosts = own_hosts
        self.checks_host = checks_host
        self.trusts = trusts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        headers = Headers(scope=scope)
        if self.checks_host and self._is_rebound(scope, headers):
            message = (
                f"This page does not answer to the name {_name(headers.get('host', ''))!r}. Open "
                "it at its own address, or if a reverse proxy or tunnel serves it under that name, "
                "set FORWARDED_ALLOW_IPS to the proxy's address."
            )
            return await JSONResponse({"detail": message}, 421)(scope, receive, send)
        if self._is_foreign(scope, headers) and not _is_link(scope, headers):
            message = "Another web site sent this request. Open this page directly and try there."
            return await JSONResponse({"detail": message}, 403)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _is_rebound(self, scope: Scope, headers: Headers) -> bool:
        address = (scope.get("server") or ("",))[0]
        # A client of a loopback address has such an address itself: it may be a trusted proxy.
        if not hardware.is_loopback(address) or self.trusts(address):
            return False
        name = _name(headers.get("host", ""))
        is_local = name == "localhost" or name.endswith(".localhost") or bool(parse_address(name))
        return not is_local and name not in map(_name, self.own_hosts)

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        if site := headers.get("sec-fetch-site"):
            return site not in OWN_SITE
        origin = headers.get("origin")
        if origin is None:
            return False
        scheme, _, host = origin.partition("://")
        if scope["scheme"] == "https" and scheme != "https":
            return True
        # A proxy that is not trusted may have ended TLS: the scheme seen here can be wrong.
        own_hosts = (headers.get("host"), headers.get("x-forwarded-host"), *self.own_hosts)
        return _with_port(host, scheme) not in {
            _with_port(own_host, scheme) for own_host in own_hosts if own_host
        }


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a visitor follows a link to the page, opens it in a frame, or returns from sign-in.

    What such a request returns cannot be read by the site it comes from.
    """
    is_navigation = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in (
        "GET",
        "HEAD",
    )
    path = scope["path"]
    return is_navigation and (path in ("/", "/login") or path.startswith("/login/"))


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _with_port(host: str, scheme: str) -> tuple[str, int | None]:
    """(name, port) of a host in a header, with the scheme's port if it has none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError:
        return host, None
