"""Why a model server cannot be reached: the page and the gateway find the same reasons."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import coroutines
from support.certificates import Authority
from support.http_server import QuietHandler, Server, serving
from vllm_space import connection, errors, network, server, upstream

CHAT = "/v1/chat/completions"
NAME = "api.example.com"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch) -> Iterator[None]:
    for scheme in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(scheme, raising=False)
        monkeypatch.delenv(scheme.upper(), raising=False)
    for name in network.CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    network._proxies.cache_clear()
    network.ssl_context.cache_clear()


class Answers(QuietHandler):
    """Answers each request with what it was: its target and Authorization headers."""

    def do_GET(self) -> None:
        names = ("Authorization", "Proxy-Authorization")
        self.reply(200, [self.path, *(self.headers.get(name) for name in names)])

    do_POST = do_GET


@contextmanager
def serving_tls(context: ssl.SSLContext) -> Iterator[Server]:
    with serving(Answers, tls=context) as running:
        yield running


def page(url: str, **options: str) -> object:
    """What the page gets from a server."""
    target = server.Server.from_url(url, **options)
    with connection.session(target) as http:
        response = http.post(target.endpoint(CHAT), timeout=5)
        connection.check_response(response)
        return response.json()


def gateway(url: str, **options: str) -> object:
    """What the gateway gets from a server."""
    target = server.Server.from_url(url, **options)

    async def ask() -> object:
        sender = upstream.Upstream()
        async with sender.lifespan([target]):
            try:
                call = upstream.Call(target, "POST", CHAT, {}, b"{}")
                response = await sender.request(call)
            except Exception as error:
                raise upstream.explain(error, target) from None
            return await response.json()

    return coroutines.run(ask())


both = pytest.mark.parametrize("ask", [page, gateway])


# -- TLS -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_each_variable_serves_page_and_gateway(monkeypatch, tmp_path, ask, variable):
    company = Authority(tmp_path)
    with serving_tls(company.context()) as running:
        url = f"https://127.0.0.1:{running.server_port}"
        with pytest.raises(errors.Unreachable, match=r"is not trusted.*SSL_CERT_FILE"):
            ask(url)
        monkeypatch.setenv(variable, str(company.file))
        forget()
        assert ask(url)[0] == CHAT


@both
@pytest.mark.parametrize(
    ("address", "days", "words"),
    [("127.0.0.9", 2, "issued for another name"), ("127.0.0.1", -1, "is not valid now.*expired")],
)
def test_reason_against_a_certificate(monkeypatch, tmp_path, ask, address, days, words):
    company = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(company.file))
    forget()
    with serving_tls(company.context(address, days)) as running:
        url = f"https://127.0.0.1:{running.server_port}"
        with pytest.raises(errors.Unreachable, match=f"certificate of {url} .*{words}"):
            ask(url)


@both
def test_plain_http_behind_https_is_named(ask):
    with serving(Answers) as running:
        port = running.server_port
        words = f"does not speak TLS.* Set MODEL_URL to http://127.0.0.1:{port}"
        with pytest.raises(errors.Unreachable, match=words):
            ask(f"https://127.0.0.1:{port}")


@both
def test_tls_behind_http_is_named(tmp_path, ask):
    with serving_tls(Authority(tmp_path).context()) as running:
        port = running.server_port
        with pytest.raises(errors.Unreachable, match=f"Set MODEL_URL to https://127.0.0.1:{port}"):
            ask(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "text",
    [
        "<center>The plain HTTP request was sent to HTTPS port</center>",
        "Client sent an HTTP request to an HTTPS server.\n",
    ],
)
def test_tls_named_by_its_own_words(text):
    class Proxy(QuietHandler):
        def do_POST(self) -> None:
            self.reply(400, text, "text/html")

    with serving(Proxy) as running, pytest.raises(errors.Unreachable, match="speaks TLS"):
        page(running.url)


# -- names, ports and proxies --------------------------------------------------------------------


@both
@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", f"{'a' * 70}.example"])
def test_name_that_cannot_be_resolved(ask, host):
    with pytest.raises(errors.Unreachable, match=f"The name {host} cannot be resolved"):
        ask(f"http://{host}:8000/v1")


@both
def test_refused_connection_is_unreachable(ask):
    with pytest.raises(errors.Unreachable, match="may be down or still starting"):
        ask("http://127.0.0.1:9")


@both
def test_server_that_hangs_up_is_unreachable(ask):
    class HangsUp(QuietHandler):
        def do_POST(self) -> None:
            self.close_connection = True

    with serving(HangsUp) as running, pytest.raises(errors.Unreachable, match="may be down"):
        ask(running.url)


@both
def test_proxy_passes_requests_to_remote_servers(monkeypatch, ask):
    with serving(Answers) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.server_port}")
        forget()
        network.prepare()
        target, key, login = ask(f"http://{NAME}:8000/v1", api_key="the-key")
        assert (target, key) == (f"http://{NAME}:8000{CHAT}", "Bearer the-key")
        assert login == "Basic bWU6cEBzcw=="
        monkeypatch.setenv("no_proxy", f"other.example, {NAME}")
        forget()
        with pytest.raises(errors.Unreachable, match="cannot be resolved"):
            ask(f"http://{NAME}:8000/v1")


@both
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_is_down_is_named(monkeypatch, ask, scheme):
    for url in ("http://me:marked@127.0.0.1:9", "http://nosuch.invalid:9"):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", url)
        forget()
        words = f"The proxy in {scheme.upper()}_PROXY does not .* add {NAME} to NO_PROXY"
        with pytest.raises(errors.Unreachable, match=words) as caught:
            ask(f"{scheme}://{NAME}/v1")
        assert "marked" not in str(caught.value)


@both
def test_proxy_that_needs_a_login(monkeypatch, ask):
    class Proxy(QuietHandler):
        def do_CONNECT(self) -> None:
            self.reply(407, "")

    with serving(Proxy) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.server_port}")
        forget()
        with pytest.raises(errors.Unreachable, match="proxy in HTTPS_PROXY requires a valid user"):
            ask(f"https://{NAME}/v1")


@both
def test_socks_proxy_concerns_remote_servers(monkeypatch, ask):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    forget()
    network.prepare()
    with serving(Answers) as running:
        assert ask(running.url)[0] == CHAT
    with pytest.raises(errors.Unreachable, match=r"ALL_PROXY is a SOCKS proxy.*pip install"):
        ask(f"https://{NAME}/v1")


@both
def test_netrc_does_not_replace_the_key(monkeypatch, tmp_path: Path, ask):
    (tmp_path / ".netrc").write_text(f"machine {NAME} login me password netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(Answers) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        forget()
        assert ask(f"http://{NAME}/v1", api_key="the-key")[1] == "Bearer the-key"
        assert ask(f"http://{NAME}/v1")[1] is None


# -- redirects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(status):
    class Moved(QuietHandler):
        def do_POST(self) -> None:
            self.reply(status, "", Location=f"https://me:marked@new.example{self.path}?key=marked")

    with serving(Moved) as running, pytest.raises(errors.ModelError) as caught:
        page(running.url)
    assert str(caught.value) == (
        f"The model server at {running.url}/v1 redirects to https://new.example/v1: "
        "set MODEL_URL to https://new.example/v1."
    )


@pytest.mark.parametrize(
    ("url", "location", "words"),
    [
        ("http://a/v1/models", "https://x/v1/models", "to https://x/v1: set MODEL_URL"),
        ("http://a/v1/models", "https://x/v1/models/", "to https://x/v1: set MODEL_URL"),
        (
            "http://a/v1/models",
            "/api/v1/models",
            "at http://a/v1 redirects to http://a/api/v1: set",
        ),
        ("http://a:1/v1beta/openai/models", "//b/v2/models", "to http://b/v2: set MODEL_URL"),
        ("http://a/health", "https://x:8443/health", "to https://x:8443: set MODEL_URL"),
        ("http://a/v1/models", "http://a/v1/models/", "at http://a/v1 redirects to itself"),
        ("http://a/v1/models", "https://sso/login?next=x", "https://sso/login, which is not the"),
        ("http://a/v1/models", "", "invalid response"),
        ("http://a/v1/models", "http://[", "invalid response"),
        ("http://a/v1/models", "ftp://x/v1/models", "invalid response"),
    ],
)
def test_redirect_names_the_new_address(url, location, words):
    message = str(connection.redirected(url, location))
    assert words in message
    assert "next=x" not in message


def test_process_environment_is_left_alone(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    before = dict(os.environ)
    forget()
    assert network.proxy_for(f"https://{NAME}").url == "http://proxy:1"
    assert dict(os.environ) == before
