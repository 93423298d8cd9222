"""Addresses of model servers, as owners paste them."""

import base64

import pytest

from vllm_space.server import Server


@pytest.mark.parametrize(
    ("address", "bases"),
    [
        ("http://h:8000", ["http://h:8000/v1", "http://h:8000"]),
        (" http://h:8000/ ", ["http://h:8000/v1", "http://h:8000"]),
        ("http://h:8000/v1/", ["http://h:8000/v1"]),
        ("http://h//v1//", ["http://h/v1"]),
        ("http://h/v1#top", ["http://h/v1"]),
        ("http://h/v1/chat/completions", ["http://h/v1"]),
        ("http://h/v1/models/", ["http://h/v1"]),
        ("http://h/v1beta/openai/", ["http://h/v1beta/openai", "http://h/v1beta/openai/v1"]),
        ("http://h/api/paas/v4", ["http://h/api/paas/v4", "http://h/api/paas/v4/v1"]),
        ("http://h/generate", ["http://h/v1", "http://h"]),
        ("http://h/chat/completions", ["http://h", "http://h/v1"]),
        ("http://h/proxy/8000", ["http://h/proxy/8000/v1", "http://h/proxy/8000"]),
        ("http://[::1]:8000/v1", ["http://[::1]:8000/v1"]),
        ("http://h/models-v2", ["http://h/models-v2/v1", "http://h/models-v2"]),  # no version
    ],
)
def test_address_is_read_in_any_form(address, bases):
    assert list(Server.from_url(address).bases) == bases


@pytest.mark.parametrize(
    ("address", "target", "url"),
    [
        ("http://h", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1", "/tokenize", "http://h/tokenize"),
        ("http://h/gpu/v1", "/health", "http://h/gpu/health"),
        ("http://h/v1beta/openai", "/v1/models", "http://h/v1beta/openai/models"),
        ("http://h/v1", "/v1/messages?beta=true", "http://h/v1/messages?beta=true"),
        ("http://h/v1?api-version=2", "/v1/models", "http://h/v1/models?api-version=2"),
        ("http://h/v1?a=1", "/v1/messages?b=2", "http://h/v1/messages?a=1&b=2"),
        (
            "http://h/deployments/x/chat/completions?api-version=2",
            "/v1/chat/completions",
            "http://h/deployments/x/chat/completions?api-version=2",
        ),
    ],
)
def test_endpoints_keep_path_and_query(address, target, url):
    assert Server.from_url(address).endpoint(target) == url


def test_login_in_the_address_is_not_shown():
    server = Server.from_url("http://ann:p%40ss-marked@h:8000/v1?key=query-marked")
    login = base64.b64encode(b"ann:p@ss-marked").decode()
    assert server.headers == {"Authorization": f"Basic {login}"}
    assert "marked" not in repr(server) + server.url + server.base
    assert {"p@ss-marked", "query-marked"} <= set(server.secrets)


def test_key_comes_before_the_login():
    server = Server.from_url("http://ann:secret@h", api_key="k")
    assert server.headers == {"Authorization": "Bearer k"}
