"""gradio_app.py on the real Gradio: what a request did wrong is 4xx, what the page did wrong stays 500; both say so."""

from collections.abc import Iterator

import gradio as gr
import pytest
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from vllm_space import errors, gradio_app
from vllm_space.page.blocks import Blocks
from vllm_space.page.events import UNQUEUED_RAW, handler

INTERNAL = "Something went wrong on this page's side. Try again; the log of the Space says more."


@handler
def refuse(text: str) -> str:
    raise errors.Rejected(f"{text} is not here.")


@handler
def bug(text: str) -> str:
    return {}["MARKED"]


@handler
def echo(text: str) -> str:
    return text


def unhandled(text: str) -> str:
    return {}["MARKED"]


HANDLERS = [refuse, bug, echo, unhandled]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A page with an event for each handler, their indexes in that order."""
    with Blocks(analytics_enabled=False) as demo:
        button, number = gr.Button(), gr.JSON()
        for function in HANDLERS:
            button.click(function, number, number, **UNQUEUED_RAW)
    gradio_app.reject_unknown_events()
    demo.show_error = False  # as launch has it
    app = gradio_app.GradioApp(lambda app: app, middleware=[Middleware(gradio_app.ErrorMiddleware)])
    yield TestClient(gr.routes.App.create_app(demo, app=app), raise_server_exceptions=False)


def run(client: TestClient, function, *data):
    body = {"data": list(data), "fn_index": HANDLERS.index(function)}
    answer = client.post("/gradio_api/run/predict", json=body)
    assert "MARKED" not in answer.text
    return answer


def test_what_works_passes(client):
    answer = run(client, echo, "Hi")
    assert (answer.status_code, answer.json()["data"]) == (200, ["Hi"])


def test_a_refusal_is_400_with_its_sentence(client):
    answer = run(client, refuse, "It")
    assert (answer.status_code, answer.json()["error"]) == (400, "It is not here.")


@pytest.mark.parametrize("function", [bug, unhandled])
def test_a_bug_stays_500_with_a_sentence(client, function):
    answer = run(client, function, "Hi")
    assert (answer.status_code, answer.json()["error"]) == (500, INTERNAL)


@pytest.mark.parametrize("data", [[], [5], [None], [["x"]]])
def test_wrong_arguments_are_400(client, data):
    assert run(client, echo, *data).status_code == 400


@pytest.mark.parametrize("index", [99, -1])
def test_an_unknown_event_is_404(client, index):
    answer = client.post("/gradio_api/run/predict", json={"data": ["Hi"], "fn_index": index})
    assert answer.status_code == 404
    assert client.post("/gradio_api/call/nothing", json={"data": []}).status_code == 404
