"""The size of a request's text, and what is read from requests and an engine's refusals."""

import json
import time

import pytest

from vllm_space import context_fit, text_limit
from vllm_space.api_error import ApiError
from vllm_space.api_request import ApiRequest


def parse(path: str, **fields: object) -> ApiRequest:
    return ApiRequest.parse(path, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("body", "characters"),
    [
        ({"prompt": "\U0001f600" * 100}, 100),
        ({"prompt": ["x" * 100, "y" * 50]}, 100),
        ({"prompt": [1] * 100}, 700),
        ({"prompt": [[1] * 100, [1] * 50]}, 700),
        ({"tools": [""] * 100}, 700),
        ({"input": "x" * 100, "instructions": "y" * 50}, 150),
        ({"tools": [[]] * 100}, 700),
        ({"tools": [{"": None}] * 100}, 2100),
        ({"tools": [10**3000]}, 3000),
        ({"logit_bias": {"x" * 100: 1}}, 100),
    ],
)
def test_all_text_of_a_request_counts(body, characters):
    size = text_limit.measure(body)
    assert characters <= size.characters <= characters * 1.15 + 50
    assert size.utf8_bytes >= size.characters // 2


def test_deep_nesting_is_measured():
    body = {"tools": "x" * 100}
    for _ in range(100_000):
        body = {"tools": [body]}
    assert text_limit.measure(body).characters > 100_000


def test_prompts_are_counted_like_answers():
    """With what the engine would put into the chat template of the answer itself."""
    request = parse(
        "/v1/chat/completions",
        model="m",
        messages=[{"role": "user", "content": "Hi"}],
        tools=[{"type": "function"}],
        chat_template_kwargs={"x": 1, "reasoning_effort": "high"},
        reasoning_effort="low",
        max_tokens=32000,
        stream=True,
    )
    path, (body,) = context_fit.count_requests(request)
    assert path == "/tokenize"
    assert body.keys() == {"model", "messages", "tools", "chat_template_kwargs"}
    assert body["chat_template_kwargs"] == {
        "x": 1,
        "reasoning_effort": "low",
        "enable_thinking": True,
    }


def test_each_prompt_of_a_batch_is_counted():
    request = parse("/v1/completions", prompt=["a", "b"], add_special_tokens=False)
    _, bodies = context_fit.count_requests(request)
    assert [body["prompt"] for body in bodies] == ["a", "b"]
    assert not any(body["add_special_tokens"] for body in bodies)
    request = parse("/v1/completions", prompt=[[1, 2], [1, 2, 3]])
    assert context_fit.count_requests(request) == ("/tokenize", [])
    assert context_fit.token_ids(request) == 3


def test_cut_off_counts_are_not_believed():
    """vLLM stops counting where a prompt exceeds what it may have."""
    for message in (
        "you requested 50 output tokens and your prompt contains at least 4047 input tokens",
        "characters, which is the upper bound for 4046 input tokens). Please reduce",
    ):
        assert context_fit.prompt_in(message) is None


@pytest.mark.parametrize("body", ['{"a": 1e999}', '{"a": ' + "[" * 2000 + "]" * 2000 + "}"])
def test_unwritable_requests_are_rejected(body):
    with pytest.raises(ApiError) as error:
        ApiRequest.parse("/v1/completions", body.encode()).changed({"model": "m"}).encode()
    assert error.value.status == 400


@pytest.mark.parametrize(
    "message",
    [
        "context " + "requested 1 tokens " * 30 + "1" * 5000,
        "context length " + "1" * 60_000 + " input tokens",
        "1 input tokens" * 5000,
    ],
)
def test_numbers_in_errors_are_read_quickly(message):
    began = time.process_time()
    context_fit.prompt_in(message)
    context_fit.context_in(message)
    assert time.process_time() - began < 0.5
