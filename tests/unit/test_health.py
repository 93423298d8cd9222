"""health.py: /healthz is 200 only if a server can answer requests now."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from support.http_server import QuietHandler, serving
from support.programs import wait_for
from support.scripted_engine import ScriptedEngine
from vllm_space import health
from vllm_space.catalog import Catalog
from vllm_space.server import Server
from vllm_space.settings import Settings

DOWN = "http://127.0.0.1:9"


class Asked:
    """/healthz of a page with these servers."""

    def __init__(self, *urls: str):
        servers = [Server.from_url(url, label=f"label-{url}") for url in urls]
        self.app = health.Health(Settings(_env_file=None), Catalog(servers))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def close(self) -> None:
        """Stop the loop once its tasks have ended: the threads of others would never end."""

        async def others() -> None:
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

        asyncio.run_coroutine_threadsafe(others(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def get(self) -> httpx.Response:
        return self.get_many(1)[0]

    def get_many(self, count: int) -> list[httpx.Response]:
        async def get_all() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://space") as client:
                return await asyncio.gather(*(client.get("/healthz") for _ in range(count)))

        return asyncio.run_coroutine_threadsafe(get_all(), self.loop).result(30)

    def reason(self) -> str:
        response = self.get()
        assert response.status_code == 503
        assert "127.0.0.1" not in response.text  # the reason is public, the addresses are not
        return response.json()["reason"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(health, "TIMEOUT", 0.5)
    monkeypatch.setattr(health, "PATIENCE", 1.5)
    monkeypatch.setattr(health, "MAX_AGE", 0)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """While it is set, the tokenizer of `engine` does not respond."""
    event = threading.Event()
    yield event
    event.clear()


@pytest.fixture
def engine(stuck) -> Iterator[ScriptedEngine]:
    def tokenize(body: dict) -> tuple[int, dict]:
        while stuck.is_set():
            time.sleep(0.01)
        return 200, {"count": 1}

    with ScriptedEngine(tokenize=tokenize).running() as engine:
        yield engine


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_concurrent_requests_share_a_check(engine, monkeypatch):
    monkeypatch.setattr(health, "MAX_AGE", 60)
    with closing(Asked(engine.url)) as asked:
        assert {response.status_code for response in asked.get_many(50)} == {200}
        assert asked.get().json() == {"status": "ok"}
    assert engine.request_lines == ["GET /health", "GET /v1/models", "POST /tokenize"]


def test_unreachable_servers_are_down():
    with closing(Asked(DOWN, DOWN)) as asked:
        assert "cannot be reached" in asked.reason()


def test_dead_engine_is_down_immediately(engine):
    with closing(Asked(engine.url)) as asked:
        assert asked.get().status_code == 200
        engine.alive = False
        assert "cannot be reached" in asked.reason()


def test_silent_port_is_down(silent):
    with closing(Asked(DOWN, silent)) as asked:
        assert "may be slow, or waking up" in asked.reason()


def test_stuck_tokenizer_is_down_in_the_end(engine, stuck):
    with closing(Asked(engine.url)) as asked:
        assert asked.get().status_code == 200
        stuck.set()
        assert asked.get().status_code == 200  # busy so far
        wait_for(lambda: asked.get().status_code == 503, 10, "503")
        assert "accepts connections but does not answer" in asked.reason()
        stuck.clear()
        wait_for(lambda: asked.get().status_code == 200, 10, "200")


def test_slow_responses_are_not_an_outage():
    def tokenize(body: dict) -> tuple[int, dict]:
        time.sleep(2 * health.TIMEOUT)
        return 200, {"count": 1}

    with (
        ScriptedEngine(tokenize=tokenize).running() as engine,
        closing(Asked(engine.url)) as asked,
    ):
        wait_for(lambda: asked.get().status_code == 200, 10, "200")
        assert {asked.get().status_code for _ in range(6)} == {200}


def test_stuck_checks_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 10)
    lock = threading.Lock()
    overlaps = []

    def tokenize(body: dict) -> tuple[int, dict]:
        overlaps.append(not lock.acquire(blocking=False))
        time.sleep(4 * health.TIMEOUT)
        lock.release()
        return 200, {}

    with (
        ScriptedEngine(tokenize=tokenize).running() as engine,
        closing(Asked(engine.url)) as asked,
    ):
        assert {asked.get().status_code for _ in range(3)} == {503}
        wait_for(lambda: asked.get().status_code == 200, 10, "200")
    assert overlaps
    assert not any(overlaps)


def test_one_healthy_server_is_enough(engine, silent):
    with closing(Asked(DOWN, silent, engine.url)) as asked:
        assert asked.get().json() == {"status": "ok"}


@pytest.mark.parametrize("answer", [(400, {"error": "no"}), (404, {}), (500, "broken")])
def test_error_of_the_tokenizer_is_a_response(answer):
    with (
        ScriptedEngine(tokenize=lambda body: answer).running() as engine,
        closing(Asked(engine.url)) as asked,
    ):
        assert asked.get().status_code == 200


def test_other_servers_need_no_tokenizer(stuck):
    stuck.set()
    with (
        ScriptedEngine(models=None).running() as legacy,
        closing(Asked(legacy.url)) as asked,
    ):
        assert asked.get().status_code == 200
        assert "POST /tokenize" not in legacy.request_lines


def test_page_without_servers_says_so():
    with closing(Asked()) as asked:
        assert "No model is running" in asked.reason()


def test_router_may_fail_some_requests():
    """A router that has lost a replica fails some requests; /readiness says that others work."""
    working = threading.Event()
    working.set()

    class Router(QuietHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models" and not working.is_set():
                self.reply(500, "Request failed: error sending request")
            elif self.path == "/v1/models":
                self.reply(200, {"data": [{"id": "a", "object": "model"}]})
            else:
                self.reply(200, "")

    with serving(Router) as router, closing(Asked(router.url)) as asked:
        working.clear()
        assert "Request failed" in asked.reason()  # it has never worked
        working.set()
        assert asked.get().status_code == 200
        working.clear()
        assert asked.get().status_code == 200
