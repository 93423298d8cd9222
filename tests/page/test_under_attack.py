"""While one client attacks for 20 s with everything at once, another is still answered."""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import ScriptedEngine, chat_stream

pytestmark = pytest.mark.release

SECONDS = 20
ATTACKERS = 8  # connections
LONGEST_WAIT = 2  # seconds
JSON = {"Content-Type": "application/json"}
HELLO = ["Hi", [], "", "", 10, None, None, None, None]  # arguments of /chat
KEYS = {"API_KEYS": f"{API_KEY},other-key"}


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    def tokenize(body: dict) -> tuple[int, dict]:
        time.sleep(len(json.dumps(body)) / 1e6)  # about as long as vLLM needs
        return 200, {"count": 3}

    engine = ScriptedEngine(lambda path, body: chat_stream("Hello"), tokenize=tokenize)
    engine.context_length = 131_072
    with engine.running():
        yield engine


def attacks(url: str) -> list[Callable[[], object]]:
    """Requests of a visitor and of a key, each with one kind of excess."""
    host = ("127.0.0.1", urlsplit(url).port)

    def post(path: str, body: bytes, **headers: str) -> None:
        requests.post(url + path, data=body, headers=JSON | headers, timeout=60)

    def chat(*data: object) -> Callable[[], None]:
        body = json.dumps({"data": [*data, *HELLO[len(data) :]]}).encode()
        return lambda: post("/gradio_api/call/chat", body)

    def count(size: int) -> Callable[[], None]:
        body = json.dumps({"prompt": "x " * size}).encode()
        return lambda: post("/tokenize", body, **KEY)

    def raw(*parts: bytes) -> None:
        with socket.create_connection(host, timeout=60) as connection, suppress(OSError):
            for part in parts:
                connection.sendall(part)
            connection.recv(100)

    post_head = b"POST %b HTTP/1.1\r\nHost: localhost\r\n"
    chunked = post_head % b"/gradio_api/queue/join" + b"Transfer-Encoding: chunked\r\n\r\n"
    values = b'{"data":[' + b"{}," * 900_000 + b'0],"fn_index":1,"session_hash":"z"}'
    texts = b'{"data":[' + b'"abcdefghijklmno",' * 19_000 + b'0],"fn_index":1,"session_hash":"z"}'
    lists = [b'{"prompt":[' + b"{}," * count + b"0]}" for count in (5_000_000, 900_000)]
    spaces = b" " * 24 * 2**20
    # 1: too large for the engine or the event loop
    too_large = [
        chat("x " * 1_400_000),
        chat("x " * 500_000),
        chat("Hi", [{"role": "user", "content": "a"}] * 5_000),
        count(2_000_000),
        count(500_000),
        lambda: post("/gradio_api/queue/join", values),
        lambda: post("/gradio_api/queue/join", texts),
        lambda: post("/gradio_api/queue/join", spaces),
        lambda: post("/v1/completions", lists[0], **KEY),
        lambda: post("/v1/completions", lists[1], **KEY),
    ]
    # 4: downloads
    file = {"path": "http://files.example/a.png", "meta": {"_type": "gradio.FileData"}}
    downloads = [chat([file] * 1_000)]
    # 5: sign-in
    sign_in = [
        lambda: requests.post(f"{url}/login", files={"a": b"x" * 2**20}, timeout=60),
        lambda: requests.post(f"{url}/login", data={"username": "a", "password": "b"}, timeout=60),
        lambda: requests.get(url, cookies={"vllm_space_login": "YQ.b.c.d"}, timeout=60),
    ]
    # 7: what grows
    growing = [
        lambda: raw(b"GET / HTTP/1.1\r\nA: ", *[b"a" * 2**20] * 20),
        lambda: raw(chunked + b"1\r\nx\r\n0\r\n", *[b"a: b\r\n" * 100_000] * 20),
        lambda: raw(chunked, *[b"1\r\nx\r\n" * 100_000] * 10),
        lambda: raw(post_head % b"/login" + b"Content-Length: 9\r\n\r\na"),
        lambda: requests.post(
            f"{url}/gradio_api/upload",
            files=[("files", (f"{number}.txt", os.urandom(50_000))) for number in range(20)],
            timeout=60,
        ),
        chat("Hi"),  # nobody collects the answer
    ]
    return too_large + downloads + sign_in + growing


def ask(url: str) -> None:
    """What another visitor does: ask, and wait for the answer."""
    call = f"{url}/gradio_api/call/chat"
    event = requests.post(call, json={"data": HELLO}, timeout=60).json()["event_id"]
    assert "Hello" in requests.get(f"{call}/{event}", timeout=60).text


def test_others_are_answered_during_attacks(page, engine):
    url = page(engine.url, **KEYS)
    attacks_of = attacks(url)
    stopped = threading.Event()

    def attack(seed: int) -> None:
        chosen = random.Random(seed)
        while not stopped.is_set():
            with suppress(requests.RequestException, OSError):
                chosen.choice(attacks_of)()

    attackers = [threading.Thread(target=attack, args=[seed]) for seed in range(ATTACKERS)]
    waits: dict[str, list[float]] = {"/healthz": [], "/config": [], "chat": []}
    began = time.monotonic()
    for attacker in attackers:
        attacker.start()
    try:
        while time.monotonic() - began < SECONDS:
            for name, times in waits.items():
                started_at = time.monotonic()
                if name == "chat":
                    ask(url)
                else:
                    assert requests.get(url + name, timeout=60).ok
                times.append(time.monotonic() - started_at)
    finally:
        stopped.set()
        for attacker in attackers:
            attacker.join()
    longest = {name: round(max(times), 2) for name, times in waits.items()}
    print(longest, {name: len(times) for name, times in waits.items()})
    assert max(longest.values()) < LONGEST_WAIT, longest
