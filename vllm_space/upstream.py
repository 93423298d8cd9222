"""The API gateway's connections to the engines."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from vllm_space import connection, errors, network
from vllm_space.connection import CONNECT_TIMEOUT
from vllm_space.network import Proxy
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
    """Sends requests to engines, each over its own pool. `lifespan` has to be entered first."""

    def __init__(self) -> None:
        self.sessions: dict[tuple[Server, Proxy | None], aiohttp.ClientSession] = {}
        # Each lock is held while the server's tokenizer works.
        self.counting: dict[Server, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[aiohttp.ClientResponse]] = set()

    @asynccontextmanager
    async def lifespan(self, servers: list[Server]) -> AsyncIterator[None]:
        """Accept requests to these servers, and close the connections at the end."""
        self.counting = {server: asyncio.Lock() for server in servers}
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for session in self.sessions.values():
                await session.close()
            self.sessions.clear()

    async def request(self, call: Call) -> aiohttp.ClientResponse:
        """Send a request and return once the headers are in; redirects are not followed.

        Raises aiohttp.ClientError or asyncio.TimeoutError: see `explain`. Each server gets one call
        of its TOKENIZER_PATHS at a time; raises Busy after COUNT_WAIT.
        """
        if call.target.partition("?")[0] in TOKENIZER_PATHS:
            return await self._in_turn(call)
        return await self._send(call)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        try:
            return await self._try(call)
        except aiohttp.ClientError as error:
            problem = await asyncio.to_thread(connection.tls_expected, error, call.server)
            if problem:
                raise aiohttp.ClientConnectionError from problem
            raise

    async def _try(self, call: Call) -> aiohttp.ClientResponse:
        url = URL(call.server.endpoint(call.target), encoded=True)
        headers = {**call.headers, **call.server.headers}
        try:
            proxy = network.proxy_for(str(url))
            session = self._session(call.server, proxy)
        except errors.ModelError as error:
            raise aiohttp.ClientConnectionError from error
        options: dict[str, Any] = {"allow_redirects": False}
        if url.scheme == "https":
            options["ssl"] = network.ssl_context()
        if proxy and not proxy.is_socks:
            options["proxy"] = proxy.url
        tries = 0
        while True:
            tries += 1
            started_at = time.monotonic()
            try:
                return await session.request(
                    call.method, url, data=call.body or None, headers=headers, **options
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Retry if the engine was closing a reused connection, as it does after an error.
                if tries == MAX_TRIES or time.monotonic() - started_at > STALE_WITHIN:
                    raise
            except (aiohttp.ClientError, asyncio.TimeoutError):
                raise
            except Exception as error:
                # aiohttp does not wrap those of a SOCKS proxy, nor that of a name such as a..b
                if isinstance(error, ValueError) or (proxy and proxy.is_socks):
                    raise aiohttp.ClientConnectionError from error
                raise

    def _session(self, server: Server, proxy: Proxy | None) -> aiohttp.ClientSession:
        if (server, proxy) not in self.sessions:
            self.sessions[server, proxy] = _session(server, proxy)
        return self.sessions[server, proxy]

    async def _in_turn(self, call: Call) -> aiohttp.ClientResponse:
        """Send the request when the server has answered those before it.

        vLLM counts in a single thread that every request needs, and cannot be interrupted: if this
        call is cancelled, the lock is held until the engine has answered. The page counts one at a
        time as well (tokenizer.py), so that at most two counts per server keep others waiting.
        """
        lock = self.counting[call.server]
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


def _session(server: Server, proxy: Proxy | None) -> aiohttp.ClientSession:
    options: dict[str, Any] = {"limit": 0, "keepalive_timeout": KEEP_ALIVE}
    if proxy and proxy.is_socks:
        from aiohttp_socks import ProxyConnector  # type: ignore[import-not-found]

        # Its socks5 is everyone else's socks5h, and its socks4 is socks4a.
        url = re.sub(r"(?<=^socks\d)[ah]", "", proxy.url)
        connector = ProxyConnector.from_url(url, **options)
    else:
        connector = aiohttp.TCPConnector(**options)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=server.timeout
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
    )


def explain(error: BaseException, server: Server) -> errors.ModelError:
    """Why a request failed, from an exception of `Upstream.request` or of reading its response."""
    if isinstance(error, asyncio.TimeoutError) and not isinstance(
        error, aiohttp.ConnectionTimeoutError
    ):
        return errors.timed_out(server.timeout)
    return connection.problem(error, server)
