"""/healthz: does an engine answer? Open to everyone, and tells no more than that."""

from __future__ import annotations

import asyncio
import time

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from vllm_space import client, errors, run_dir
from vllm_space.catalog import Catalog
from vllm_space.settings import Settings

FRESH = 1.0  # seconds for which the engines are not asked again


class Health:
    """ASGI: 200 when an engine answers, 503 with the reason when none does."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self._lock = asyncio.Lock()
        self._asked = -FRESH
        self._up = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self.answer())(scope, receive, send)

    async def answer(self) -> JSONResponse:
        status = run_dir.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            return JSONResponse({"status": status.state, "reason": status.sentence}, 503)
        if await self._engine_answers():
            return JSONResponse({"status": "ok"})
        reason = errors.unreachable() if self.catalog.servers else errors.no_server()
        return JSONResponse({"status": "down", "reason": str(reason)}, 503)

    async def _engine_answers(self) -> bool:
        async with self._lock:  # however many poll, one asks
            if time.monotonic() - self._asked >= FRESH:
                servers = self.catalog.servers
                self._up = any(
                    await asyncio.gather(
                        *(run_in_threadpool(client.is_up, each) for each in servers)
                    )
                )
                self._asked = time.monotonic()
            return self._up
