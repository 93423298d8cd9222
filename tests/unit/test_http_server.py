"""http_server.py: limits for headers and slow clients, with both of uvicorn's parsers."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import gradio.http_server
import pytest
import requests
import uvicorn

from vllm_space import http_server

HEAD = b"GET / HTTP/1.1\r\nHost: space\r\n"


async def app(scope, receive, send):
    """Answers with the size of the body; /stream sends a line every 0.1 s until the client left."""
    if scope["type"] == "websocket":
        await receive()
        return await send({"type": "websocket.close"})
    if scope["type"] != "http":
        return None
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            app.left.set()
            break
        size += len(message["body"])
        if not message["more_body"]:
            break
    length = [(b"content-length", str(len(str(size))).encode())]
    is_stream = scope["path"] == "/stream"
    headers = [] if is_stream else length
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if is_stream:
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"line\n", "more_body": True})
            await asyncio.sleep(0.1)
        app.left.set()
    await send({"type": "http.response.body", "body": str(size).encode()})
    return None


app.left = threading.Event()


@contextmanager
def serving(protocol: type) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = http_server.Server(config)
    config.http = protocol
    server.run_in_thread()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture(params=[http_server.LimitedH11, http_server.LimitedHttpTools])
def port(request, monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT", 0.6)
    app.left.clear()
    with serving(request.param) as port:
        yield port


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        yield client


def received_until(client: socket.socket, end: bytes) -> bytes:
    """Everything up to `end`."""
    data = b""
    while not data.endswith(end):
        chunk = client.recv(65536)
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


def received(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    data = b""
    with suppress(ConnectionError):
        while chunk := client.recv(65536):
            data += chunk
    return data


def status(response: bytes) -> int:
    return int(response.split()[1])


def seconds_open(client: socket.socket) -> float:
    began = time.monotonic()
    received(client)
    return time.monotonic() - began


# -- headers -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2000])
def test_large_headers_are_rejected(port, count):
    with connection(port) as client:
        field = b"x" * (http_server.HEAD_LIMIT // count)
        client.sendall(HEAD + b"".join(b"a: %b\r\n" % field for _ in range(count)) + b"\r\n")
        response = received(client)
    assert status(response) == 431
    assert b"connection: close" in response


def test_headers_below_the_limit_pass(port):
    with connection(port) as client:
        padding = http_server.HEAD_LIMIT - len(HEAD) - len(b"a: \r\nConnection: close\r\n\r\n")
        client.sendall(HEAD + b"a: %b\r\nConnection: close\r\n\r\n" % (b"x" * padding))
        assert status(received(client)) == 200


def test_large_request_line_is_rejected(port):
    with connection(port) as client:
        client.sendall(b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * http_server.HEAD_LIMIT))
        assert status(received(client)) == 431


def test_endless_header_costs_nothing(port):
    sent = 0
    began, cpu = time.monotonic(), time.process_time()
    with connection(port) as client, suppress(ConnectionError):
        client.sendall(HEAD + b"a: ")
        while sent < 100 * 2**20:
            client.sendall(b"x" * 2**20)
            sent += 2**20
    assert sent < 20 * 2**20  # what the kernel buffers
    assert time.process_time() - cpu < 2  # it was 80 s
    assert requests.get(f"http://127.0.0.1:{port}/", timeout=5).text == "0"
    assert time.monotonic() - began < 10


# -- clients that wait ---------------------------------------------------------------------


def test_silent_connections_are_closed(port):
    """A request is answered meanwhile."""
    count = 1500
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2 * count + 500:
        pytest.skip("too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with ExitStack() as stack:
            clients = [stack.enter_context(connection(port)) for _ in range(count)]
            assert requests.get(f"http://127.0.0.1:{port}/", timeout=5).text == "0"
            assert [received(client) for client in clients] == [b""] * count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_slow_headers_end_the_connection(port):
    with connection(port) as client:
        client.sendall(HEAD)
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.sendall(b"a: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_slow_second_request_ends_too(port):
    with connection(port) as client:
        client.sendall(HEAD + b"\r\n")
        assert status(client.recv(65536)) == 200
        time.sleep(1)  # longer than HEAD_TIMEOUT: uvicorn's limit for this is 5 s
        client.sendall(HEAD)
        assert 0.3 < seconds_open(client) < 4


def test_stream_lasts_longer_than_the_timeouts(port):
    body = b"POST /stream HTTP/1.1\r\nHost: space\r\nContent-Length: 3\r\n\r\nabc"
    with connection(port) as client:
        client.sendall(body)
        began = time.monotonic()
        while time.monotonic() - began < 2:
            assert client.recv(65536)
            with suppress(BlockingIOError):
                client.send(b"\r\n", socket.MSG_DONTWAIT)  # some clients end a body with this
    assert app.left.wait(5)


# -- what goes on working ------------------------------------------------------------------


def test_pipelined_requests_are_answered(port):
    post = b"POST / HTTP/1.1\r\nHost: space\r\nContent-Length: 3\r\n\r\nabc"
    last = HEAD + b"Connection: close\r\n\r\n"
    with connection(port) as client:
        client.sendall((HEAD + b"\r\n" + post) * 20 + last)
        assert received(client).count(b"HTTP/1.1 200 OK") == 41


def test_large_bodies_pass(port):
    body = b"x" * 5_000_000
    with requests.Session() as session:
        for _ in range(3):
            url = f"http://127.0.0.1:{port}/"
            assert session.post(url, data=body, timeout=10).text == "5000000"
            chunked = session.post(url, data=iter([b"y" * 70_000] * 3), timeout=10)
            assert chunked.text == "210000"


def test_body_is_sent_after_100_continue(port):
    with connection(port) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: space\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert status(client.recv(65536)) == 100
        client.sendall(b"abc")
        assert received_until(client, b"\r\n\r\n3")


def test_upgrade_is_ignored(port):
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\n"
    for body in (b"Content-Length: 3\r\n\r\nabc", b"\r\n"):
        with connection(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: space\r\n" + upgrade + body)
            assert status(client.recv(65536)) == 200


# -- chunked bodies ------------------------------------------------------------------------


CHUNKED = b"POST / HTTP/1.1\r\nHost: space\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "waste",
    [
        b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 50_000,  # trailers
        b"1\r\nx\r\n0\r\na: " + b"b" * 300_000,
        b"1;" + b"a" * 300_000,  # an extension
        b"1\r\nx\r\n" * 50_000,
        (b"%x\r\n%b\r\n" % (9000, b"x" * 9000)) * 3 + b"1\r\nx\r\n" * 50_000,
    ],
    ids=["trailers", "trailer", "extension", "tiny chunks", "tiny chunks later"],
)
def test_wasteful_chunks_end_the_connection(waste):
    server = serving(http_server.LimitedHttpTools)
    with server as port, connection(port) as client, suppress(ConnectionError):
        client.sendall(CHUNKED + waste)
        assert received(client) == b""


def test_ordinary_chunks_pass(port):
    chunks = (b"%x\r\n%b\r\n" % (100, b"x" * 100)) * 20_000
    with connection(port) as client:
        client.sendall(CHUNKED + chunks + b"0\r\n\r\n")
        assert received_until(client, b"2000000")


def test_gradio_uses_this_server(monkeypatch):
    monkeypatch.setattr(gradio.http_server, "Server", gradio.http_server.Server)
    http_server.install()
    _, port, _, server = gradio.http_server.start_server(app, "127.0.0.1")
    try:
        assert server.config.proxy_headers is False
        with connection(port) as client:
            client.sendall(b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * http_server.HEAD_LIMIT))
            assert status(received(client)) == 431
    finally:
        server.close()
