"""Two real replicas behind vllm-router, one of which dies during its answers.

tests/page/test_router.py does the same with scripted replicas, which takes seconds.
"""

import os
import sys
from collections.abc import Callable

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
    Program,
    active_requests,
    free_port,
    wait_for,
)
from support.router import start_router

pytestmark = [pytest.mark.vllm, pytest.mark.release]  # boots vLLM twice

QUESTION = "How do I use another model?"
ENGINE_KEY = "key-of-the-replicas"
STREAMS = 20


def start_replica(program: Callable[..., Program]) -> tuple[str, Program]:
    port = free_port()
    flags = f"""--model {DEMO_MODEL} --served-model-name {MODEL} --host 127.0.0.1 --port {port}
        --max-model-len -1 --enforce-eager"""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags.split()]
    replica = program(command, VLLM_API_KEY=ENGINE_KEY, VLLM_NO_USAGE_STATS="1")
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(replica.process.pid, others or [last])  # see engine.command.cores
    return f"http://127.0.0.1:{port}", replica


def test_router_survives_a_dead_replica(program, page):
    (first, doomed), (second, _) = start_replica(program), start_replica(program)
    for replica in (first, second):
        wait_for(lambda url=replica: requests.get(f"{url}/health", timeout=5).ok, 400, "a replica")
    router = start_router(program, [first, second], ENGINE_KEY)
    url = page(router, MODEL_API_KEY=ENGINE_KEY, API_KEYS=API_KEY)
    chat = gradio_client.Client(url, verbose=False)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY)
    messages = [{"role": "user", "content": QUESTION}]
    answer = chat.predict(QUESTION, temperature=0, api_name="/chat")

    def check_all_is_well() -> None:
        assert requests.get(url, timeout=10).ok
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        assert reply.choices[0].message.content == answer
        assert chat.predict(QUESTION, temperature=0, api_name="/chat") == answer

    # The router drops a replica whose health check was slow once.
    wait_for(lambda: requests.get(f"{router}/health", timeout=5).ok, 60, "both replicas")
    streams = [LongStream(url, QUESTION) for _ in range(STREAMS)]
    wait_for(lambda: active_requests(first) > 1, 60, "streams of the doomed replica")
    for process in doomed.processes():
        process.kill()

    check_all_is_well()  # while the router may not know yet
    for stream in streams:
        stream.join(60)
        assert not stream.is_alive()
    assert all(stream.complete or stream.error for stream in streams)
    complete = sum(stream.complete for stream in streams)
    assert STREAMS / 4 < complete < STREAMS  # those of the other replica
    for _ in range(4):  # each replica's turn, twice
        check_all_is_well()
    models_url = f"{url}/v1/models"  # fails until the router has noticed
    wait_for(lambda: requests.get(models_url, headers=KEY, timeout=5).ok, 60, "the models")
    assert client.responses.create(model=MODEL, input=QUESTION, temperature=0).output_text == answer
