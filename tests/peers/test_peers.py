"""The page in front of servers of other projects, and of another copy of itself: none is scripted.

Behind LiteLLM's proxy and the other copy is vLLM with the demo model, and a scripted engine that
reasons and fails.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio_client
import pytest
import requests
from playwright.sync_api import expect

from support import llama_cpp
from support.environments import environment
from support.programs import (
    API_KEY,
    DEMO_MODEL,
    KEY,
    MODEL,
    TESTS,
    Program,
    Space,
    free_port,
    wait_for,
)
from support.scripted_engine import ScriptedEngine, chat_event, chat_stream, event

pytestmark = [pytest.mark.release, pytest.mark.registry, pytest.mark.vllm]

LITELLM = ["litellm[proxy]==1.108.7"]
QUESTION = "What is vLLM?"
ANSWER = "vLLM is an open-source engine that runs language models fast"
WORDS = "The power was cut in rack 7"  # of the scripted engine's error
PEERS = ["llama.cpp", "litellm", "copy"]


@dataclass
class Peer:
    """A server: `scripted` is the name of its second model, if it can have one."""

    url: str
    key: str
    demo: str
    scripted: str | None
    program: Program | None = None
    key_refusal: str = "MODEL_API_KEY"  # in what the page says about a wrong key


def _script(path: str, body: dict) -> Iterator[bytes] | tuple[int, dict]:
    question = json.dumps(body)
    if "refuse" in question:
        return 400, {"error": {"message": WORDS, "type": "invalid_request_error", "code": 400}}
    if "break" in question:
        return _broken()
    return _reasoned()


def _broken() -> Iterator[bytes]:
    yield chat_event(content="Half an answer")
    yield event(error={"message": WORDS, "type": "server_error", "code": 500})


def _reasoned() -> Iterator[bytes]:
    yield chat_event(reasoning_content="They want a number.")
    yield from chat_stream("Forty-two.")


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedEngine]:
    with ScriptedEngine(_script).running() as engine:
        yield engine


@pytest.fixture(scope="module", params=PEERS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    folder = tmp_path_factory.mktemp("peer")
    program = request.getfixturevalue("shared_program")
    if request.param == "llama.cpp":
        return start_llama_cpp(program, folder)
    space = request.getfixturevalue("space")
    engine = request.getfixturevalue("scripted")
    if request.param == "litellm":
        return start_litellm(program, folder, space, engine)
    return start_copy(request.getfixturevalue("shared_page"), space, engine)


def start_llama_cpp(program: Callable[..., Program], folder: Path, *flags: str) -> Peer:
    model, port = folder / "demo.gguf", free_port()
    python = llama_cpp.tools() / "bin" / "python"
    command = [python, TESTS / "peers" / "demo_gguf.py", DEMO_MODEL, model]
    subprocess.run(command, check=True, timeout=60)
    options = f"-m {model} --port {port} --threads 1 --jinja --alias demo --api-key {API_KEY}"
    running = program([str(llama_cpp.llama_server()), *options.split(), *flags])
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{url}/health", timeout=5).ok, 60, url)
    return Peer(f"{url}/v1", API_KEY, "demo", None, running)


def start_litellm(
    program: Callable[..., Program], folder: Path, space: Space, engine: ScriptedEngine
) -> Peer:
    demo = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{space.engine_url}/v1"}
    demo["api_key"] = space.engine_key
    scripted = {"model": "openai/scripted", "api_base": f"{engine.url}/v1", "api_key": "none"}
    models = [
        {"model_name": "demo", "litellm_params": demo},
        {"model_name": "scripted", "litellm_params": scripted | {"max_retries": 0}},
    ]
    config = {"model_list": models, "general_settings": {"master_key": f"sk-{API_KEY}"}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = f"--config {folder}/config.yaml --host 127.0.0.1 --port {port}"
    running = program(
        [str(environment("litellm-proxy", LITELLM) / "bin" / "litellm"), *command.split()],
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        NO_DOCS="True",
    )
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{url}/health/liveliness", timeout=5).ok, 180, url)
    # Its own words: it would look for other keys in a database.
    return Peer(f"{url}/v1", f"sk-{API_KEY}", "demo", "scripted", running, "No connected db")


def start_copy(shared_page: Callable[..., str], space: Space, engine: ScriptedEngine) -> Peer:
    servers = {"vllm": space.engine_url, "other": engine.url}
    url = shared_page(
        None, MODELS=json.dumps(servers), MODEL_API_KEY=space.engine_key, API_KEYS=API_KEY
    )
    return Peer(f"{url}/v1", API_KEY, MODEL, "scripted")


@pytest.fixture(scope="module")
def url(peer: Peer, shared_page) -> str:
    """The page in front of the peer; it begins with the model that reasons."""
    first = peer.scripted or peer.demo
    return shared_page(peer.url, MODEL_API_KEY=peer.key, MODEL_ID=first, API_KEYS=API_KEY)


@pytest.fixture(scope="module")
def client(url: str) -> gradio_client.Client:
    return gradio_client.Client(url, verbose=False)


def failure(client: gradio_client.Client, question: str, model: str) -> tuple[str, str]:
    """The text and the error of an answer that fails."""
    job = client.submit(question, model=model, api_name="/chat")
    error = job.exception(60)
    assert error, job.outputs()
    return (job.outputs() or [""])[-1], str(error)


def test_models_of_the_peer_are_listed(peer, url):
    listed = requests.get(f"{url}/v1/models", headers=KEY, timeout=30).json()["data"]
    assert {model["id"] for model in listed} == {peer.demo, peer.scripted} - {None}
    assert requests.get(f"{url}/healthz", timeout=30).json() == {"status": "ok"}


def test_peer_answers_on_the_page(peer, client):
    assert ANSWER in client.predict(QUESTION, model=peer.demo, api_name="/chat")


def test_peer_answers_through_the_gateway(peer, url):
    body = {"model": peer.demo, "messages": [{"role": "user", "content": QUESTION}]}
    path = f"{url}/v1/chat/completions"
    answer = requests.post(path, headers=KEY, json=body, timeout=60).json()
    assert ANSWER in answer["choices"][0]["message"]["content"]


def test_reasoning_of_the_peer_is_folded(peer, url, visit):
    tab = visit(url)
    tab.get_by_placeholder("Type a message").fill(QUESTION)
    tab.get_by_placeholder("Type a message").press("Enter")
    chat = tab.locator("#chatbot")
    expect(chat.get_by_role("button", name=re.compile("Thought"))).to_be_visible(timeout=60_000)
    expect(chat).to_contain_text("Forty-two." if peer.scripted else ANSWER)
    assert "think>" not in chat.inner_text()


def test_too_long_prompt_is_explained(peer, client):
    text, error = failure(client, " ".join([QUESTION] * 600), peer.demo)
    assert text == ""
    assert "context" in error
    assert "Something went wrong" not in error


def test_refusal_has_the_words_of_the_engine(peer, client):
    if not peer.scripted:
        pytest.skip("this server cannot be made to fail")
    assert WORDS in failure(client, "refuse", peer.scripted)[1]


def test_broken_answer_keeps_text_and_words(peer, client):
    if not peer.scripted:
        pytest.skip("this server cannot be made to fail in mid-stream")
    text, error = failure(client, "break", peer.scripted)
    assert text == "Half an answer"
    assert WORDS in error


def test_wrong_key_is_explained(peer, page):
    url = page(peer.url, MODEL_API_KEY="wrong-key")
    health = requests.get(f"{url}/healthz", timeout=30)
    assert health.status_code == 503
    assert peer.key_refusal in health.text
    assert "wrong-key" not in health.text


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_death_of_llama_cpp_is_noticed(program, page, tmp_path, how):
    peer = start_llama_cpp(program, tmp_path, "--ignore-eos", "--context-shift")
    url = page(peer.url, MODEL_API_KEY=peer.key)
    client = gradio_client.Client(url, verbose=False)
    job = client.submit("This Space", max_tokens=4096, api_name="/complete")
    wait_for(job.outputs, 30, "the first text")
    peer.program.process.send_signal(signal.Signals[how])
    assert "cut off" in str(job.exception(60))
    assert job.outputs()[-1]
    wait_for(lambda: requests.get(f"{url}/healthz", timeout=30).status_code == 503, 30, "503")
