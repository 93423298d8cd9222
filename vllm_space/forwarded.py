"""Finds the real client of a request that came through reverse proxies.

Proxies report its address, scheme and host in X-Forwarded headers, which anyone can send. Only the
proxies in FORWARDED_ALLOW_IPS and, on a Space, the platform's are trusted; the headers of everyone
else are removed. Knows nothing of sign-in or Gradio.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
IPV6_SITE = 64  # bits: a provider gives each customer at least this many addresses to choose from

# An address with a port, as some load balancers report it
WITH_PORT = re.compile(r"\[(?P<ipv6>[^\]]+)\](:\d+)?|(?P<ipv4>[\d.]+):\d+")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
TrustedProxies = Callable[[str], bool]  # whether an address is that of a trusted proxy


def trusted(networks: Iterable[str], on_space: bool) -> TrustedProxies:
    """Which addresses are proxies: those in `networks`; on a Space, also all private ones.

    A Space can only be reached through the platform's proxies, which have private addresses.
    """
    networks = set(networks)
    ranges = [ipaddress.ip_network(network, strict=False) for network in networks - {"*"}]

    def trusts(address: str) -> bool:
        ip = parse_address(address)
        return (
            "*" in networks
            or (on_space and _is_private(address))
            or any(ip in network for network in ranges if ip)
        )

    return trusts


class ForwardedMiddleware:
    """ASGI middleware: sets the scope's client and scheme to the visitor's.

    Of the X-Forwarded headers it leaves only X-Forwarded-Proto and X-Forwarded-Host, from a trusted
    proxy and with a single value: Gradio reads them to build its URLs.
    """

    def __init__(self, app: ASGIApp, trusts: TrustedProxies):
        self.app = app
        self.trusts = trusts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # ingress.py closes websockets
            scope = self._resolved(scope)
        await self.app(scope, receive, send)

    def _resolved(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        kept = [(name, value) for name, value in scope["headers"] if name not in HEADERS]
        scope = {**scope, "headers": kept}
        peer, port = scope.get("client") or ("", 0)
        if not self.trusts(peer):
            return scope
        hops = ",".join(headers.getlist("x-forwarded-for")).split(",")
        scope["client"] = (self._visitor(hops) or peer, port)
        # With several proxies, the first one is the visitor's, such as the "https" in "https,http".
        scheme = _first(headers, "x-forwarded-proto").lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme
            kept.append((b"x-forwarded-proto", scheme.encode()))
        if host := _first(headers, "x-forwarded-host"):
            kept.append((b"x-forwarded-host", host.encode("latin-1")))
        return scope

    def _visitor(self, hops: list[str]) -> str:
        """The visitor among the addresses that a request came through; empty if there is none.

        Each proxy appends the address it sees, so the last one that is no proxy's is genuine; those
        before it are what the visitor claims, and so are those before a hop that is no address.
        If all are trusted, it is the last public one.
        """
        addresses = [str(ip) for ip in itertools.takewhile(bool, map(_hop_address, reversed(hops)))]
        for is_proxy in (self.trusts, _is_private):
            for address in addresses:
                if not is_proxy(address):
                    return address
        return addresses[0] if addresses else ""


def _first(headers: Headers, name: str) -> str:
    return headers.get(name, "").split(",")[0].strip()


def parse_address(text: str) -> Address | None:
    """The IP address that the text is; None if it is something else."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:  # such as "unknown", or the name of a Unix socket
        return None
    return getattr(ip, "ipv4_mapped", None) or ip  # a socket for both kinds shows IPv4 in IPv6


def _hop_address(hop: str) -> Address | None:
    """The address in an element of X-Forwarded-For."""
    hop = hop.strip()
    if match := WITH_PORT.fullmatch(hop):
        hop = match["ipv6"] or match["ipv4"]
    return parse_address(hop)


def _is_private(address: str) -> bool:
    ip = parse_address(address)
    return ip is not None and not ip.is_global


def visitor_address(scope: Scope) -> str:
    """The visitor's address, for limits; an IPv6 address as its network of 64 bits."""
    address = scope["client"][0] if scope.get("client") else ""
    ip = parse_address(address)
    if not isinstance(ip, ipaddress.IPv6Address):
        return str(ip or address)
    return str(ipaddress.ip_network((ip, IPV6_SITE), strict=False))
