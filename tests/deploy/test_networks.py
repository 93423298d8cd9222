"""The page starts in any network: proxies, IPv6 and a company's certificates."""

from __future__ import annotations

import sys

import pytest
import requests

from support.certificates import Authority
from support.http_server import QuietHandler, serving
from support.programs import ROOT, free_port, wait_for
from support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.vllm  # start.sh requires it to be installed; nothing here runs it

START = ["bash", str(ROOT / "start.sh")]
APP = [sys.executable, str(ROOT / "app.py")]
DOWN = "http://127.0.0.1:9"


def answers(url: str) -> bool:
    with requests.Session() as http:
        http.trust_env = False
        return all(http.get(url + path, timeout=5).ok for path in ("/", "/healthz"))


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        (APP, {"ALL_PROXY": "socks5://127.0.0.1:9"}),
        (START, {"ALL_PROXY": "socks://me:marked@127.0.0.1:9/"}),
        (APP, {"https_proxy": "proxy:abc", "HTTP_PROXY": "http://me:marked@127.0.0.1:9"}),
        (APP, {"HTTP_PROXY": "127.0.0.1:9", "NO_PROXY": "[::1], *.corp, fe80::1%eth0, x:y"}),
    ],
    ids=["socks5", "socks", "malformed", "no_proxy"],
)
def test_proxies_do_not_end_a_start(program, command, variables):
    port = free_port()
    with ScriptedEngine().running() as engine:
        env = {"MODEL_URL": engine.url} | variables
        running = program([*command, "--port", str(port)], **env)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}"), 60, "the page")
        assert "Traceback" not in running.output
        assert "marked" not in running.output


@pytest.mark.parametrize(
    ("command", "host", "reach"),
    [(APP, "::", "127.0.0.1"), (START, "[::]", "[::1]"), (APP, "::1", "[::1]")],
)
def test_page_listens_on_ipv6(program, command, host, reach):
    port = free_port()
    with ScriptedEngine().running() as engine:
        running = program([*command, "--host", host, "--port", str(port)], MODEL_URL=engine.url)
        wait_for(lambda: answers(f"http://{reach}:{port}"), 60, "the page")
        wait_for(lambda: f"http://[::1]:{port}" in running.output, 10, "the page's URL")
        assert "Traceback" not in running.output


@pytest.mark.parametrize("command", [START, APP], ids=["start.sh", "app.py"])
@pytest.mark.parametrize(
    ("variables", "host", "message"),
    [
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "127.0.0.1", "SSL_CERT_FILE=/nowhere/ca.pem cannot"),
        ({"REQUESTS_CA_BUNDLE": __file__}, "127.0.0.1", "it holds no certificates in PEM format"),
        ({}, "192.0.2.77", "192.0.2.77, which is not an address of this machine"),
    ],
)
def test_wrong_network_settings_exit_with_2(program, tmp_path, command, variables, host, message):
    env = {"MODEL_URL": DOWN, "TMPDIR": str(tmp_path)} | variables
    running = program([*command, "--host", host, "--port", str(free_port())], **env)
    code, lines = running.wait_for_exit(tmp_path)
    assert code == 2
    assert message in lines[-1]


def test_untrusted_server_is_explained(program, tmp_path):
    port = free_port()
    with serving(QuietHandler, tls=Authority(tmp_path).context()) as server:
        url = server.url
        program([*APP, "--port", str(port)], MODEL_URL=url)
        page = f"http://127.0.0.1:{port}"
        health = wait_for(lambda: requests.get(f"{page}/healthz", timeout=9).json(), 60, page)
    assert f"The certificate of {url} is not trusted" in health["reason"]
