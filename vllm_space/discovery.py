"""What a model server offers: its protocol, its models, and whether it can answer requests.

An address can be read in more than one way, and servers differ: what is there is found by asking.
"""

from __future__ import annotations

import json
import logging
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from vllm_space import errors, model_list
from vllm_space.connection import CONNECT_TIMEOUT, check_response, session
from vllm_space.model_list import Entry
from vllm_space.server import Model, Server

log = logging.getLogger(__name__)

LIST_TIMEOUT = 60  # seconds; catalog.py stops waiting earlier
HEALTH_TIMEOUT = 5  # seconds
MAX_LIST = 32 * 2**20  # bytes
READ_TIMEOUTS = (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
LEGACY_NAME = "vLLM (legacy server)"  # which does not name its model


def models(server: Server, name: str = "", timeout: float = LIST_TIMEOUT) -> list[Model]:
    """The models that a server offers.

    `name` is a model to use if the server has no list, or an empty one. Waits up to `timeout`
    seconds for each response. Raises ModelError if the server cannot be reached, or neither has a
    list of models nor is vLLM's legacy server.
    """
    with session(server) as http:
        try:
            found = _models(http, server, name, timeout)
            # vLLM's API server keeps listing models for some seconds after its engine has died.
            if any(model.is_vllm for model in found) and not _is_up(http, server, HEALTH_TIMEOUT):
                raise errors.unreachable(server.label)
            return found
        except READ_TIMEOUTS:
            raise errors.waking_up(server.label, timeout) from None


def check(server: Server, timeout: float, name: str = "") -> None:
    """Raise ModelError unless the server can answer requests now. `name` is as for `models`.

    Waits up to `timeout` seconds for each response; TimedOut if one does not come. The /health of
    vLLM does not wait for its tokenizer, a single thread that every request needs: tokenize a word.
    """
    with session(server) as http:
        try:
            if not _is_up(http, server, timeout):
                raise errors.unreachable(server.label)
            try:
                found = _models(http, server, name, timeout)
            except errors.Failed:
                if not server.is_found:
                    raise
                return  # a router that has just lost a replica fails some requests
            if model := next((model.name for model in found if model.is_vllm), None):
                body = {"model": model, "prompt": "Hi"}
                # Even an error shows that it responds.
                http.post(server.endpoint("/tokenize"), json=body, timeout=timeout)
        except READ_TIMEOUTS:
            raise errors.not_answering(server.label) from None


def _models(http: requests.Session, server: Server, name: str, timeout: float) -> list[Model]:
    limits = (CONNECT_TIMEOUT, timeout)
    problem: errors.ModelError | None = None
    for base in dict.fromkeys((server.base, *server.bases)):
        try:
            entries = _entries(http, server, base, limits)
        except errors.NotAList as error:
            problem = problem or error
            continue
        except errors.Rejected as error:
            if not name or isinstance(error, errors.KeyRejected):
                raise
            problem = problem or error
            continue
        if entries is not None:
            break
    else:
        return [_without_list(http, server, name, limits, problem)]
    found = [Model(server, **vars(entry)) for entry in entries]
    if not found and not name:
        raise errors.no_models(server.label)
    return found or [Model(server, name)]


def _entries(
    http: requests.Session, server: Server, base: str, limits: tuple[float, float]
) -> list[Entry] | None:
    """The list of models below `base`, which becomes the server's; None if there is none.

    Raises ModelError.
    """
    with _get(http, server.endpoint("/v1/models", base), limits) as response:
        if response.status_code in (404, 405):
            return None
        upgraded = _upgraded(response, base)
        if not upgraded:
            return _listed(response, server, base)
        target = urljoin(response.url, response.headers["Location"])
    if upgraded != server.base:
        log.warning("The model server redirects to %s: set MODEL_URL to that.", upgraded)
    with _get(http, target, limits) as response:
        return _listed(response, server, upgraded)


def _listed(response: requests.Response, server: Server, base: str) -> list[Entry]:
    """The list in a response, whose base becomes the server's. Raises ModelError."""
    check_response(response, server.secrets, logging.DEBUG)  # Catalog logs it, once
    entries = model_list.parse(_json(response), f"{base}/models", server.secrets)
    server.found_at(base)
    return entries


def _get(http: requests.Session, url: str, limits: tuple[float, float]) -> requests.Response:
    return http.get(url, timeout=limits, allow_redirects=False, stream=True)


def _json(response: requests.Response) -> object:
    """The decoded body, or None if it is not JSON or larger than MAX_LIST."""
    body = response.raw.read(MAX_LIST + 1, decode_content=True)
    try:
        return json.loads(body) if len(body) <= MAX_LIST else None
    except (ValueError, RecursionError):
        return None


def _upgraded(response: requests.Response, base: str) -> str:
    """The base that a list's redirect leads to, if it is on the same host; otherwise empty.

    Usually it leads from http to https. A redirect to another host is not followed: the API key
    would go there.
    """
    if not response.is_redirect:
        return ""
    old = urlsplit(base)
    try:
        location = urlsplit(urljoin(response.url, response.headers["Location"]))
        port = location.port
    except ValueError:
        return ""
    path = location.path.rstrip("/")
    is_same = (location.scheme, location.netloc) == (old.scheme, old.netloc)
    is_secured = (
        (old.scheme, location.scheme) == ("http", "https")
        and old.hostname == location.hostname
        and old.port in (None, 80)
        and port in (None, 443)
    )
    if not path.endswith("/models") or not (is_same or is_secured):
        return ""
    return f"{location.scheme}://{location.netloc}{path.removesuffix('/models')}"


def _without_list(
    http: requests.Session,
    server: Server,
    name: str,
    limits: tuple[float, float],
    problem: errors.ModelError | None,
) -> Model:
    """The model of a server that has no list. Raises ModelError if there seems to be none.

    `problem` is what the server answers instead of a list, unless it is 404.
    """

    def status(target: str, base: str = "") -> int:
        with _get(http, server.endpoint(target, base), limits) as response:
            return response.status_code

    # GET on a path that takes only POST is 405.
    chats = [base for base in server.bases if status("/v1/chat/completions", base) == 405]
    if not chats and status("/health") == 200 and status("/generate") == 405:
        return Model(server, server.label or LEGACY_NAME, "generate")
    if problem and not (name and chats):
        raise problem
    if not name:
        raise errors.no_model_list(f"{server.base}/models", 404)
    if chats:
        server.found_at(chats[0])
    return Model(server, name)


def _is_up(http: requests.Session, server: Server, timeout: float) -> bool:
    """Check /health; if that is 503, /readiness decides.

    The /health of vllm-router is 503 as long as any of its replicas is down. Servers other than
    vLLM may have neither endpoint and still answer requests.
    """

    def status(path: str) -> int:
        return http.get(server.endpoint(path), timeout=timeout, allow_redirects=False).status_code

    health = status("/health")
    return status("/readiness") == 200 if health == 503 else health < 500
