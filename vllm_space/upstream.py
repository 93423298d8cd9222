"""The API gateway's connections to the engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from vllm_space.client import CONNECT_TIMEOUT, Server

COUNT_WAIT = 10  # seconds to wait for the token counts of others
# Seconds to keep an idle connection to an engine. vLLM itself closes it after 5.
KEEP_ALIVE = 4
MAX_TRIES = 3
# Seconds within which a request on a dead connection fails. Later, it is the engine that failed.
STALE_WITHIN = 1.0


class Busy(Exception):
    """An engine is still counting tokens for others."""


class Upstream:
    """Sends requests to engines. `running` has to be entered first."""

    def __init__(self) -> None:
        # By the URL of the server. A lock is held while the server counts tokens.
        self.sessions: dict[str, aiohttp.ClientSession] = {}
        self.counting: dict[str, asyncio.Lock] = {}
        self.counts: set[asyncio.Task[aiohttp.ClientResponse]] = set()

    @asynccontextmanager
    async def running(self, servers: list[Server]) -> AsyncIterator[None]:
        """Keep a connection pool for each of these servers."""
        for server in servers:
            self.sessions[server.url] = _session(server)
            self.counting[server.url] = asyncio.Lock()
        try:
            yield
        finally:
            for task in self.counts:
                task.cancel()
            await asyncio.gather(*self.counts, return_exceptions=True)
            for session in self.sessions.values():
                await session.close()

    async def request(
        self, server: Server, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """Send a request and return once the headers are in. Raises aiohttp.ClientError."""
        url = URL(server.url + target, encoded=True)
        headers = {**headers, **server.headers}
        tries = 0
        while True:
            tries += 1
            started_at = time.monotonic()
            try:
                return await self.sessions[server.url].request(
                    method, url, data=body or None, headers=headers, allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Retry if the engine was closing a reused connection, as it does after an error.
                if tries == MAX_TRIES or time.monotonic() - started_at > STALE_WITHIN:
                    raise

    async def count(
        self, server: Server, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """Like `request`, to count tokens: each server does this for one request at a time.

        vLLM does it in a single thread, which every request needs, and to the end. If this is
        cancelled, the next count therefore still waits for the engine. Raises Busy after
        COUNT_WAIT.
        """
        lock = self.counting[server.url]
        try:
            await asyncio.wait_for(lock.acquire(), COUNT_WAIT)
        except asyncio.TimeoutError:
            raise Busy from None
        task = asyncio.ensure_future(self.request(server, method, target, headers, body))
        self.counts.add(task)
        task.add_done_callback(self.counts.discard)
        task.add_done_callback(lambda _: lock.release())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close)
            raise


def _close(task: asyncio.Task[aiohttp.ClientResponse]) -> None:
    if not task.cancelled() and not task.exception():
        task.result().close()


def _session(server: Server) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=server.timeout
        ),
        # A local engine must not be reached through a proxy, nor with credentials from .netrc.
        trust_env=not server.is_local,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
    )
