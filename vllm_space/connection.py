"""Connections to model servers: every failure becomes a ModelError."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import requests
import urllib3

from vllm_space import errors
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


def check_response(response: requests.Response, log_level: int = logging.ERROR) -> None:
    """Raise a ModelError if the response is an HTTP error."""
    if response.ok:
        return
    try:
        body = response.json()
    except ValueError:
        body = response.text
    log.log(
        log_level, "the model server returned HTTP %s: %s", response.status_code, str(body)[:500]
    )
    raise errors.from_response(response.status_code, body)
