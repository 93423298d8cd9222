"""Runs vllm-router in front of several engines."""

from __future__ import annotations

import sys
from collections.abc import Callable

import requests

from support.programs import Program, free_port, wait_for


def start_router(program: Callable[..., Program], engine_urls: list[str], key: str = "") -> str:
    """Start the router; returns its URL once it is ready."""
    port = free_port()
    flags = f"""--host 127.0.0.1 --port {port} --prometheus-port {free_port()}
        --policy round_robin --worker-startup-check-interval 1
        --health-check-interval-secs 2 --health-check-timeout-secs 10"""
    command = [sys.executable, "-m", "vllm_router.launch_router", *flags.split()]
    if key:
        command += ["--api-key", key]
    program([*command, "--worker-urls", *engine_urls])
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{url}/readiness", timeout=5).ok, 60, "the router")
    return url
