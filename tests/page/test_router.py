"""The page and the API behind vllm-router while one of two replicas dies. Both are scripted.

tests/engine/test_replicas.py has real ones.
"""

import threading

import gradio_client
import requests

from support.programs import API_KEY, KEY, wait_for
from support.router import start_router
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream


def test_dead_replica_ends_only_its_answers(program, page):
    died = threading.Event()

    def doomed_script(path, body):
        if died.is_set():
            raise Cut
        return half_an_answer()

    def half_an_answer():
        yield chat_event(content="Half")
        died.wait(60)
        raise Cut

    def other_script(path, body):
        died.wait(60)
        return chat_stream("Whole")

    with ScriptedEngine(other_script).running() as other:
        with ScriptedEngine(doomed_script).running() as doomed:
            url = page(start_router(program, [doomed.url, other.url]), API_KEYS=API_KEY)
            chat = gradio_client.Client(url, verbose=False)
            jobs = [chat.submit("Hi", api_name="/chat") for _ in range(4)]
            wait_for(lambda: len(doomed.requests) == len(other.requests) == 2, 30, "all requests")
            doomed.alive = False
            died.set()
            errors = [str(error) for error in (job.exception(60) for job in jobs) if error]
        assert len(errors) == 2
        assert all("The answer was cut off" in error for error in errors)

        for _ in range(4):  # the router may not know yet
            assert chat.predict("Hi", api_name="/chat") == "Whole"
            assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        models_url = f"{url}/v1/models"
        wait_for(lambda: requests.get(models_url, headers=KEY, timeout=5).ok, 30, "the models")
