"""/healthz: whether an engine can answer requests. Public, so it reveals only the reason."""

from __future__ import annotations

import asyncio
import math
import time

import anyio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from vllm_space import discovery, errors, run_dir
from vllm_space.catalog import Catalog
from vllm_space.errors import ModelError
from vllm_space.server import Server
from vllm_space.settings import Settings

MAX_AGE = 1.0  # seconds for which a check of the servers is cached
# Seconds that a request waits for a check: at first, and at most if checks always take longer.
# Monitors often give up after 5.
TIMEOUT = 3.0
MAX_TIMEOUT = 4.5
# Seconds. A server that answered a check in the last PATIENCE seconds is taken as busy, not stuck.
PATIENCE = 10.0

_THREADS = anyio.CapacityLimiter(math.inf)  # there is at most one check of each server


class Health:
    """ASGI app: 200 if a server can answer requests, otherwise 503 with the reason."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self._lock = asyncio.Lock()
        self._checked_at = -math.inf
        self._problem: ModelError | None = None
        self._checks: dict[Server, asyncio.Task[ModelError | None]] = {}
        self._responded_at: dict[Server, float] = {}
        self._took: dict[Server, float] = {}  # seconds of the last check that succeeded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._response())(scope, receive, send)

    async def _response(self) -> JSONResponse:
        status = run_dir.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            return JSONResponse({"status": status.state, "reason": status.sentence}, 503)
        async with self._lock:  # concurrent requests share one check
            if time.monotonic() - self._checked_at >= MAX_AGE:
                self._problem = await self._check_all()
                self._checked_at = time.monotonic()
        if self._problem:
            reason = str(self._problem)
            for server in self.catalog.servers:  # their labels are for those who are signed in
                reason = reason.replace(f"server {server.label} ", "server ")
            return JSONResponse({"status": "down", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    async def _check_all(self) -> ModelError | None:
        """Why no server can answer requests; None if one can."""
        problems = await asyncio.gather(*map(self._check, self.catalog.servers))
        if not problems:
            return errors.no_server()
        if None in problems:
            return None
        return next(
            (error for error in problems if isinstance(error, errors.TimedOut)), problems[0]
        )

    async def _check(self, server: Server) -> ModelError | None:
        """Why a server cannot answer requests; None if it can."""
        check = self._checks.get(server)
        if check is None or check.done():
            check = self._checks[server] = asyncio.create_task(self._ask(server))
        silence = time.monotonic() - self._responded_at.get(server, -math.inf)
        usual = 1.5 * self._took.get(server, 0.0)
        await asyncio.wait([check], timeout=min(MAX_TIMEOUT, max(TIMEOUT, usual)))
        problem = check.result() if check.done() else self._silence(server)
        if isinstance(problem, errors.TimedOut) and silence < PATIENCE:
            return None
        return problem

    def _silence(self, server: Server) -> ModelError:
        """What the silence of a server means: it is stuck, or has not woken up yet."""
        if server in self._responded_at:
            return errors.not_answering()
        return errors.waking_up("", TIMEOUT)

    async def _ask(self, server: Server) -> ModelError | None:
        """Check a server in a thread, which a request does not wait for to the end."""
        started_at = time.monotonic()
        try:
            await anyio.to_thread.run_sync(
                discovery.check, server, PATIENCE, self.catalog.only_name, limiter=_THREADS
            )
        except ModelError as error:
            return error
        self._responded_at[server] = time.monotonic()
        self._took[server] = self._responded_at[server] - started_at
        return None
