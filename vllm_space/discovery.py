"""What a model server offers: its protocol, its models, and whether it can answer requests."""

from __future__ import annotations

import logging
from typing import Any

import requests

from vllm_space import errors
from vllm_space.connection import CONNECT_TIMEOUT, check_response, session
from vllm_space.server import Model, Server

log = logging.getLogger(__name__)

LIST_TIMEOUT = 5  # seconds; loading the page waits for this
MAX_NAME = 500  # characters of a model's name


def models(server: Server) -> list[Model]:
    """The models that a server offers.

    A server that answers /v1/models with 404 is taken for vLLM's legacy server, which does not name
    its model. Raises ModelError if the server cannot be reached or returns an error.
    """
    with session(server) as http:
        response = http.get(server.endpoint("/v1/models"), timeout=(CONNECT_TIMEOUT, LIST_TIMEOUT))
        if response.status_code == 404:
            return [Model(server, server.label or "vLLM (legacy server)", "generate")]
        check_response(response, logging.DEBUG)  # Catalog logs it, once
        models = [
            Model(
                server,
                _checked_name(model["id"]),
                context_length=model.get("max_model_len"),
                is_vllm=model.get("owned_by") == "vllm",
            )
            for model in response.json()["data"]
        ]
        # vLLM's API server keeps listing models for some seconds after its engine has died.
        if any(model.is_vllm for model in models) and not _is_up(http, server, LIST_TIMEOUT):
            raise errors.unreachable(server.label)
        return models


def _checked_name(name: Any) -> str:
    """A model's name. Raises ModelError if it could not be shown on the page or in the log."""
    if isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME:
        return name
    log.error("a model server lists a model with the name %.200r", name)
    raise errors.malformed_response()


def check(server: Server, timeout: float) -> None:
    """Raise ModelError unless the server can answer requests now.

    Waits up to `timeout` seconds for each response; TimedOut if one does not come. The /health of
    vLLM does not wait for its tokenizer, a single thread that every request needs: tokenize a word.
    """
    with session(server) as http:
        try:
            if not _is_up(http, server, timeout):
                raise errors.unreachable(server.label)
            if model := _vllm_model(http, server, timeout):
                body = {"model": model, "prompt": "Hi"}
                # Even an error shows that it responds.
                http.post(server.endpoint("/tokenize"), json=body, timeout=timeout)
        except requests.exceptions.ReadTimeout:
            raise errors.not_answering(server.label) from None


def _vllm_model(http: requests.Session, server: Server, timeout: float) -> str | None:
    """The name of a model of the server, if it is vLLM."""
    response = http.get(server.endpoint("/v1/models"), timeout=timeout)
    if not response.ok:
        return None  # no list of models, or a router that has just lost a replica
    try:
        models = response.json()["data"]
        return next((model["id"] for model in models if model.get("owned_by") == "vllm"), None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _is_up(http: requests.Session, server: Server, timeout: float) -> bool:
    """Check /health; if that is 503, /readiness decides.

    The /health of vllm-router is 503 as long as any of its replicas is down. Servers other than
    vLLM may have neither endpoint and still answer requests.
    """

    def status(path: str) -> int:
        return http.get(server.endpoint(path), timeout=timeout).status_code

    health = status("/health")
    return status("/readiness") == 200 if health == 503 else health < 500
