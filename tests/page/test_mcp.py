"""The MCP tools over HTTP: what they answer, whose answers they count, and callers who leave."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests

from support.programs import wait_for
from support.scripted_engine import ScriptedEngine, chat_stream

JSON = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
PER_VISITOR = 4  # answers at the same time: see generation.py


@pytest.fixture(scope="module")
def running() -> list[str]:
    """The requests that the engine is answering."""
    return []


@pytest.fixture(scope="module")
def url(shared_page, running):
    lock = threading.Lock()

    def script(path, body):
        if "slow" not in str(body["messages"]):
            yield from chat_stream("Hello", " you")
            return
        with lock:
            running.append(path)
        try:
            for _ in range(300):
                time.sleep(0.1)
                yield b": still reading\n\n"
        finally:  # the connection was closed
            with lock:
                running.pop()

    with ScriptedEngine(script).running() as engine:
        yield shared_page(engine.url, FORWARDED_ALLOW_IPS="127.0.0.1", MAX_CONCURRENCY="8")


def call(url: str, message: str, visitor: str, timeout: float = 20, **arguments: object) -> str:
    """Call the tool `chat`: the response's text."""
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "chat", "arguments": {"message": message} | arguments},
    }
    headers = JSON | {"X-Forwarded-For": visitor}
    path = f"{url}/gradio_api/mcp/"
    return requests.post(path, json=body, headers=headers, timeout=timeout).text


def test_tool_answers_with_the_whole_text(url):
    answer = call(url, "Hi", "198.51.100.1")
    assert '"text":"Hello you"' in answer
    assert '"isError":false' in answer
    rejected = call(url, "Hi", "198.51.100.1", temperature=9)
    assert "temperature=9 is invalid. Use a number from 0 to 2." in rejected
    assert '"isError":true' in rejected


def test_callers_share_no_limit_and_can_leave(url, running):
    def call_and_leave(visitor: str) -> None:
        with suppress(requests.ReadTimeout):
            call(url, "slow", visitor, timeout=3)

    with ThreadPoolExecutor(10) as pool:
        for _ in range(5):
            pool.submit(call_and_leave, "198.51.100.1")
        wait_for(lambda: len(running) == PER_VISITOR, 10, "the calls to begin")
        assert f"You already have {PER_VISITOR} answers running" in call(url, "Hi", "198.51.100.1")
        assert "Hello you" in call(url, "Hi", "198.51.100.2")
        for _ in range(PER_VISITOR):
            pool.submit(call_and_leave, "198.51.100.3")
        wait_for(lambda: len(running) == 8, 10, "all slots to be used")
        assert "generating as many answers as it can" in call(url, "Hi", "198.51.100.2")
    wait_for(lambda: not running, 10, "the engine to be free")
    assert "Hello you" in call(url, "Hi", "198.51.100.1")
