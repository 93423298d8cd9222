"""What the page offers to programs: the Gradio endpoints /chat and /complete, which are MCP tools too."""

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


def add_endpoints(controls: Controls) -> None:
    """Add /chat and /complete to the page that is being built."""
    defaults = sampling.defaults(controls.config)
    owner_system_prompt = controls.config.system_prompt

    def texts(request: gr.Request, asked: Request) -> Iterator[str]:
        answer = Answer()
        for answer in controls.generation.answer(asked, controls.visitor(request)):
            yield answer.text
        if answer.error:
            raise errors.SpaceError(answer.error)

    @streaming
    def chat(
        request: gr.Request,
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str = owner_system_prompt,
        model: str = "",
        max_tokens: float | None = defaults["max_tokens"],
        temperature: float | None = defaults["temperature"],
        top_p: float | None = defaults["top_p"],
        stop: str | None = defaults["stop"],
        seed: float | None = defaults["seed"],
    ) -> Iterator[str]:
        """
        Answer a message with the language model of this Space.

        Parameters:
            message: what to ask
            history: earlier messages, each {"role": "user" or "assistant", "content": text}
            system_prompt: instruction before the conversation
            model: name of the model; empty for the first
            max_tokens: the most tokens the answer may have
            temperature: 0 is the same answer every time, higher is more varied; null for the model's own
            top_p: share of the likeliest tokens to sample from; null for the model's own
            stop: the answer ends before any of these, one a line
            seed: the same seed repeats the same sample
        Returns:
            the answer so far, growing until it is complete
        """
        values = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
        }
        turns = [*_turns(history or []), {"role": "user", "content": message}]
        yield from texts(request, Request(turns, model, defaults | values, system_prompt))

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
        Continue a text with the language model of this Space.

        Parameters:
            prompt: the text to continue
            model: name of the model; empty for the first
            max_tokens: the most tokens the continuation may have
            temperature: 0 is the same text every time, higher is more varied; null for the model's own
            top_p: share of the likeliest tokens to sample from; null for the model's own
            stop: the text ends before any of these, one a line
            seed: the same seed repeats the same sample
        Returns:
            the continuation so far, without the prompt, growing until it is complete
        """
        values = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
        }
        yield from texts(request, Request(prompt, model, defaults | values))

    for endpoint in (chat, complete):
        api(endpoint, concurrency_limit=controls.config.max_concurrency, concurrency_id=GENERATION)


def _turns(history: Any) -> list[Message]:
    """Earlier messages that a program sent, without what an engine does not need. Raises Rejected if they are none."""
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise errors.bad_message()
    return [{"role": each.get("role"), "content": each.get("content")} for each in history]
