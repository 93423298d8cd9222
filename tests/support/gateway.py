"""Runs the API gateway without the page, in front of servers that are running."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import requests
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from support.programs import KEY, wait_for
from vllm_space import health
from vllm_space.catalog import Catalog
from vllm_space.gateway import Gateway
from vllm_space.ingress import Ingress
from vllm_space.settings import Settings

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
CHAT_PATH = "/v1/chat/completions"


@contextmanager
def serving(servers: str | dict[str, str], **variables: object) -> Iterator[str]:
    """Run the gateway without the page, in front of running servers; yields its URL."""
    source = {"models": servers} if isinstance(servers, dict) else {"model_url": servers}
    variables = {"api_keys": "phone:key-of-the-tests,other-key"} | variables
    config = Settings(_env_file=None, model_api_key="engine-key-marked", **source, **variables)
    catalog = Catalog.of(config)
    gateway = Gateway(config, catalog)
    ingress = Middleware(
        Ingress, health=health.Health(config, catalog), gateway=gateway, development=False
    )
    app = Starlette(lifespan=lambda _: gateway.lifespan(), middleware=[ingress])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started, 10, "the gateway")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def post(
    url: str, path: str = CHAT_PATH, body: object = CHAT, headers: dict | None = None, **options
) -> requests.Response:
    data = json.dumps(body) if isinstance(body, (dict, list)) else body
    headers = KEY | {"Content-Type": "application/json"} | (headers or {})
    return requests.post(url + path, data=data, headers=headers, timeout=20, **options)
