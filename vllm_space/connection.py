"""Connections to model servers: every failure becomes a ModelError."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import requests
import urllib3

from vllm_space import error_body, errors
from vllm_space.server import Server

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5  # seconds


@contextmanager
def session(server: Server) -> Iterator[requests.Session]:
    """A session that turns every connection failure into a ModelError."""
    with requests.Session() as session:
        # A local server must not be reached through a proxy, nor with credentials from .netrc.
        session.trust_env = not server.is_local
        session.headers.update(server.headers)
        try:
            yield session
        except requests.exceptions.ConnectTimeout:
            raise errors.unreachable(server.label) from None
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise errors.timed_out(server.timeout) from None
        except (urllib3.exceptions.HTTPError, requests.exceptions.ChunkedEncodingError) as error:
            log.error("the stream from the model server was cut off: %s", error)
            raise errors.cut_off() from None
        except requests.exceptions.RequestException as error:
            log.debug("the model server cannot be reached: %s", type(error).__name__)
            raise errors.unreachable(server.label) from None


def check_response(
    response: requests.Response, secrets: Iterable[str] = (), log_level: int = logging.ERROR
) -> None:
    """Raise a ModelError if the response is an HTTP error; `secrets` are masked in its message."""
    if response.ok:
        return
    body = decoded(response)
    shown = error_body.mask(str(body), secrets)[:500]
    log.log(log_level, "the model server returned HTTP %s: %s", response.status_code, shown)
    raise errors.from_response(response.status_code, body, secrets)


def decoded(response: requests.Response) -> object:
    """The body of a response: its JSON, or its text."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return response.text
