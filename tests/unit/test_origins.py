"""Requests that other web sites send through a visitor's browser."""

import pytest

from support import coroutines
from vllm_space.forwarded import trusted
from vllm_space.origins import OriginMiddleware

HOST = "chat.example.com"


def status(
    method: str = "POST",
    path: str = "/gradio_api/queue/join",
    *,
    scheme: str = "http",
    server: str = "192.0.2.1",
    own_hosts: tuple[str, ...] = (),
    proxies: tuple[str, ...] = (),
    checks_host: bool = True,
    **headers: str,
) -> int:
    """The status of a request; 200 if it is let through. `sec_fetch_site` is Sec-Fetch-Site."""
    statuses = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        statuses.append(message.get("status"))

    headers = {"host": HOST} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": scheme,
        "server": (server, 7860),
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ],
    }
    middleware = OriginMiddleware(app, own_hosts, checks_host, trusted(proxies, on_space=False))
    coroutines.run(middleware(scope, None, send))
    return statuses[0]


def test_programs_and_the_page_itself_go_on():
    assert status() == 200
    assert status(origin=f"http://{HOST}") == 200
    assert status(origin=f"https://{HOST}", sec_fetch_site="same-origin") == 200
    assert status(origin=f"https://{HOST}") == 200  # a proxy, which is not trusted, ended TLS
    assert status("GET", "/", sec_fetch_site="none") == 200
    assert status(origin=f"http://{HOST}:80") == 200
    assert status(host=f"{HOST}:7860", origin=f"http://{HOST}:7860") == 200
    # nginx passes on its own name as Host, unless told otherwise; the browser knows better.
    assert status(host="127.0.0.1", origin=f"https://{HOST}", sec_fetch_site="same-origin") == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        f"http://{HOST}:8080",
        f"http://{HOST}.evil.example",
        f"http://evil.example/{HOST}",
        f"http://{HOST}@evil.example",
        "http://[::1",
        "file://",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_foreign_origins_are_rejected(method, origin):
    assert status(method, origin=origin) == 403
    assert status(method, "/", origin=origin) == 403  # only a script sends it with GET


def test_plain_http_origin_is_foreign_to_https():
    assert status(scheme="https", origin=f"http://{HOST}") == 403
    assert status(scheme="https", origin=f"https://{HOST}") == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything new"])
def test_links_and_sign_in_go_on(site):
    link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate"}
    for path in ("/", "/login", "/login/huggingface", "/login/callback"):
        assert status("GET", path, **link) == 200
        assert status("GET", path, sec_fetch_site=site, sec_fetch_mode="no-cors") == 403
        assert status("POST", path, **link) == 403
    for path in ("/config", "/logout", "/gradio_api/queue/data", "/gradio_api/file=/x"):
        assert status("GET", path, **link) == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        ("0.0.0.0:7860", 200),
        ("space.localhost", 200),
        ("my-machine:7860", 200),
        ("rebound.example:7860", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_loopback_answers_to_local_names_only(host, expected):
    options = {"host": host, "own_hosts": ("my-machine",)}
    for server in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert status("GET", "/", server=server, **options) == expected
        # DNS rebinding: the browser takes both names for one origin
        same_origin = options | {"origin": f"http://{host}", "sec_fetch_site": "same-origin"}
        assert status(server=server, **same_origin) == expected
    assert status("GET", "/", **options) == 200  # from elsewhere, under whatever name


def test_trusted_proxy_may_pass_on_any_name():
    options = {"server": "127.0.0.1", "host": HOST}
    assert status("GET", "/", **options) == 421
    assert status("GET", "/", proxies=("127.0.0.1",), **options) == 200
    assert status("GET", "/", proxies=("127.0.0.0/8",), **options) == 200
    assert status("GET", "/", proxies=("10.0.0.1",), **options) == 421
    assert status("GET", "/", checks_host=False, **options) == 200  # a public gradio.live link


def test_custom_domains_are_own_hosts():
    own_hosts = ("me-space.hf.space", "chat.example.org")
    assert status(origin="https://chat.example.org", own_hosts=own_hosts) == 200
    assert status(origin="https://other.example.org", own_hosts=own_hosts) == 403
    assert status(origin="https://front.example", x_forwarded_host="front.example") == 200
