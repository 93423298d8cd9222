"""The page in front of a scripted legacy server, which has no OpenAI API.

tests/engine/test_legacy_server.py has a real one.
"""

import json

import gradio_client
import requests

from support.programs import API_KEY, KEY
from support.scripted_engine import ScriptedEngine


def script(path: str, body: dict):
    if path != "/generate":
        return 404, {"detail": "Not Found"}
    # Each line has the prompt and the whole text so far.
    texts = [body["prompt"] + text for text in ("Hel", "Hello")]
    return (json.dumps({"text": [text]}).encode() + b"\n" for text in texts)


def test_legacy_server_serves_the_endpoints(page):
    with ScriptedEngine(script, models=None).running() as engine:
        url = page(f"{engine.url}/generate", API_KEYS=API_KEY)
        client = gradio_client.Client(url, verbose=False)
        assert client.predict("Say: ", api_name="/complete") == "Hello"
        assert client.predict("Hi", api_name="/chat") == "Hello"
        response = requests.post(f"{url}/v1/chat/completions", json={}, headers=KEY, timeout=10)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "legacy_server"
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
