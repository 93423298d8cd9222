"""The API gateway in front of a real vLLM: official clients, identical bytes, and a fuzz test."""

import http.client
import json
import re
import socket
import subprocess
import time

import anthropic
import hypothesis
import openai
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode

from support.programs import (
    API_KEY,
    KEY,
    MODEL,
    TESTS,
    Space,
    active_requests,
    generated_tokens,
    wait_for,
)
from vllm_space.api_paths import ENDPOINTS
from vllm_space.api_request import MAX_TOKENS_FIELDS, TOKEN_FIELDS

QUESTION = "How do I use another model?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
# Fields that look like limits on the answer's tokens but are none
OTHER_TOKEN_FIELDS = {"min_tokens", "thinking_token_budget", "truncate_prompt_tokens"}
HTTP_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def client(space: Space) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{space.url}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def claude(space: Space) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=space.url, api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def answer(space: Space) -> str:
    """The engine's own answer to QUESTION."""
    response = post_to_engine(space, "/v1/chat/completions", CHAT)
    return response.json()["choices"][0]["message"]["content"]


def post_to_engine(space: Space, path: str, body: object) -> requests.Response:
    return requests.post(space.engine_url + path, json=body, headers=space.auth, timeout=60)


def post_to_gateway(space: Space, path: str, body: object) -> requests.Response:
    return requests.post(space.url + path, json=body, headers=KEY, timeout=60)


# -- clients ---------------------------------------------------------------------------------------


def test_openai_client_gets_answers(client, answer):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.chat.completions.create(**CHAT).choices[0].message.content == answer
    completion = client.completions.create(
        model=MODEL, prompt="This Space", temperature=0, max_tokens=8
    )
    assert completion.usage.completion_tokens <= 8
    assert completion.choices[0].text
    assert client.responses.create(model=MODEL, input=QUESTION, temperature=0).output_text == answer


def test_openai_client_streams_answers(client, answer):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**CHAT, **options))
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == answer
    assert len(chunks) > 10
    assert chunks[-1].usage.completion_tokens > 10
    events = client.responses.create(model=MODEL, input=QUESTION, temperature=0, stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer


def test_openai_client_raises_its_errors(client):
    with pytest.raises(openai.NotFoundError):  # a generative model has no embeddings
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(**CHAT | {"model": "no-such-model"})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**CHAT | {"temperature": -1})
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens must be a number"):
        client.chat.completions.create(**CHAT, max_completion_tokens=-1)


def test_anthropic_client_gets_answers(claude, answer):
    request = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_tokens": 300,
        "extra_body": {"temperature": 0},
    }
    message = claude.messages.create(**request)
    assert message.content[0].text == answer
    count = claude.messages.count_tokens(model=MODEL, messages=MESSAGES)
    assert count.input_tokens == message.usage.input_tokens
    with claude.messages.stream(**request) as stream:
        assert "".join(stream.text_stream) == answer
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**request | {"model": "no-such-model"})


def test_javascript_client_gets_answers(space, node_modules, answer):
    script = node_modules / "client.mjs"  # imports are resolved from the script's folder
    script.write_text((TESTS / "support" / "openai_client.mjs").read_text())
    command = ["node", str(script), f"{space.url}/v1", API_KEY, QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["model"] == MODEL
    assert answers["chat"] == answers["streamed"] == answers["response"] == answer
    assert answers["completion"]
    assert answers["tooMany"] == "none"  # more than fits: it got what is left
    assert answers["embeddings"].startswith("NotFoundError: 404")
    assert answers["wrongKey"].startswith("AuthenticationError: 401")


# -- answers that do not fit into the context ------------------------------------------------------

CONTEXT = 2048  # tokens, of the demo model
PROMPTS = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": QUESTION},
    "/v1/responses": {"input": [{"role": "user", "content": QUESTION}], "instructions": "Be kind."},
    "/v1/messages": {"messages": MESSAGES, "system": "Be kind."},
}


@pytest.mark.parametrize("asked", [2045, 16384, 32000, 128000], ids=str)
@pytest.mark.parametrize("path", PROMPTS)
def test_long_answers_end_with_the_context(space, path, asked):
    """They get all that is left, as the counts of the answers show."""
    body = {"model": MODEL, "ignore_eos": True, "temperature": 0, **PROMPTS[path]}
    body[MAX_TOKENS_FIELDS[path][-1]] = asked
    assert post_to_engine(space, path, body).status_code == 400
    if path == "/v1/messages":  # has no ignore_eos
        assert post_to_gateway(space, path, body).json()["content"][0]["text"]
        return
    response = post_to_gateway(space, path, body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["total_tokens"] == CONTEXT


@pytest.mark.parametrize("path", PROMPTS)
def test_long_answers_are_streamed(space, path):
    body = {"model": MODEL, "stream": True, **PROMPTS[path], MAX_TOKENS_FIELDS[path][0]: 32000}
    response = post_to_gateway(space, path, body)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.text.count("data: ") > 5


@pytest.mark.parametrize("path", PROMPTS)
def test_long_prompts_get_the_engines_error(space, path):
    long = "word " * 3000
    prompts = {
        "messages": [{"role": "user", "content": long}],
        "prompt": long,
        "input": long,
    }
    prompt = {name: prompts[name] for name in PROMPTS[path].keys() & prompts.keys()}
    response = post_to_gateway(
        space, path, {"model": MODEL, **prompt, MAX_TOKENS_FIELDS[path][0]: 50}
    )
    assert response.status_code == 400
    assert "maximum context length is 2048" in response.text


def test_huge_texts_hold_nobody_up(space):
    """vLLM tokenizes 4 MB for many seconds, in which nobody else is answered."""
    text = "x " * 2_000_000
    for path, body in (
        ("/tokenize", {"prompt": text}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": text}]}),
    ):
        assert post_to_gateway(space, path, {"model": MODEL, **body}).status_code == 413
    started_at = time.monotonic()
    assert post_to_gateway(space, "/v1/completions", COMPLETION | {"max_tokens": 3}).ok
    assert time.monotonic() - started_at < 5


# -- identical bytes -------------------------------------------------------------------------------

MESSAGE = {"model": MODEL, "messages": MESSAGES}
COMPLETION = {"model": MODEL, "prompt": "This Space", "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/chat/completions", CHAT | {"model": "no-such-model"}),
        ("/v1/chat/completions", CHAT | {"temperature": "hot"}),
        ("/v1/completions", COMPLETION | {"logprobs": 2}),
        ("/v1/messages", MESSAGE | {"max_tokens": 20, "temperature": 0}),
        ("/v1/messages/count_tokens", MESSAGE),
        ("/tokenize", {"model": MODEL, "prompt": QUESTION}),
        ("/detokenize", {"model": MODEL, "tokens": [300, 301, 302]}),
    ],
)
def test_responses_are_passed_unchanged(space, path, body):
    def without_id(response: requests.Response) -> bytes:
        return re.sub(rb'"(id|created)":("[^"]*"|\d+)', rb'"\1":0', response.content)

    ours, theirs = post_to_gateway(space, path, body), post_to_engine(space, path, body)
    assert ours.status_code == theirs.status_code
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
    assert without_id(ours) == without_id(theirs)


# -- disconnecting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["in mid-stream", "before the first byte"])
def test_disconnecting_frees_the_engine(space, stream):
    wait_for(lambda: active_requests(space.engine_url) == 0, 30, "an idle engine")
    before = generated_tokens(space.engine_url)
    body = CHAT | {"max_tokens": 1900, "ignore_eos": True, "stream": stream}
    connection = http.client.HTTPConnection(space.url.removeprefix("http://"), timeout=30)
    headers = KEY | {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    if stream:
        assert connection.getresponse().read(100)
    wait_for(lambda: active_requests(space.engine_url) == 1, 30, "a request at the engine")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_for(lambda: active_requests(space.engine_url) == 0, 30, "an idle engine")
    assert generated_tokens(space.engine_url) - before < 1900


# -- the engine's OpenAPI schema -------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema(space: Space) -> dict:
    return requests.get(f"{space.engine_url}/openapi.json", headers=space.auth, timeout=10).json()


def test_other_errors_get_the_clients_format(space):
    missing = post_to_gateway(space, "/v1/embeddings", {"model": MODEL, "input": "x"})
    assert missing.status_code == 404
    message = missing.json()["error"]["message"]
    assert message == "The model server does not offer /v1/embeddings."
    invalid = post_to_gateway(space, "/v1/messages", {"model": MODEL})
    assert (invalid.status_code, invalid.json()["type"]) == (400, "error")
    model = requests.get(f"{space.url}/v1/models/{MODEL}", headers=KEY, timeout=5).json()
    assert model["id"] == model["root"] == MODEL
    assert requests.get(f"{space.url}/version", headers=KEY, timeout=5).json()["version"]


def test_other_engine_paths_are_blocked(space, schema):
    others = {re.sub(r"{.*?}", "x", path) for path in schema["paths"]} - ENDPOINTS.keys()
    others -= {"/health"}  # answered as /healthz
    assert len(others) > 10
    for path in others:
        for method in HTTP_METHODS:
            response = requests.request(method, space.url + path, headers=KEY, json={}, timeout=10)
            assert response.status_code in (404, 405), (method, path)
    assert ENDPOINTS.keys() - schema["paths"].keys() <= {"/v1/embeddings"}


def test_every_token_field_is_limited(schema):
    models = schema["components"]["schemas"]
    for path, method in ENDPOINTS.items():
        if method == "POST" and path in schema["paths"]:
            content = schema["paths"][path]["post"]["requestBody"]["content"]
            body = content["application/json"]["schema"]
            names = [option["$ref"].rsplit("/", 1)[1] for option in body.get("anyOf", [body])]
            fields = {field for name in names for field in models[name]["properties"]}
            pattern = r"(min|max|truncate|thinking)_.*token.*"
            token_fields = {field for field in fields if re.fullmatch(pattern, field)}
            assert token_fields <= {*TOKEN_FIELDS, *OTHER_TOKEN_FIELDS}, path


FUZZED = [path for path, method in ENDPOINTS.items() if method == "POST"]
FUZZED.remove("/v1/embeddings")  # a generative model has none


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", FUZZED)
def test_fuzzed_requests_are_answered(space, schema, path, mode):
    """The gateway neither fails nor hangs, and never reveals the engine's key."""
    operation = schemathesis.openapi.from_dict(schema)[path]["post"]

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # ask the existing model for one short answer
            values = {"n": 1, "model": MODEL}
            case.body |= {name: value for name, value in values.items() if name in case.body}
            case.body |= dict.fromkeys(TOKEN_FIELDS, 4)
        ours = case.call(base_url=space.url, headers=KEY, timeout=60)
        assert space.engine_key not in ours.text + str(ours.headers)
        if ours.status_code >= 500:
            theirs = case.call(base_url=space.engine_url, headers=space.auth, timeout=60)
            assert theirs.status_code == ours.status_code

    check()
    assert requests.get(f"{space.url}/healthz", timeout=5).ok
