"""The API gateway's connections to the engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from vllm_space.connection import CONNECT_TIMEOUT
from vllm_space.server import Server

# An engine works on these in a single thread and to the end, even if the client has left.
TOKENIZER_PATHS = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
COUNT_WAIT = 10  # seconds to wait for the gateway's other calls of these; not for the page's
# Seconds to keep an idle connection to an engine. vLLM itself closes it after 5.
KEEP_ALIVE = 4
MAX_TRIES = 3
# Seconds within which a request on a dead connection fails. Later, it is the engine that failed.
STALE_WITHIN = 1.0


class Busy(Exception):
    """An engine is still counting tokens for others."""


@dataclass(frozen=True)
class Call:
    """A request to an engine. `target` is its path and query."""

    server: Server
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Upstream:
    """Sends requests to engines. `lifespan` has to be entered first."""

    def __init__(self) -> None:
        # By the URL of the server. A lock is held while the server's tokenizer works.
        self.sessions: dict[str, aiohttp.ClientSession] = {}
        self.counting: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[aiohttp.ClientResponse]] = set()

    @asynccontextmanager
    async def lifespan(self, servers: list[Server]) -> AsyncIterator[None]:
        """Keep a connection pool for each of these servers."""
        for server in servers:
            self.sessions[server.url] = _session(server)
            self.counting[server.url] = asyncio.Lock()
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for session in self.sessions.values():
                await session.close()

    async def request(self, call: Call) -> aiohttp.ClientResponse:
        """Send a request and return once the headers are in. Raises aiohttp.ClientError.

        Each server gets one call of its TOKENIZER_PATHS at a time; raises Busy after COUNT_WAIT.
        """
        if call.target.partition("?")[0] in TOKENIZER_PATHS:
            return await self._in_turn(call)
        return await self._send(call)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        url = URL(call.server.endpoint(call.target), encoded=True)
        headers = {**call.headers, **call.server.headers}
        tries = 0
        while True:
            tries += 1
            started_at = time.monotonic()
            try:
                return await self.sessions[call.server.url].request(
                    call.method, url, data=call.body or None, headers=headers, allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Retry if the engine was closing a reused connection, as it does after an error.
                if tries == MAX_TRIES or time.monotonic() - started_at > STALE_WITHIN:
                    raise

    async def _in_turn(self, call: Call) -> aiohttp.ClientResponse:
        """Send the request when the server has answered those before it.

        vLLM counts in a single thread that every request needs, and cannot be interrupted: if this
        call is cancelled, the lock is held until the engine has answered. The page counts one at a
        time as well (client.py), so that at most two counts per server keep others waiting.
        """
        lock = self.counting[call.server.url]
        try:
            await asyncio.wait_for(lock.acquire(), COUNT_WAIT)
        except asyncio.TimeoutError:
            raise Busy from None
        task = asyncio.ensure_future(self._send(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
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
