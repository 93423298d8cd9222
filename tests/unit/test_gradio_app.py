"""Our changes to the real Gradio: statuses, downloads, and answers that nobody collects."""

import asyncio
import json
from collections.abc import Iterator

import gradio as gr
import pytest
from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from support import coroutines
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


def test_no_url_is_downloaded(tmp_path, monkeypatch):
    for name in ("async_ssrf_protected_get", "async_ssrf_protected_download"):
        monkeypatch.setattr(processing_utils, name, getattr(processing_utils, name))
    gradio_app.fetch_nothing()
    component = gr.File()
    component.GRADIO_CACHE = str(tmp_path)
    url = "https://huggingface.co/robots.txt"
    with pytest.raises(ValueError, match="in place of an uploaded file"):
        processing_utils.save_url_to_cache(url, str(tmp_path))
    with pytest.raises(ValueError, match="in place of an uploaded file"):
        coroutines.run(component.async_move_resource_to_block_cache(url))
    assert list(tmp_path.iterdir()) == []


def test_uncollected_answers_are_dropped(monkeypatch):
    monkeypatch.setattr(gradio_app, "UNCOLLECTED_AFTER", 0.3)

    async def scenario() -> list[str]:
        with gr.Blocks(analytics_enabled=False) as demo:
            pass
        queue = demo._queue
        for session in ("ended", "running", "collected", "growing"):
            queue.pending_messages_per_session[session] = asyncio.Queue()
            queue.pending_event_ids_session[session] = {f"event of {session}"}
            if session != "collected":
                queue.pending_messages_per_session[session].put_nowait("an answer")
        queue.event_ids_to_events["event of running"] = None
        task = asyncio.create_task(gradio_app.drop_uncollected_answers(demo))
        for _ in range(8):
            await asyncio.sleep(0.1)
            queue.pending_messages_per_session["growing"].put_nowait("more")
        task.cancel()
        assert queue.pending_event_ids_session.keys() == queue.pending_messages_per_session.keys()
        return list(queue.pending_messages_per_session)

    assert coroutines.run(scenario()) == ["running", "collected", "growing"]
