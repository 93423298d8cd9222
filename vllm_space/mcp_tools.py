"""Runs the endpoints /chat and /complete as MCP tools, in the name of the visitor who calls them.

gradio 6.31: its MCP server calls a tool through an HTTP request to itself. That request comes from
this machine, so all visitors would share one limit, and it goes on after the caller has left.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gradio as gr
import gradio.mcp
from starlette.requests import Request

from vllm_space import errors
from vllm_space.streaming import Streams

PROGRESS_EVERY = 5  # seconds; some clients give up on a call that reports nothing


def install(streams: Streams, max_concurrency: int) -> None:
    """Make Gradio's MCP server run its tools in this process, among the other `streams`."""

    class McpServer(gradio.mcp.GradioMCPServer):
        """Gradio's MCP server, and in place of its HTTP client, itself."""

        def _get_or_create_client(self) -> Any:
            return self

        def submit(self, *arguments: Any, api_name: str, headers: object) -> Any:
            """The endpoint's async generator, which has not been started yet."""
            if streams.active >= max_concurrency:
                raise errors.busy()
            endpoint: Any = self.get_block_fn_from_endpoint_name(api_name)
            return endpoint.fn(gr.Request(self._request()), *arguments)

        async def _execute_tool_without_progress(self, job: Any) -> Any:
            return await self._execute_tool_with_progress(job, None)

        async def _execute_tool_with_progress(self, job: Any, progress_token: Any) -> Any:
            """Run a tool until it ends or its caller leaves; returns its last value."""
            context = self.mcp_server.request_context
            value, reported_at, steps = "", time.monotonic(), 0
            async with contextlib.aclosing(job):
                async for value in job:  # noqa: B007  the last one is returned
                    if await self._request().is_disconnected():
                        break
                    if progress_token is None or time.monotonic() < reported_at + PROGRESS_EVERY:
                        continue
                    reported_at, steps = time.monotonic(), steps + 1
                    await context.session.send_progress_notification(
                        progress_token, steps, related_request_id=str(context.request_id)
                    )
            return [value]

        def _request(self) -> Request:
            request: Request | None = self.mcp_server.request_context.request
            if request is None:
                raise RuntimeError("a tool call without an HTTP request")
            return request

    gradio.mcp.GradioMCPServer = McpServer  # type: ignore[misc]
