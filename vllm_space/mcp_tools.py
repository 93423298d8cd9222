"""Runs /chat and /complete as MCP tools on behalf of the calling visitor.

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

from vllm_space import streaming

PROGRESS_EVERY = 5  # seconds; some clients give up on a call that reports nothing


def install() -> None:
    """Make Gradio's MCP server run its tools in this process, as the page runs its events."""

    class McpServer(gradio.mcp.GradioMCPServer):
        """Gradio's MCP server, which is also its own client."""

        def _get_or_create_client(self) -> Any:
            return self

        def submit(self, *arguments: Any, api_name: str, headers: object) -> Any:
            """The endpoint's async generator, which has not been started yet."""
            endpoint: Any = self.get_block_fn_from_endpoint_name(api_name)
            return endpoint.fn(gr.Request(self._request()), *arguments)

        async def _execute_tool_without_progress(self, job: Any) -> Any:
            return await self._execute_tool_with_progress(job, None)

        async def _execute_tool_with_progress(self, job: Any, progress_token: Any) -> Any:
            """Run a tool until it ends or its caller leaves; returns its last value."""
            streaming.unqueued.set(True)  # in this call's own task
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
