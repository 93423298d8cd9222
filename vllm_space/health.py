"""/healthz: whether an engine can answer requests. Public, so it reveals only the reason."""

from __future__ import annotations

import asyncio
import time

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from vllm_space import client, errors, run_dir
from vllm_space.catalog import Catalog
from vllm_space.settings import Settings

MAX_AGE = 1.0  # seconds for which a check of the engines is cached


class Health:
    """ASGI app: 200 if an engine is up, otherwise 503 with the reason."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self._lock = asyncio.Lock()
        self._checked_at = -MAX_AGE
        self._up = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._response())(scope, receive, send)

    async def _response(self) -> JSONResponse:
        status = run_dir.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            return JSONResponse({"status": status.state, "reason": status.sentence}, 503)
        if await self._is_up():
            return JSONResponse({"status": "ok"})
        reason = errors.unreachable() if self.catalog.servers else errors.no_server()
        return JSONResponse({"status": "down", "reason": str(reason)}, 503)

    async def _is_up(self) -> bool:
        async with self._lock:  # concurrent requests share one check
            if time.monotonic() - self._checked_at >= MAX_AGE:
                checks = [
                    run_in_threadpool(client.is_up, server) for server in self.catalog.servers
                ]
                self._up = any(await asyncio.gather(*checks))
                self._checked_at = time.monotonic()
            return self._up
