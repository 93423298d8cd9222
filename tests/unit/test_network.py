"""Proxies and certificate authorities in the environment."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

import certifi
import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.certificates import Authority
from vllm_space import errors, network

SCHEMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
VARIABLES = (*SCHEMES, *map(str.upper, SCHEMES))
REMOTE = "https://api.example.com/v1/models"


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """No variables of these at the start, and none of the test's at the end."""
    before = dict(os.environ)
    for name in (*VARIABLES, *network.CA_VARIABLES):
        os.environ.pop(name, None)
    forget()
    yield
    os.environ.clear()
    os.environ.update(before)
    forget()


def forget() -> None:
    network._proxies.cache_clear()
    network.ssl_context.cache_clear()


def proxy_url(url: str = REMOTE, **variables: str) -> str | None:
    os.environ.update(variables)
    forget()
    network.prepare()  # must not change the answer
    proxy = network.proxy_for(url)
    return proxy and proxy.url


# -- which proxy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": " http://proxy:3128/ "}, "http://proxy:3128"),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, "http://low"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://up"}, None),
        ({"HTTP_PROXY": "http://proxy"}, None),
        ({"ALL_PROXY": "http://all", "HTTPS_PROXY": "http://proxy"}, "http://proxy"),
        ({"ALL_PROXY": "http://all", "HTTPS_PROXY": "  "}, "http://all"),
        ({"HTTPS_PROXY": "HTTP://Proxy:80"}, "http://proxy:80"),
        ({"HTTPS_PROXY": "https://[fd00::7]:8080"}, "https://[fd00::7]:8080"),
        ({"HTTPS_PROXY": "http://me:p%40ss@proxy:1"}, "http://me:p%40ss@proxy:1"),
        ({"HTTPS_PROXY": "http://me:p@ss@proxy:1"}, "http://me:p%40ss@proxy:1"),
    ],
)
def test_proxy_is_chosen_as_curl_does(variables, expected):
    assert proxy_url(**variables) == expected


@pytest.mark.parametrize(
    ("exceptions", "host", "is_excepted"),
    [
        ("example.com", "api.example.com", True),
        (".example.com", "api.example.com", True),
        ("*.example.com", "api.example.com", True),
        ("a.b, API.example.com", "api.example.com", True),
        ("a.b api.example.com", "api.example.com", True),
        ("api.example.com:443", "api.example.com", True),
        ("api.example.com:8443", "api.example.com", False),
        ("ample.com", "api.example.com", False),
        ("*", "api.example.com", True),
        ("[::1],::1,fe80::1%eth0,[", "api.example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.", "10.1.2.3", False),
        ("fd00::/8", "[fd00::9]", True),
        ("[fd00::9]", "[fd00::9]", True),
        ("[fd00::9]:443", "[fd00::9]", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("<local>,,;", "api.example.com", False),
    ],
)
def test_no_proxy_names_and_networks(exceptions, host, is_excepted):
    found = proxy_url(f"https://{host}/v1", ALL_PROXY="http://proxy:1", NO_PROXY=exceptions)
    assert found == (None if is_excepted else "http://proxy:1")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST.", "[::1]", "0.0.0.0"]
)
def test_loopback_needs_no_proxy(host):
    for value in ("http://proxy:1", "socks5://proxy:1", "proxy:abc"):
        assert proxy_url(f"http://{host}:8000/v1", ALL_PROXY=value) is None


@pytest.mark.parametrize(
    "value",
    ["proxy:abc", "http://", "ftp://proxy", "http://proxy:99999", "http://me:marked#@proxy"],
)
def test_invalid_proxy_is_named_not_printed(value):
    with pytest.raises(errors.Unreachable, match="HTTPS_PROXY is not the address") as caught:
        proxy_url(HTTPS_PROXY=value)
    assert "marked" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h", "socks4", "socks4a"])
def test_socks_proxy_says_what_to_install(monkeypatch, scheme):
    url = f"{scheme}://me:marked@proxy:1080"
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    with pytest.raises(
        errors.Unreachable, match=r"ALL_PROXY is a SOCKS proxy.*pip install"
    ) as told:
        proxy_url(ALL_PROXY=url)
    assert "marked" not in str(told.value)
    monkeypatch.setattr(network, "find_spec", lambda name: object())
    assert proxy_url(ALL_PROXY=url).endswith("://me:marked@proxy:1080")


# -- httpx ---------------------------------------------------------------------------------------

PARTS = """http:// https:// socks5:// socks:// proxy 10.0.0.1 [::1] ::1 :3128 : @ me:pw p@ss / # ? *
.corp , fe80::1%eth0 10.0.0.0/8 fd00::/8 é 999.1.1.1 :abc <local> [ ] localhost - _ %zz""".split()
VALUES = st.lists(st.sampled_from([*PARTS, " ", "\n"]), max_size=6).map("".join) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES))
def test_httpx_survives_any_environment(variables):
    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables)
    forget()
    network.prepare("192.168.1.5", "fe80::1%eth0")
    for library in (httpx, httpx2):
        library.Client(verify=False).close()


@pytest.mark.parametrize(
    ("exceptions", "expected"),
    [
        ("a.corp, 10.0.0.1:80", "a.corp,10.0.0.1:80,localhost,127.0.0.1,::1,my_host"),
        ("*", "*"),  # requests and aiohttp would not understand it in a list
        ("[::1]:80,[fd00::9]:443", "localhost,127.0.0.1,::1,my_host"),
    ],
)
def test_no_proxy_for_other_libraries(exceptions, expected):
    os.environ["no_proxy"] = exceptions
    forget()
    network.prepare("my_host", "h\xf6st")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected
    for library in (httpx, httpx2):
        library.Client(verify=False).close()


def test_what_httpx_cannot_use_is_warned_of():
    os.environ |= {"ALL_PROXY": "socks4://me:marked@proxy", "HTTP_PROXY": "http://proxy:3128"}
    warnings = network.prepare()
    assert "ALL_PROXY" in warnings[0]
    assert "marked" not in warnings[0]
    assert os.environ["HTTP_PROXY"] == "http://proxy:3128"
    assert "ALL_PROXY" not in os.environ


# -- certificate authorities ---------------------------------------------------------------------


@pytest.mark.parametrize("variable", network.CA_VARIABLES)
def test_authorities_are_added_to_the_rest(tmp_path, variable):
    without = len(network.ssl_context().get_ca_certs())
    assert without >= certifi.contents().count("BEGIN CERTIFICATE") - 5
    company = Authority(tmp_path)
    is_folder = variable == "SSL_CERT_DIR"
    os.environ[variable] = str(tmp_path if is_folder else company.file)
    forget()
    network.check_authorities()
    # Those in a folder are only read when they are needed.
    assert len(network.ssl_context().get_ca_certs()) >= without + (not is_folder)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "no certificates in PEM"), (b"\x30\x82", "no certificates in")],
)
def test_unusable_authorities_are_named(tmp_path, variable, content, reason):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    os.environ[variable] = str(file)
    with pytest.raises(errors.SettingsError, match=f"{variable}={file} cannot be used: .*{reason}"):
        network.check_authorities()


def test_empty_variables_keep_verification():
    os.environ |= dict.fromkeys(network.CA_VARIABLES, "")
    network.check_authorities()
    assert network.ssl_context().verify_mode is ssl.CERT_REQUIRED
