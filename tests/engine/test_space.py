"""A Space booted by ./start.sh with a real vLLM: answers, sampling, keys and signals."""

import os

import gradio_client
import pytest
import requests

from support.programs import (
    DEMO_MODEL,
    MODEL,
    START,
    Space,
    active_requests,
    free_port,
    generated_tokens,
    wait_for,
)

QUESTION = "How do I use another model?"
OPEN_QUESTION = "Tell me everything about this Space."


@pytest.fixture(scope="module")
def client(space: Space) -> gradio_client.Client:
    return gradio_client.Client(space.url, verbose=False)


def post_to_engine(space: Space, path: str, **fields: object) -> dict:
    """The engine's own answer at temperature 0: the first choice."""
    body = {"model": MODEL, "temperature": 0, **fields}
    url = space.engine_url + path
    return requests.post(url, json=body, headers=space.auth, timeout=60).json()["choices"][0]


def answer_of_transformers(messages: list[dict], max_tokens: int) -> str:
    """The answer of the same weights at temperature 0, without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.bfloat16).eval()
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(**ids, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


# -- answers ---------------------------------------------------------------------------------------


def test_log_shows_the_boot_phases(space):
    assert "vLLM is starting Python (" in space.program.output
    assert "vLLM is ready (" in space.program.output


def test_answer_equals_that_of_transformers(client):
    answer = client.predict(QUESTION, temperature=0, api_name="/chat")
    assert "MODEL_ID" in answer
    assert answer == answer_of_transformers([{"role": "user", "content": QUESTION}], 300)


def test_chat_endpoint_streams(client):
    question = "Explain step by step how to deploy this Space."
    job = client.submit(question, temperature=0, api_name="/chat")
    answer = job.result(timeout=60)
    updates = job.outputs()
    assert len(set(updates)) > 1
    assert all(answer.startswith(text) for text in updates)


def test_history_and_system_prompt_are_sent(client, space):
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    system = "Be brief."
    options = {"history": history, "system_prompt": system, "temperature": 0}
    answer = client.predict(QUESTION, **options, api_name="/chat")
    messages = [{"role": "system", "content": system}, *history]
    messages.append({"role": "user", "content": QUESTION})
    choice = post_to_engine(space, "/v1/chat/completions", messages=messages, max_tokens=1024)
    assert answer == choice["message"]["content"]


def test_complete_endpoint_continues_text(client, space):
    prompt = "This Space"
    answer = client.predict(prompt, temperature=0, max_tokens=20, api_name="/complete")
    choice = post_to_engine(space, "/v1/completions", prompt=prompt, max_tokens=20)
    assert answer == choice["text"]


@pytest.mark.parametrize("endpoint", ["/chat", "/complete"])
def test_max_tokens_is_cut_to_the_context(client, space, endpoint):
    prompt = "This Space " * 300
    answer = client.predict(prompt, temperature=0, max_tokens=4000, api_name=endpoint)
    if endpoint == "/chat":
        messages = [{"role": "user", "content": prompt}]
        choice = post_to_engine(space, "/v1/chat/completions", messages=messages)
        expected = choice["message"]["content"]
    else:
        expected = post_to_engine(space, "/v1/completions", prompt=prompt, max_tokens=200)["text"]
    assert answer
    assert answer[:200] == expected[:200]


def test_sampling_parameters_are_applied(client):
    def ask(max_tokens: int = 40, **sampling: object) -> str:
        return client.predict(OPEN_QUESTION, max_tokens=max_tokens, api_name="/chat", **sampling)

    answer = ask(temperature=0)
    assert ask(temperature=0) == answer
    assert len(ask(max_tokens=5, temperature=0)) < len(answer)
    assert ask(temperature=2, seed=7) == ask(temperature=2, seed=7)
    assert ask(temperature=2, seed=7) != ask(temperature=2, seed=8)
    word = answer.split()[8]
    assert ask(temperature=0, stop=word) == answer[: answer.index(word)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 9}, "temperature=9 is invalid. Use a number from 0 to 2."),
        ({"max_tokens": 10**9}, "allows at most 4096"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"history": [{"role": "king", "content": "x"}]}, "Each message in the history"),
        ({"message": "word " * 3000}, "context length is 2,048, including the answer"),
        ({"message": "word " * 5000}, "context of 2,048 tokens holds at most 16,384 here"),
    ],
)
def test_invalid_requests_are_explained(client, fields, message):
    with pytest.raises(gradio_client.exceptions.AppError) as error:
        client.predict(**{"message": "Hi", **fields}, api_name="/chat")
    assert message in str(error.value)


def test_cancelling_a_job_frees_the_engine(client, space):
    before = generated_tokens(space.engine_url)
    job = client.submit(OPEN_QUESTION, temperature=1, max_tokens=1500, api_name="/chat")
    wait_for(job.outputs, 30, "the first token")
    job.cancel()
    wait_for(lambda: active_requests(space.engine_url) == 0, 30, "an idle engine")
    assert generated_tokens(space.engine_url) - before < 1500


# -- keys ------------------------------------------------------------------------------------------


def test_engine_needs_its_key_on_loopback(space):
    assert requests.get(f"{space.engine_url}/v1/models", timeout=5).status_code == 401
    engine_port = int(space.engine_url.rsplit(":", 1)[1])
    addresses = {
        connection.laddr.ip
        for process in space.program.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == "LISTEN" and connection.laddr.port == engine_port
    }
    assert addresses == {"127.0.0.1"}


def test_command_and_log_have_no_secrets(space):
    for process in space.program.processes():
        assert space.engine_key not in " ".join(process.cmdline())
    assert space.engine_key not in space.program.output
    assert os.environ.get("HF_TOKEN", "no token") not in space.program.output


def test_v1_needs_a_key_and_healthz_none(space):
    assert requests.get(f"{space.url}/healthz", timeout=5).json() == {"status": "ok"}
    assert requests.get(f"{space.url}/v1/models", timeout=5).status_code == 401


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase", [pytest.param("starting Python", marks=pytest.mark.release), "setting up"]
)
def test_sigterm_during_boot_leaves_nothing(space, program, phase):
    running = program([*START, "--port", str(free_port())], ENGINE_PORT=str(free_port()))
    wait_for(lambda: f"vLLM is {phase}" in running.output, 120, phase)
    running.check_sigterm()
