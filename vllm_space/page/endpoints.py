"""What the page offers to programs: the Gradio endpoints /chat and /complete, also as MCP tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import api

from vllm_space import errors, sampling
from vllm_space.client import Message
from vllm_space.generation import Request
from vllm_space.page.controls import Controls
from vllm_space.page.events import GENERATION, streaming
from vllm_space.streaming import Answer

PARAMETERS = ("max_tokens", "temperature", "top_p", "stop", "seed")  # that programs can set


def add_endpoints(controls: Controls) -> None:
    """Add /chat and /complete to the page that is being built.

    Their docstrings are the descriptions that MCP clients show to models.
    """
    defaults = sampling.defaults(controls.config)
    default_system_prompt = controls.config.system_prompt

    def texts(request: gr.Request, generation: Request) -> Iterator[str]:
        answer = Answer()
        for answer in controls.generation.answer(generation, controls.visitor(request)):
            yield answer.text
        if answer.error:
            raise errors.SpaceError(answer.error)

    def with_defaults(*values: Any) -> dict[str, Any]:
        return defaults | dict(zip(PARAMETERS, values, strict=True))

    @streaming
    def chat(
        request: gr.Request,
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str = default_system_prompt,
        model: str = "",
        max_tokens: float | None = defaults["max_tokens"],
        temperature: float | None = defaults["temperature"],
        top_p: float | None = defaults["top_p"],
        stop: str | None = defaults["stop"],
        seed: float | None = defaults["seed"],
    ) -> Iterator[str]:
        """
        Answer a message with this Space's language model.

        Parameters:
            message: the message to answer
            history: earlier messages, each {"role": "user" or "assistant", "content": text}
            system_prompt: instructions for the whole conversation
            model: name of the model; empty for the first one
            max_tokens: maximum length of the answer in tokens
            temperature: 0 always gives the same answer; null for the model's default
            top_p: probability mass of the tokens to sample from; null for the model's default
            stop: stop sequences, one per line; the answer ends before any of them
            seed: the same seed gives the same sample
        Returns:
            the answer so far; the last value is the whole answer
        """
        parameters = with_defaults(max_tokens, temperature, top_p, stop, seed)
        messages = [*_messages(history or []), {"role": "user", "content": message}]
        yield from texts(request, Request(messages, model, parameters, system_prompt))

    @streaming
    def complete(
        request: gr.Request,
        prompt: str,
        model: str = "",
        max_tokens: float | None = defaults["max_tokens"],
        temperature: float | None = defaults["temperature"],
        top_p: float | None = defaults["top_p"],
        stop: str | None = defaults["stop"],
        seed: float | None = defaults["seed"],
    ) -> Iterator[str]:
        """
        Continue a text with this Space's language model.

        Parameters:
            prompt: the text to continue
            model: name of the model; empty for the first one
            max_tokens: maximum length of the continuation in tokens
            temperature: 0 always gives the same text; null for the model's default
            top_p: probability mass of the tokens to sample from; null for the model's default
            stop: stop sequences, one per line; the text ends before any of them
            seed: the same seed gives the same sample
        Returns:
            the continuation so far, without the prompt; the last value is all of it
        """
        parameters = with_defaults(max_tokens, temperature, top_p, stop, seed)
        yield from texts(request, Request(prompt, model, parameters))

    for endpoint in (chat, complete):
        api(
            endpoint,
            concurrency_limit=controls.config.max_concurrency,
            concurrency_id=GENERATION,
        )


def _messages(history: Any) -> list[Message]:
    """Earlier messages sent by a program, reduced to what an engine needs.

    Raises Rejected if they are not messages.
    """
    if not isinstance(history, list) or not all(isinstance(message, dict) for message in history):
        raise errors.bad_message()
    return [{"role": message.get("role"), "content": message.get("content")} for message in history]
