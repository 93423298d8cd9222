"""A Space that boots vLLM's legacy server, which has no OpenAI API. The engine is real.

tests/page/test_legacy_server.py has a scripted one.
"""

from collections.abc import Iterator

import gradio_client
import pytest
import requests

from support.programs import API_KEY, KEY, MODEL, TESTS, Space, booted_space

pytestmark = [pytest.mark.vllm, pytest.mark.release]  # boots vLLM once more

QUESTION = "How do I use another model?"


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    env = {"ENGINE_MODULE": "support.legacy_server", "PYTHONPATH": str(TESTS)}
    with booted_space(tmp_path_factory.mktemp("legacy") / "start.log", **env) as space:
        yield space


def completion_of_vllm(space: Space, prompt: str, **sampling: object) -> str:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 30, **sampling}
    url = f"{space.engine_url}/v1/completions"
    response = requests.post(url, json=body, headers=space.auth, timeout=60)
    return response.json()["choices"][0]["text"]


@pytest.mark.parametrize("where", ["booted by ENGINE_MODULE", "running at MODEL_URL"])
def test_legacy_server_answers_like_vllm(legacy, space, page, where):
    url = legacy.url
    if where == "running at MODEL_URL":
        url = page(f"{legacy.engine_url}/generate", API_KEYS=API_KEY)
    client = gradio_client.Client(url, verbose=False)
    options = {"temperature": 0, "max_tokens": 30}
    answer = client.predict("This Space", **options, api_name="/complete")
    assert answer == completion_of_vllm(space, "This Space")
    answer = client.predict(QUESTION, **options, api_name="/chat")
    prompt = f"User: {QUESTION}\nAssistant:"
    assert answer == completion_of_vllm(space, prompt, stop=["\nUser:"])
    response = requests.post(f"{url}/v1/chat/completions", json={}, headers=KEY, timeout=10)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "legacy_server"
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
