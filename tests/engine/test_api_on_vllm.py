"""The API on the Space's port, in front of real vLLM: the clients people use, the engine's own document, a fuzz run."""

import http.client
import json
import re
import socket
import subprocess

import anthropic
import hypothesis
import openai
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode

from support.programs import API_KEY, KEY, MODEL, TESTS, Space, active_requests, wait_for
from vllm_space.gateway import ALLOWED, TOKEN_FIELDS

QUESTION = "How do I use another model?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
# Fields with a number of tokens in their name that ask for none of the answer's.
NO_ANSWER_TOKENS = {"min_tokens", "thinking_token_budget", "truncate_prompt_tokens"}


@pytest.fixture(scope="module")
def client(space: Space) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{space.url}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def claude(space: Space) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=space.url, api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def answer(space: Space) -> str:
    """What the engine itself answers to QUESTION."""
    return direct(space, "/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"]


def direct(space: Space, path: str, body: object) -> requests.Response:
    return requests.post(space.engine_url + path, json=body, headers=space.auth, timeout=60)


def through(space: Space, path: str, body: object, **options) -> requests.Response:
    return requests.post(space.url + path, json=body, headers=KEY, timeout=60, **options)


# -- clients -------------------------------------------------------------------------------------------------


def test_openai_client_lists_chats_completes_and_responds(client, answer):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.chat.completions.create(**CHAT).choices[0].message.content == answer
    completion = client.completions.create(
        model=MODEL, prompt="This Space", temperature=0, max_tokens=8
    )
    assert completion.usage.completion_tokens <= 8
    assert completion.choices[0].text
    assert client.responses.create(model=MODEL, input=QUESTION, temperature=0).output_text == answer


def test_openai_client_streams(client, answer):
    chunks = list(
        client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    )
    assert len(chunks) > 10
    assert chunks[-1].usage.completion_tokens > 10
    events = list(client.responses.create(model=MODEL, input=QUESTION, temperature=0, stream=True))
    assert (
        "".join(one.delta for one in events if one.type == "response.output_text.delta") == answer
    )


def test_openai_client_gets_the_errors_of_the_engine_and_of_the_door(client):
    with pytest.raises(openai.NotFoundError):  # a model that generates text has no embeddings
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(**CHAT | {"model": "no-such-model"})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**CHAT | {"temperature": -1})
    with pytest.raises(openai.BadRequestError, match="at most 4096"):
        client.chat.completions.create(**CHAT, max_completion_tokens=4097)


def test_anthropic_client_talks_counts_and_streams(claude, answer):
    asked = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_tokens": 300,
        "extra_body": {"temperature": 0},
    }
    message = claude.messages.create(**asked)
    assert message.content[0].text == answer
    counted = claude.messages.count_tokens(model=MODEL, messages=MESSAGES)
    assert counted.input_tokens == message.usage.input_tokens
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == answer
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**asked | {"model": "no-such-model"})


def test_openai_javascript_client_does_the_same(space, node_modules, answer):
    script = node_modules / "client.mjs"  # beside node_modules, where imports are looked for
    script.write_text((TESTS / "support" / "openai_client.mjs").read_text())
    command = ["node", str(script), f"{space.url}/v1", API_KEY, QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["model"] == MODEL
    assert said["chat"] == said["streamed"] == said["response"] == answer
    assert said["completion"]
    assert said["tooMany"].startswith("BadRequestError: 400")
    assert said["embeddings"].startswith("NotFoundError: 404")
    assert said["wrongKey"].startswith("AuthenticationError: 401")


# -- byte for byte -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/chat/completions", CHAT | {"model": "no-such-model"}),
        ("/v1/chat/completions", CHAT | {"temperature": "hot"}),
        (
            "/v1/completions",
            {"model": MODEL, "prompt": "This Space", "temperature": 0, "logprobs": 2},
        ),
        (
            "/v1/messages",
            {"model": MODEL, "messages": MESSAGES, "max_tokens": 20, "temperature": 0},
        ),
        ("/v1/messages", {"model": MODEL}),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": MESSAGES}),
        ("/v1/embeddings", {"model": MODEL, "input": "x"}),
        ("/tokenize", {"model": MODEL, "prompt": QUESTION}),
        ("/detokenize", {"model": MODEL, "tokens": [300, 301, 302]}),
    ],
)
def test_an_answer_has_the_engines_own_bytes(space, path, body):
    def bytes_without_id(answer: requests.Response) -> bytes:
        return re.sub(rb'"(id|created)":("[^"]*"|\d+)', rb'"\1":0', answer.content)

    ours, theirs = through(space, path, body), direct(space, path, body)
    assert ours.status_code == theirs.status_code
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
    assert bytes_without_id(ours) == bytes_without_id(theirs)


# -- leaving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["in mid-stream", "before the first byte"])
def test_a_client_that_leaves_ends_the_engines_work(space, stream):
    wait_for(lambda: active_requests(space.engine_url) == 0, 30, "an idle engine")
    body = CHAT | {"max_tokens": 1900, "ignore_eos": True, "stream": stream}  # many seconds of work
    connection = http.client.HTTPConnection(space.url.removeprefix("http://"), timeout=30)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), KEY | {"Content-Type": "application/json"}
    )
    if stream:
        assert connection.getresponse().read(100)
    wait_for(lambda: active_requests(space.engine_url) == 1, 5, "the engine at work")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_for(lambda: active_requests(space.engine_url) == 0, 1, "the end of the engine's work")


# -- the engine's own document ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(space: Space) -> dict:
    return requests.get(f"{space.engine_url}/openapi.json", headers=space.auth, timeout=10).json()


def test_no_other_path_of_the_engine_is_open(space, document):
    others = {re.sub(r"{.*?}", "x", path) for path in document["paths"]} - ALLOWED.keys()
    assert len(others) > 10
    for path in others:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
            answer = requests.request(method, space.url + path, headers=KEY, json={}, timeout=10)
            assert answer.status_code in (404, 405), (method, path)
    assert {path for path in ALLOWED if path not in document["paths"]} <= {"/v1/embeddings"}


def test_every_field_that_asks_for_tokens_is_limited(document):
    schemas = document["components"]["schemas"]
    for path, method in ALLOWED.items():
        if method == "POST" and path in document["paths"]:
            body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"][
                "schema"
            ]
            names = [one["$ref"].rsplit("/", 1)[1] for one in body.get("anyOf", [body])]
            fields = {field for name in names for field in schemas[name]["properties"]}
            asking = {
                field
                for field in fields
                if re.fullmatch(r"(min|max|truncate|thinking)_.*token.*", field)
            }
            assert asking <= {*TOKEN_FIELDS, *NO_ANSWER_TOKENS}, path


OPERATIONS = [
    path for path, method in ALLOWED.items() if method == "POST" and path != "/v1/embeddings"
]


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value
)
@pytest.mark.parametrize("path", OPERATIONS)
def test_no_request_makes_the_door_fail_hang_or_tell_the_engines_key(space, document, path, mode):
    schema = schemathesis.openapi.from_dict(document)

    @hypothesis.given(case=schema[path]["post"].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def answers(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # short answers, and a model that is there
            case.body |= {
                name: 4
                for name in TOKEN_FIELDS
                if name in case.body or path != "/v1/chat/completions"
            }
            case.body |= {
                name: value for name, value in {"n": 1, "model": MODEL}.items() if name in case.body
            }
        ours = case.call(base_url=space.url, headers=KEY, timeout=60)
        assert space.engine_key not in ours.text + str(ours.headers)
        if ours.status_code >= 500:
            assert (
                case.call(base_url=space.engine_url, headers=space.auth, timeout=60).status_code
                == ours.status_code
            )

    answers()
    assert requests.get(f"{space.url}/healthz", timeout=5).ok
