"""Connections to model servers: every failure becomes a ModelError, for requests and for aiohttp.

Redirects are not followed: a POST would become a GET, and the API key could go to another host.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from vllm_space import error_body, errors, network
from vllm_space.server import ENDPOINT, Server

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5  # seconds
ERROR_LIMIT = 256 * 2**10  # bytes of an error that are read
PROBE_TIMEOUT = 2  # seconds to find out whether a server speaks TLS

# OpenSSL's codes, X509_V_ERR_*: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
OUT_OF_DATE = (9, 10)
ANOTHER_NAME = (62, 64)
# OpenSSL's reasons if what arrives is not TLS.
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
# Exceptions of requests and aiohttp if a server closes the connection or sends no HTTP.
NO_HTTP = (
    "ConnectionResetError",
    "RemoteDisconnected",
    "ServerDisconnectedError",
    "BadStatusLine",
)
# What nginx and Go say on a port with TLS.
TLS_EXPECTED = re.compile(r"HTTP request (?:was sent )?to (?:an )?HTTPS", re.IGNORECASE)


class _Adapter(HTTPAdapter):
    """Verifies certificates as network.py says."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=network.ssl_context())

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **options, ssl_context=network.ssl_context())

    def cert_verify(self, *args: Any) -> None:
        pass  # requests would load its own authorities for every connection


class _Session(requests.Session):
    """Follows no redirects, and takes from the environment only what network.py says."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.trust_env = False  # a .netrc would replace the server's key
        self.headers.update(server.headers)

    def get_adapter(self, url: str) -> Any:
        if url.startswith("https:") and not isinstance(self.adapters["https://"], _Adapter):
            self.mount("https://", _Adapter())
        return super().get_adapter(url)

    def get_redirect_target(self, response: requests.Response) -> None:
        return None

    def merge_environment_settings(self, url: Any, proxies: Any, *options: Any) -> Any:
        proxy = network.proxy_for(url)
        proxies = {"http": proxy.url, "https": proxy.url} if proxy else {}
        return super().merge_environment_settings(url, proxies, *options)


@contextmanager
def session(server: Server) -> Iterator[requests.Session]:
    """A session that turns every connection failure into a ModelError."""
    with _Session(server) as session:
        try:
            yield session
        except requests.exceptions.ConnectTimeout as error:
            raise problem(error, server) from None
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise errors.timed_out(server.timeout) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            if _is_in_a_response(error):
                log.error("the stream from the model server was cut off: %s", error)
                raise errors.cut_off() from None
            log.debug("the model server cannot be reached: %s", type(error).__name__)
            raise tls_expected(error, server) or problem(error, server) from None


def check_response(
    response: requests.Response, secrets: Iterable[str] = (), log_level: int = logging.ERROR
) -> None:
    """Raise a ModelError if the response is an HTTP error or a redirect.

    `secrets` are masked in its message.
    """
    if response.status_code >= 400:
        raise failure(response, decoded(response), secrets, log_level)
    if response.status_code >= 300:
        raise redirected(response.url, response.headers.get("Location", ""))


def failure(
    response: requests.Response,
    body: object,
    secrets: Iterable[str],
    log_level: int = logging.ERROR,
) -> errors.ModelError:
    """The error that a response reports; `body` is its decoded body."""
    status, url = response.status_code, response.url
    shown = error_body.mask(str(body), secrets)[:500]
    log.log(log_level, "the model server returned HTTP %s: %s", status, shown)
    if status == 407 and (proxy := network.proxy_for(url)):
        return errors.proxy_needs_login(proxy.variable)
    if status == 400 and (wrong := wrong_scheme(url, str(body))):
        return wrong
    return errors.from_response(status, body, secrets)


def wrong_scheme(url: str, text: str) -> errors.ModelError | None:
    """The error if `text`, of a 400, is what a port with TLS says to a request in plain http."""
    if url.startswith("http:") and TLS_EXPECTED.search(text):
        return errors.speaks_tls(_origin(url))
    return None


def decoded(response: requests.Response) -> object:
    """The JSON, or the text, of the first ERROR_LIMIT bytes of a response not yet read."""
    body = next(response.iter_content(ERROR_LIMIT), b"")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def redirected(url: str, location: str) -> errors.ModelError:
    """The error for a redirect. `url` was requested; `location` is the header of the response."""
    try:
        old, new = urlsplit(url), urlsplit(urljoin(url, location))
        targets = [_origin(part.geturl()) for part in (old, new)]
    except ValueError:
        return errors.malformed_response()
    if not location or new.scheme not in ("http", "https") or not new.hostname:
        return errors.malformed_response()
    # Usually, both paths end in that of the endpoint, which is no part of the server's address.
    paths = [part.path.rstrip("/") for part in (old, new)]
    endpoint = ENDPOINT.search(paths[0])
    suffix = endpoint[0] if endpoint else _common_end(*paths)
    if not suffix or not paths[1].endswith(suffix):
        return errors.redirected_elsewhere(targets[0] + paths[0], targets[1] + paths[1])
    return errors.redirected(
        *(target + path.removesuffix(suffix) for target, path in zip(targets, paths, strict=True))
    )


def _common_end(path: str, other: str) -> str:
    """The segments that two paths end in, with their slashes."""
    end = ""
    for segment in reversed(path.split("/")[1:]):
        if not other.endswith(f"/{segment}{end}"):
            break
        end = f"/{segment}{end}"
    return end


def problem(error: BaseException, server: Server) -> errors.ModelError:
    """Why a server cannot be reached: from an exception of requests, urllib3 or aiohttp."""
    causes = list(_causes(error))
    origin = _origin(server.base)
    host = urlsplit(server.base).hostname or ""
    for cause in causes:
        if isinstance(cause, errors.ModelError):
            return cause
        # aiohttp's exceptions are also OpenSSL's, but without its codes.
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_code"):
            if cause.verify_code in ANOTHER_NAME:
                return errors.certificate_of_another(origin)
            if cause.verify_code in OUT_OF_DATE:
                return errors.certificate_out_of_date(origin, cause.verify_message)
            return errors.untrusted_certificate(origin, cause.verify_message)
        if isinstance(cause, ssl.SSLError) and (reason := getattr(cause, "reason", None)):
            if reason in NOT_TLS:
                return errors.speaks_plain_http(origin)
            return errors.tls_failed(origin, reason.lower().replace("_", " "))
    is_unknown = any(isinstance(cause, (socket.gaierror, UnicodeError)) for cause in causes)
    if proxy := network.proxy_for(server.base):
        if any(re.search(r"(?<!:)\b407\b", str(cause)) for cause in causes):
            return errors.proxy_needs_login(proxy.variable)
        if is_unknown or any("Proxy" in type(cause).__name__ for cause in causes):
            return errors.proxy_failed(proxy.variable, host)
    if is_unknown or any(isinstance(cause, requests.exceptions.InvalidURL) for cause in causes):
        return errors.unknown_host(host)
    return errors.unreachable(server.label)


def _causes(error: object, seen: set[int] | None = None) -> Iterator[BaseException]:
    """The exception and those that led to it, wherever the libraries keep them, each once."""
    seen = set() if seen is None else seen
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    yield error
    seen.add(id(error))
    attributes = ("reason", "os_error", "certificate_error", "__cause__", "__context__")
    for cause in (*(getattr(error, name, None) for name in attributes), *error.args):
        yield from _causes(cause, seen)


def _is_in_a_response(error: BaseException) -> bool:
    """Whether the connection failed after the response had begun."""
    if isinstance(error, urllib3.exceptions.LocationParseError):
        return False
    return isinstance(
        error, (urllib3.exceptions.HTTPError, requests.exceptions.ChunkedEncodingError)
    )


def tls_expected(error: BaseException, server: Server) -> errors.ModelError | None:
    """The error if a server with an http:// URL speaks TLS, which is found out by connecting to it.

    Only if `error` shows that it accepted the connection, and then closed it or sent no HTTP.
    """
    names = {type(cause).__name__ for cause in _causes(error)}
    if names.isdisjoint(NO_HTTP) or not _speaks_tls(server):
        return None
    return errors.speaks_tls(_origin(server.base))


def _speaks_tls(server: Server) -> bool:
    parts = urlsplit(server.base)
    if parts.scheme != "http" or network.proxy_for(server.base):
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = parts.hostname or "", parts.port or 80
    try:
        with socket.create_connection(address, PROBE_TIMEOUT) as connection:
            context.wrap_socket(connection, server_hostname=parts.hostname).close()
    except (OSError, ValueError):
        return False
    return True


def _origin(url: str) -> str:
    """The scheme, host and port of a URL, without credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
