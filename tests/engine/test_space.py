"""The main job on the real thing: ./start.sh, vLLM, the demo model, and the clients people use."""

import os
import time

import gradio_client
import pytest
import requests

from support.programs import DEMO_MODEL, MODEL, START, Space, active_requests, free_port, wait_for

QUESTION = "How do I use another model?"


@pytest.fixture(scope="module")
def client(space: Space) -> gradio_client.Client:
    return gradio_client.Client(space.url, verbose=False)


def greedy_from_transformers(messages: list[dict], max_tokens: int) -> str:
    """The same weights under transformers: the independent reference."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.bfloat16).eval()
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_log_tells_the_phases_and_the_time(space):
    output = space.program.output
    assert "vLLM is starting Python (" in output
    assert "vLLM is ready after" in output


def test_a_chat_is_answered_as_transformers_answers_it(client):
    answer = client.predict(QUESTION, temperature=0, api_name="/chat")
    assert "MODEL_ID" in answer
    assert answer == greedy_from_transformers([{"role": "user", "content": QUESTION}], 300)


def test_an_answer_streams(client):
    job = client.submit(
        "Explain step by step how to deploy this Space.", temperature=0, api_name="/chat"
    )
    final = job.result(timeout=60)
    growing = job.outputs()
    assert len(set(growing)) > 1  # how many depends on how busy this machine is
    assert all(final.startswith(text) for text in growing)


def test_history_and_system_prompt_reach_the_model(client, space):
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    answer = client.predict(
        QUESTION, history=history, system_prompt="Be brief.", temperature=0, api_name="/chat"
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        *history,
        {"role": "user", "content": QUESTION},
    ]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 1024}
    direct = requests.post(
        f"{space.engine_url}/v1/chat/completions", json=body, headers=space.auth, timeout=60
    ).json()
    assert answer == direct["choices"][0]["message"]["content"]


def test_completion_continues_the_text(client, space):
    prompt = "This Space"
    answer = client.predict(prompt, temperature=0, max_tokens=20, api_name="/complete")
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 20}
    direct = requests.post(
        f"{space.engine_url}/v1/completions", json=body, headers=space.auth, timeout=60
    ).json()
    assert answer == direct["choices"][0]["text"]


@pytest.mark.parametrize("name", ["/chat", "/complete"])
def test_a_small_context_is_no_obstacle(client, space, name):
    """More tokens are asked for than the context holds: what is left of it is used, as in the Chat tab."""
    prompt = "This Space " * 300
    answer = client.predict(prompt, temperature=0, max_tokens=4000, api_name=name)
    fields = {"model": "vllm-space-demo", "temperature": 0}
    if name == "/chat":
        path, fields["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
    else:
        path, fields["prompt"] = "/v1/completions", prompt
        fields["max_tokens"] = 1400  # its default is 16
    direct = requests.post(
        space.engine_url + path, json=fields, headers=space.auth, timeout=60
    ).json()["choices"][0]
    expected = direct["message"]["content"] if name == "/chat" else direct["text"]
    assert answer[:200] == expected[:200]
    assert answer


def test_sampling_parameters_are_really_applied(client):
    def ask(**sampling) -> str:
        return client.predict("Tell me everything about this Space.", api_name="/chat", **sampling)

    assert ask(temperature=0) == ask(temperature=0)
    assert ask(temperature=2, seed=7, max_tokens=40) == ask(temperature=2, seed=7, max_tokens=40)
    assert ask(temperature=2, seed=7, max_tokens=40) != ask(temperature=2, seed=8, max_tokens=40)
    assert len(ask(temperature=0, max_tokens=5)) < 60
    full = ask(temperature=0)
    word = full.split()[8]
    assert ask(temperature=0, stop=word) == full[: full.index(word)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": 9}, "temperature=9 is not allowed: use a number from 0 to 2."),
        ({"max_tokens": 10**9}, "use at most 4096"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"history": [{"role": "king", "content": "x"}]}, "Each message in the history"),
        ({"message": "word " * 5000}, "the model's context length is 2,048, including the answer"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(client, fields, says):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(**{"message": "Hi", **fields}, api_name="/chat")
    assert says in str(caught.value)


def test_the_engine_stops_when_the_client_leaves(client, space):
    job = client.submit(
        "Tell me everything about this Space.", temperature=1, max_tokens=1500, api_name="/chat"
    )
    while not job.outputs():
        time.sleep(0.02)
    job.cancel()

    wait_for(lambda: active_requests(space.engine_url) == 0, 5, "the end of the generation")


def test_the_engine_is_reached_through_its_key_and_on_loopback_only(space):
    assert requests.get(f"{space.engine_url}/v1/models", timeout=5).status_code == 401
    engine_port = int(space.engine_url.rsplit(":", 1)[1])
    listening = {
        one.laddr.ip
        for process in space.program.family()
        for one in process.net_connections(kind="tcp")
        if one.status == "LISTEN" and one.laddr.port == engine_port
    }
    assert listening == {"127.0.0.1"}


def test_no_secret_is_in_a_command_line_or_the_log(space):
    for process in space.program.family():
        assert space.engine_key not in " ".join(process.cmdline())
    assert space.engine_key not in space.program.output
    assert os.environ.get("HF_TOKEN", "no token") not in space.program.output


def test_healthz_needs_no_key_and_v1_does(space):
    assert requests.get(f"{space.url}/healthz", timeout=5).json() == {"status": "ok"}
    assert requests.get(f"{space.url}/v1/models", timeout=5).status_code == 401


@pytest.mark.parametrize("phase", ["starting Python", "setting up"])
def test_a_signal_while_vllm_starts_leaves_nothing(space, program, phase):
    ports = ["--port", str(free_port())]
    running = program([*START, *ports], ENGINE_PORT=str(free_port()))
    wait_for(lambda: f"vLLM is {phase}" in running.output, 120, phase)
    running.check_clean_end()
