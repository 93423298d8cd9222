"""The page and the API behind vllm-router, when one of two replicas dies. The replicas are scripted.

tests/engine/test_replicas.py does the same with real replicas.
"""

import threading

import gradio_client
import openai
import requests

from support.programs import API_KEY, wait_for
from support.router import start_router
from support.scripted_engine import Cut, ScriptedEngine, chat_event, chat_stream


def test_a_dying_replica_ends_only_its_answers(program, page):
    died = threading.Event()

    def of_the_doomed(path, body):
        if died.is_set():
            raise Cut
        return unfinished()

    def unfinished():
        yield chat_event(content="Half")
        died.wait(60)
        raise Cut

    def of_the_other(path, body):
        died.wait(60)
        return chat_stream("Whole")

    with ScriptedEngine(of_the_other).running() as other:
        with ScriptedEngine(of_the_doomed).running() as doomed:
            url = page(start_router(program, [doomed.url, other.url]), API_KEYS=API_KEY)
            chat = gradio_client.Client(url, verbose=False)
            jobs = [chat.submit("Hi", api_name="/chat") for _ in range(4)]
            wait_for(lambda: len(doomed.requests) == len(other.requests) == 2, 30, "all requests")
            doomed.alive = False
            died.set()
            results = [job.exception(60) or job.result() for job in jobs]
        print(results)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY)
        for _ in range(4):
            assert chat.predict("Hi", api_name="/chat") == "Whole"
            assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        assert [model.id for model in client.models.list()] == ["scripted"]
