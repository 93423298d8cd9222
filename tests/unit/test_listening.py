"""The addresses that the page can listen on."""

from __future__ import annotations

import socket

import pytest

from vllm_space import errors, listening

PORT_SETTING = "--port (or GRADIO_SERVER_PORT)"


def reached(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "reachable", "unreachable"),
    [
        ("127.0.0.1", ["127.0.0.1"], ["::1", "127.0.0.2"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], ["::1"]),
        ("::1", ["::1"], ["127.0.0.1"]),
        ("[::1]", ["::1"], ["127.0.0.1"]),
        ("::", ["::1", "127.0.0.1"], []),
        ("[::]", ["::1", "127.0.0.1"], []),
        ("::ffff:127.0.0.1", ["127.0.0.1"], ["::1"]),
        ("localhost", ["localhost"], ["127.0.0.2"]),
        (socket.gethostname(), [socket.gethostname()], []),
    ],
)
def test_hosts_listen_where_they_say(host, reachable, unreachable):
    sockets = listening.bind(host, 0)
    port = sockets[0].getsockname()[1]
    try:
        for listener in sockets:
            listener.listen()
        assert [address for address in reachable if not reached(address, port)] == []
        assert [address for address in unreachable if reached(address, port)] == []
    finally:
        for listener in sockets:
            listener.close()


@pytest.mark.parametrize(
    "host", ["192.0.2.77", "2001:db8::9", "fe80::1", "nosuch.invalid", "a..b", "http://0.0.0.0"]
)
def test_address_of_another_machine_is_named(host):
    with pytest.raises(errors.SettingsError, match="not an address of this machine") as caught:
        listening.require_free_port(host, 7860, PORT_SETTING)
    assert host in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::"])
def test_port_in_use_is_told_apart(host):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(errors.EngineError, match=f"Port {port} on {host} cannot be used"):
            listening.require_free_port(host, port, PORT_SETTING)


def test_privileged_port_asks_for_another(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listening, "bind", refuse)
    with pytest.raises(errors.EngineError, match=r"Port 80 needs root privileges: set --port"):
        listening.require_free_port("127.0.0.1", 80, PORT_SETTING)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8720"),
        ("0.0.0.0", "http://localhost:8720"),
        ("::", "http://[::1]:8720"),
        ("[::]", "http://[::1]:8720"),
        ("::1", "http://[::1]:8720"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:8720"),
        ("gpu-box", "http://gpu-box:8720"),
    ],
)
def test_url_is_one_that_can_be_opened(host, url):
    assert listening.url(host, 8720) == url
