"""Proxies and certificate authorities, as the environment of this process names them.

requests, aiohttp and httpx each read some of these variables and stumble over others: what they
mean is decided here, once. Knows nothing of model servers. preflight.py imports this before the
requirements are installed: standard library only.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment

from vllm_space import errors, hardware

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
CA_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIED = ("http", "https", "all")  # schemes, as in HTTP_PROXY
DEFAULT_PORTS = {"http": 80, "https": 443}
# Scheme in a variable -> scheme to use, with which the proxy resolves names. GNOME writes socks://
# for version 5.
PROXY_SCHEMES = {
    "http": "http",
    "https": "https",
    "socks": "socks5h",
    "socks5": "socks5h",
    "socks5h": "socks5h",
    "socks4": "socks4a",
    "socks4a": "socks4a",
}
HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?\.?")  # a name, or an IPv4 address


@dataclass(frozen=True)
class Proxy:
    """A proxy. `url` has a scheme, and may have a user name and a password."""

    url: str = field(repr=False)
    variable: str  # the environment variable that names it

    @property
    def is_socks(self) -> bool:
        return self.url.startswith("socks")


@dataclass(frozen=True)
class _Proxies:
    by_scheme: dict[str, Proxy]  # by one of PROXIED; the URL of an invalid one is empty
    exceptions: tuple[_Exception, ...]


@dataclass(frozen=True)
class _Exception:
    """An entry of NO_PROXY: a name with its subdomains, or a network; an empty name is `*`."""

    name: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    port: int | None

    def covers(self, host: str, port: int | None) -> bool:
        if self.port and self.port != port:
            return False
        if self.network:
            address = _address(host)
            return address is not None and address in self.network
        return not self.name or host == self.name or host.endswith(f".{self.name}")

    def for_httpx(self) -> str:
        """The entry in the form that httpx understands; empty if there is none."""
        name = self.name or "*"
        if self.network:
            is_address = self.network.prefixlen == self.network.max_prefixlen
            name = str(self.network.network_address if is_address else self.network)
            if self.network.version == 6 and (self.port or not is_address):
                return ""
        elif self.name and ("xn--" in name or not HOST.fullmatch(name)):
            return ""
        return f"{name}:{self.port}" if self.port else name


def prepare(*own_hosts: str) -> list[str]:
    """Make sure that no proxy in the environment keeps this process from working.

    Call it before Gradio or huggingface_hub are imported: httpx reads all of these variables even
    for a request that needs no proxy, and one that it cannot use is an exception. Such a proxy is
    removed from the environment of this process and its children; `proxy_for` still knows it.
    `own_hosts` are addresses of this machine that need no proxy, besides loopback. Returns
    warnings about what has been removed.
    """
    warnings = []
    proxies = _proxies()
    for scheme in PROXIED:
        proxy = proxies.by_scheme.get(scheme)
        usable = proxy is not None and _httpx_can_use(proxy)
        for name in [name for name in os.environ if name.lower() == f"{scheme}_proxy"]:
            if proxy and usable:
                os.environ[name] = proxy.url
            else:
                del os.environ[name]
        if proxy and not proxy.url:
            warnings.append(str(errors.invalid_proxy(proxy.variable)))
        elif proxy and not usable:
            warnings.append(
                f"{proxy.variable} is a SOCKS proxy: requests to the Hub do without it. "
                "Install `httpx[socks]` to use it for them."
            )
    entries = filter(None, (entry.for_httpx() for entry in proxies.exceptions))
    names = dict.fromkeys((*entries, *OWN_NAMES, *filter(str.isascii, own_hosts)))
    # For most libraries, * has a meaning only on its own.
    exceptions = "*" if "*" in names else ",".join(names)
    os.environ |= {"no_proxy": exceptions, "NO_PROXY": exceptions}
    return warnings


def proxy_for(url: str) -> Proxy | None:
    """The proxy for a request to `url`, as curl would choose it; None if it needs none.

    Raises Unreachable if it cannot be used. https://everything.curl.dev/usingproxies/env.html
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if hardware.is_loopback(host):
        return None
    proxies = _proxies()
    proxy = proxies.by_scheme.get(parts.scheme) or proxies.by_scheme.get("all")
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    if proxy is None or any(entry.covers(host, port) for entry in proxies.exceptions):
        return None
    if not proxy.url:
        raise errors.invalid_proxy(proxy.variable)
    if proxy.is_socks and not (find_spec("socks") and find_spec("aiohttp_socks")):
        raise errors.unsupported_proxy(proxy.variable, host)
    return proxy


def check_authorities() -> None:
    """Raise SettingsError if a file with certificate authorities cannot be read."""
    _add_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """The context for requests to servers with TLS. Raises SettingsError.

    It trusts the authorities of this machine, those of certifi, and those in CA_VARIABLES.
    """
    import certifi  # comes with requests

    context = ssl.create_default_context(cafile=certifi.where())
    system = ssl.get_default_verify_paths()
    if Path(system.openssl_cafile).is_file():
        context.load_verify_locations(cafile=system.openssl_cafile)
    if Path(system.openssl_capath).is_dir():
        context.load_verify_locations(capath=system.openssl_capath)
    _add_authorities(context)
    context.set_alpn_protocols(["http/1.1"])
    # Python 3.13 is stricter about a certificate's extensions than many companies' authorities are.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate authority is enough
    return context


def _add_authorities(context: ssl.SSLContext) -> None:
    for variable in CA_VARIABLES:
        value = os.environ.get(variable, "")
        folders = value.split(os.pathsep) if variable == "SSL_CERT_DIR" else [value]
        for path in filter(None, folders):
            try:
                if variable == "SSL_CERT_DIR" or Path(path).is_dir():
                    context.load_verify_locations(capath=path)
                else:
                    Path(path).read_bytes()  # OpenSSL's errors do not say why a file is unreadable
                    context.load_verify_locations(cafile=path)
            except (OSError, ValueError) as error:
                raise errors.unusable_authorities(variable, path, error) from None


# -- reading the variables -----------------------------------------------------------------


@functools.cache
def _proxies() -> _Proxies:
    """The proxies in the environment, as it was before `prepare`."""
    variables = getproxies_environment()  # of both cases, lower case first
    exceptions = re.split(r"[\s,]+", variables.get("no", "").lower())
    return _Proxies(
        {
            scheme: Proxy(_proxy_url(variables[scheme]), f"{scheme}_proxy".upper())
            for scheme in PROXIED
            if variables.get(scheme, "").strip()
        },
        tuple(filter(None, map(_exception, exceptions))),
    )


def _proxy_url(value: str) -> str:
    """The URL of a proxy in a form that all libraries can parse; empty if the value is invalid."""
    value = value.strip()
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    scheme = PROXY_SCHEMES.get(parts.scheme)
    address = _address(host)
    is_number = re.fullmatch(r"[\d.]+", host)
    if not scheme or not (address or (HOST.fullmatch(host) and not is_number)):
        return ""
    if address and address.version == 6:
        host = f"[{host}]"
    login = ""
    if parts.username is not None:
        login = ":".join(
            quote(unquote(part), safe="") for part in (parts.username, parts.password or "")
        )
        login += "@"
    if scheme.startswith("socks"):
        port = port or 1080  # RFC 1928
    return f"{scheme}://{login}{host}" + (f":{port}" if port else "")


def _httpx_can_use(proxy: Proxy) -> bool:
    if proxy.is_socks:
        return proxy.url.startswith("socks5") and find_spec("socksio") is not None
    return bool(proxy.url)


def _exception(entry: str) -> _Exception | None:
    """An entry of NO_PROXY; None if it cannot be understood."""
    entry = entry.rpartition("://")[2].rstrip("/")
    if network := _network(entry):
        return _Exception("", network, None)
    host, port = entry, None
    if match := re.fullmatch(r"(.+):(\d{1,5})", entry):
        host, port = match[1], int(match[2])
    if network := _network(host):
        return _Exception("", network, port)
    if host == "*":
        return _Exception("", None, port)
    name = host.lstrip("*").strip(".")
    if not name or ":" in name:
        return None
    try:
        return _Exception(name.encode("idna").decode(), None, port)
    except UnicodeError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network or the single address that the text is, with or without brackets."""
    text = re.sub(r"^\[([^\]]*)\](?=/|$)", r"\1", text)
    try:
        return ipaddress.ip_network(re.sub(r"%[^/]*", "", text), strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a name
        return None
