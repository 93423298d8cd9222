"""The address that the page listens on: `--host`, or GRADIO_SERVER_NAME."""

from __future__ import annotations

import errno
import socket
from typing import Any

from vllm_space import errors

NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)  # by bind(2) and ipv6(7)


def bare(host: str) -> str:
    """A host without the brackets that an IPv6 address has in a URL."""
    return host.removeprefix("[").removesuffix("]")


def url(host: str, port: int) -> str:
    """Where a program on this machine finds the page."""
    host = {"0.0.0.0": "localhost", "::": "::1"}.get(bare(host), bare(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to all addresses of a host; `::` includes IPv4. Raises OSError.

    A host name may have addresses that this machine does not use, as long as it has another one.
    """
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    found = socket.getaddrinfo(bare(host), port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(socket.socket(family, kind, protocol), address))
        except OSError as error:
            problem = error
            if error.errno not in NOT_OURS:
                break
    if problem and (not sockets or problem.errno not in NOT_OURS):
        for bound in sockets:
            bound.close()
        raise problem
    return sockets


def _bound(unbound: socket.socket, address: Any) -> socket.socket:
    # As servers do: a port in TIME_WAIT can be used.
    unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if unbound.family == socket.AF_INET6:
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, False)
    try:
        unbound.bind(address)
    except OSError:
        unbound.close()
        raise
    return unbound


def require_free_port(host: str, port: int, name: str) -> None:
    """Raise SpaceError if the port cannot be used; `name` is the setting that changes it."""
    try:
        for bound in bind(host, port):
            bound.close()
    except (socket.gaierror, UnicodeError):
        raise errors.no_such_address(host) from None
    except OSError as error:
        if error.errno in NOT_OURS:
            raise errors.no_such_address(host) from None
        if error.errno == errno.EACCES:
            raise errors.privileged_port(port, name) from None
        raise errors.unusable_port(port, host, name, str(error.strerror)) from None
