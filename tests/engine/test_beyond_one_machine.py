"""Engines that are not ours: replicas behind vllm-router, and the legacy server. All of them real."""

import os
import sys
import time
from collections.abc import Callable, Iterator

import gradio_client
import openai
import pytest
import requests

from support.long_stream import LongStream
from support.programs import (
    API_KEY,
    DEMO_MODEL,
    KEY,
    MODEL,
    START,
    TESTS,
    Program,
    Space,
    active_requests,
    free_port,
    wait_for,
)

pytestmark = pytest.mark.vllm

QUESTION = "How do I use another model?"
ENGINE_KEY = "key-of-the-replicas"
STREAMS = 20


# -- vllm-router -----------------------------------------------------------------------------------------------


def start_replica(program: Callable[..., Program]) -> tuple[str, Program]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(DEMO_MODEL),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        MODEL,
        "--max-model-len",
        "-1",
        "--enforce-eager",
    ]
    replica = program(command, VLLM_API_KEY=ENGINE_KEY, VLLM_NO_USAGE_STATS="1")
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(
        replica.process.pid, others or [last]
    )  # as in a Space of its own: see engine.cores
    return f"http://127.0.0.1:{port}", replica


def start_router(program: Callable[..., Program], replicas: list[str]) -> str:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "vllm_router.launch_router",
        "--worker-urls",
        *replicas,
        "--policy",
        "round_robin",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--prometheus-port",
        str(free_port()),
        "--api-key",
        ENGINE_KEY,
        "--worker-startup-check-interval",
        "1",
        "--health-check-interval-secs",
        "2",
        "--health-check-timeout-secs",
        "10",
    ]
    program(command)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{url}/readiness", timeout=5).ok, 60, "the router")
    return url


def test_one_of_two_replicas_behind_the_router_may_die(program, page):
    (first, doomed), (second, _) = start_replica(program), start_replica(program)
    for replica in (first, second):
        wait_for(lambda url=replica: requests.get(f"{url}/health", timeout=5).ok, 400, "a replica")
    router = start_router(program, [first, second])
    url = page(router, MODEL_API_KEY=ENGINE_KEY, API_KEYS=API_KEY)
    chat = gradio_client.Client(url, verbose=False)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = chat.predict(QUESTION, temperature=0, api_name="/chat")

    # The router counts a replica as gone that was once slow to answer.
    wait_for(
        lambda: requests.get(f"{router}/health", timeout=5).ok,
        60,
        "both replicas behind the router",
    )
    streams = [LongStream(url, QUESTION) for _ in range(STREAMS)]
    wait_for(lambda: active_requests(first) > 1, 60, "the doomed replica's streams")
    for process in doomed.family():
        process.kill()

    # At once, while the router may not know yet, and afterwards.
    until = time.monotonic() + 12
    while time.monotonic() < until:
        assert requests.get(url, timeout=10).ok
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        assert client.chat.completions.create(**asked).choices[0].message.content == answer
        assert chat.predict(QUESTION, temperature=0, api_name="/chat") == answer
        time.sleep(0.5)

    for one in streams:
        one.join(60)
        assert not one.is_alive()
    assert all(one.whole or one.error for one in streams)
    assert STREAMS / 4 < sum(one.whole for one in streams) < STREAMS  # the other replica's
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.responses.create(model=MODEL, input=QUESTION, temperature=0).output_text == answer


# -- the legacy server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A Space that boots a legacy server."""
    port, engine_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("legacy") / "start.log"
    env = {
        "ENGINE_MODULE": "support.legacy_server",
        "PYTHONPATH": str(TESTS),
        "ENGINE_PORT": str(engine_port),
        "API_KEYS": API_KEY,
    }
    running = Program([*START, "--port", str(port)], log, env)
    try:
        running.wait_until_up(f"http://127.0.0.1:{port}")
        yield Space(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}", "", running)
    finally:
        running.stop()


def completed(space: Space, prompt: str, **sampling: object) -> str:
    """What the OpenAI server makes of a prompt."""
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, **sampling}
    answer = requests.post(
        f"{space.engine_url}/v1/completions", json=body, headers=space.auth, timeout=60
    )
    return answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("where", ["booted by ENGINE_MODULE", "running at MODEL_URL"])
def test_page_and_endpoints_work_on_the_legacy_server(legacy, space, page, where):
    url = (
        legacy.url
        if where.startswith("booted")
        else page(f"{legacy.engine_url}/generate", API_KEYS=API_KEY)
    )
    client = gradio_client.Client(url, verbose=False)
    text = client.predict("This Space", temperature=0, max_tokens=30, api_name="/complete")
    assert text == completed(space, "This Space", max_tokens=30)
    job = client.submit(QUESTION, temperature=0, max_tokens=30, api_name="/chat")
    assert job.result(timeout=60) == completed(
        space, f"User: {QUESTION}\nAssistant:", max_tokens=30, stop=["\nUser:"]
    )
    refused = requests.post(
        f"{url}/v1/chat/completions", json={"messages": []}, headers=KEY, timeout=10
    )
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "legacy_server"
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
