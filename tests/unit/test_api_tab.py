"""The address in the programs of the API tab."""

from types import SimpleNamespace

import gradio as gr
import pytest
from starlette.requests import Request

from vllm_space.page.api import ApiTab


@pytest.mark.parametrize(
    ("headers", "root_path", "address"),
    [
        ({}, "", "http://here:7860"),
        ({}, "/tools/chat/", "http://here:7860/tools/chat"),
        ({"origin": "https://chat.example"}, "/chat", "https://chat.example/chat"),
        ({"x-forwarded-proto": "https,http"}, "", "http://here:7860"),
    ],
)
def test_address_is_the_browsers_own(headers, root_path, address):
    raw = [
        (name.encode(), value.encode()) for name, value in {"host": "here:7860", **headers}.items()
    ]
    scope = {"type": "http", "scheme": "http", "path": "/x", "query_string": b"", "headers": raw}
    request = gr.Request(Request(scope | {"root_path": root_path}))
    tab = SimpleNamespace(controls=SimpleNamespace(sign_in=SimpleNamespace(space=None)))
    assert ApiTab.address(tab, request) == address
