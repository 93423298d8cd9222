"""HTTP statuses from the real Gradio: 4xx for an invalid request, 500 for a bug."""

import json
from collections.abc import Iterator

import gradio as gr
import pytest
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from vllm_space import errors, gradio_app
from vllm_space.page.blocks import Blocks
from vllm_space.page.events import UNQUEUED_RAW, handler


@handler
def reject(text: str) -> str:
    raise errors.Rejected(f"{text} is not here.")


@handler
def fail(text: str) -> str:
    return {}["MARKED"]


@handler
def echo(text: str) -> str:
    return text


def fail_unhandled(text: str) -> str:
    return {}["MARKED"]


HANDLERS = [reject, fail, echo, fail_unhandled]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A page with an event for each of HANDLERS, in that order."""
    with Blocks(analytics_enabled=False) as demo:
        button, value = gr.Button(), gr.JSON()
        for function in HANDLERS:
            button.click(function, value, value, **UNQUEUED_RAW)
    gradio_app.reject_unknown_events()
    demo.show_error = False  # as launch sets it
    app = gradio_app.GradioApp(lambda app: app, middleware=[Middleware(gradio_app.ErrorMiddleware)])
    yield TestClient(gr.routes.App.create_app(demo, app=app), raise_server_exceptions=False)


def run(client: TestClient, function, *data):
    body = {"data": list(data), "fn_index": HANDLERS.index(function)}
    content = json.dumps(body)  # httpx would not send a lone surrogate
    headers = {"Content-Type": "application/json"}
    response = client.post("/gradio_api/run/predict", content=content, headers=headers)
    assert "MARKED" not in response.text
    return response


def test_result_passes_unchanged(client):
    response = run(client, echo, "Hi")
    assert (response.status_code, response.json()["data"]) == (200, ["Hi"])


def test_rejection_is_400_with_its_message(client):
    response = run(client, reject, "It")
    assert (response.status_code, response.json()["error"]) == (400, "It is not here.")


@pytest.mark.parametrize("function", [fail, fail_unhandled])
def test_bug_is_500_with_a_message(client, function):
    response = run(client, function, "Hi")
    assert (response.status_code, response.json()["error"]) == (500, str(errors.internal()))


@pytest.mark.parametrize("data", [[], [5], [None], [["x"]]])
def test_wrong_arguments_are_400(client, data):
    assert run(client, echo, *data).status_code == 400


def test_lone_surrogate_in_a_result_is_400(client):
    assert run(client, echo, "\ud800").status_code == 400


@pytest.mark.parametrize("index", [99, -1])
def test_unknown_event_is_404(client, index):
    response = client.post("/gradio_api/run/predict", json={"data": ["Hi"], "fn_index": index})
    assert response.status_code == 404
    assert client.post("/gradio_api/call/nothing", json={"data": []}).status_code == 404
