"""Asks an engine again if an answer does not fit into its context: for one that does.

An engine refuses a longer answer than there is room for, and agents ask for 32,000 tokens and more,
whatever the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp

from vllm_space import api_request, errors, text_limit
from vllm_space.api_request import MAX_TOKENS_FIELDS, ApiRequest
from vllm_space.catalog import Catalog
from vllm_space.key_limits import KeyLimits
from vllm_space.server import Model, Server
from vllm_space.upstream import Busy, Call, Upstream

log = logging.getLogger(__name__)

CATALOG_WAIT = 2  # seconds to wait for a model's context length
ERROR_LIMIT = 64 * 2**10  # bytes of an engine's error that are read before it is passed on

# Fields that affect the length of the prompt, as /tokenize and count_tokens call them
CHAT_FIELDS = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "mm_processor_kwargs",
)
TEMPLATE_FIELDS = ("reasoning_effort", "documents")  # vLLM passes them on to the chat template
MESSAGES_FIELDS = ("model", "messages", "system", "tools", "tool_choice", "chat_template_kwargs")

# Numbers in the error messages of engines. A message can repeat what the client sent, so only its
# beginning is read, and the patterns are bounded.
MESSAGE_LIMIT = 1000  # characters
# "maximum context length is 4096 tokens", "max_model_len=4096"
CONTEXT = re.compile(r"(?:context (?:length|window|size)|max_model_len)\D{0,24}(\d{1,9})\b")
# OpenAI, SGLang: "you requested 5000 tokens (904 in the messages, 4096 in the completion)"
REQUESTED = re.compile(
    r"requested (?:a total of )?(\d{1,9}) tokens.{0,200}?\b(\d{1,9}) (?:tokens )?"
    r"(?:in|for) the completion",
    re.DOTALL,
)
# vLLM: "contains 904 input tokens". It only counts up to a limit: "at least 905", "bound for 905".
PROMPT = re.compile(r"(?<!at least )(?<!bound for )\b(\d{1,9}) input tokens")


class ContextFit:
    """Sends requests to engines, and once more where that can make the answer fit."""

    def __init__(self, upstream: Upstream, catalog: Catalog):
        self.upstream = upstream
        self.catalog = catalog
        self.models: list[Model] = []  # as they were when the catalog last had any

    async def model(self, server: Server, name: object) -> Model | None:
        """A server's model, by default the one with the longest context; None if unknown.

        Never waits long, whatever state the servers are in.
        """
        await self.refresh()
        models = [model for model in self.models if model.server == server]
        named = [model for model in models if model.name == name]
        return max(named or models, key=lambda model: model.context_length or 0, default=None)

    async def refresh(self) -> None:
        """List the models, but do not wait long for them."""
        loop = asyncio.get_running_loop()
        listing = loop.run_in_executor(None, self.catalog.models)
        try:
            self.models = await asyncio.wait_for(listing, CATALOG_WAIT) or self.models
        except asyncio.TimeoutError:
            log.warning("the models could not be listed within %d s", CATALOG_WAIT)

    @asynccontextmanager
    async def response(
        self, call: Call, parsed: ApiRequest | None, key: KeyLimits
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, bytes]]:
        """The engine's response, and the bytes that were already read from it.

        `parsed` is the body of the call. Raises Busy and aiohttp.ClientError.
        """
        async with await self.upstream.request(call) as response:
            if response.status != 400 or not parsed or not parsed.requested_tokens:
                yield response, b""
                return
            head = await read_head(response)
            changes = await self._changes(call, parsed, key, _message(response, head))
            if not changes:
                yield response, head
                return
        log.info("asking again for an answer that fits into the context: %s", changes)
        body = await key.compute(parsed.length, parsed.changed(changes).encode)
        async with await self.upstream.request(replace(call, body=body)) as response:
            yield response, b""

    async def _changes(
        self, call: Call, parsed: ApiRequest, key: KeyLimits, message: str | None
    ) -> dict[str, Any]:
        """The changes that make a refused answer fit into the context.

        There are none if they would not help. `message` is the engine's; None if it is unreadable.
        """
        if message is not None and not errors.is_about_context(message):
            return {}
        model = await self.model(call.server, parsed.fields.get("model"))
        context = model.context_length if model else None
        context = context or context_in(message or "")
        prompt = await self._prompt_tokens(call, parsed, key)
        if prompt is None:
            prompt = prompt_in(message or "")
        if context and prompt is not None:
            left = max(context - prompt, 1)  # with 1, the engine says that the prompt is too long
            return parsed.changes_to_lower(left) if left < parsed.requested_tokens else {}
        if parsed.path == "/v1/responses" and model and model.is_vllm:
            # Its prompts cannot be counted. vLLM then gives the answer the rest of the context.
            return dict.fromkeys(MAX_TOKENS_FIELDS[parsed.path])
        return {}

    async def _prompt_tokens(self, call: Call, parsed: ApiRequest, key: KeyLimits) -> int | None:
        """The number of tokens of the longest prompt, by the engine's count; None if unknown."""
        path, bodies = count_requests(parsed)
        tokens = token_ids(parsed)
        headers = {**call.headers, "accept-encoding": "identity"}
        for fields in bodies:
            body = await key.compute(parsed.length, partial(api_request.encode, fields))
            try:
                counting = self.upstream.request(Call(call.server, "POST", path, headers, body))
                async with await counting as response:
                    head = await read_head(response)
                if response.status == 400 and errors.is_about_context(str(head)):
                    return sys.maxsize  # vLLM does not count prompts that do not fit
                result = json.loads(head) if response.ok else {}
            except (Busy, aiohttp.ClientError, asyncio.TimeoutError, ValueError, RecursionError):
                return None
            if not isinstance(result, dict):
                return None
            number = result.get("count", result.get("input_tokens"))
            if not isinstance(number, int):
                return None
            tokens = max(tokens, number)
        return tokens or None


def count_requests(parsed: ApiRequest) -> tuple[str, list[dict[str, Any]]]:
    """The engine's path that counts the tokens of a prompt, and a request for each prompt.

    There is none if the engine cannot count them.
    """
    fields = parsed.fields
    if parsed.path == "/v1/messages":
        return "/v1/messages/count_tokens", [_pick(fields, MESSAGES_FIELDS)]
    if parsed.path == "/v1/chat/completions":
        template = _pick(fields, TEMPLATE_FIELDS)
        thinking: dict[str, Any] = {}
        if effort := template.get("reasoning_effort"):
            thinking["enable_thinking"] = effort != "none"
        known = fields.get("chat_template_kwargs")
        arguments = thinking | (known if isinstance(known, dict) else {}) | template
        return "/tokenize", [_pick(fields, CHAT_FIELDS) | {"chat_template_kwargs": arguments}]
    if parsed.path == "/v1/completions":
        prompts = fields["prompt"] if text_limit.is_batch(fields, "prompt") else []
        prompts = prompts or [fields.get("prompt")]
        body = _pick(fields, ("model", "add_special_tokens"))
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        return "/tokenize", [body | {"prompt": text} for text in texts]
    return "", []


def token_ids(parsed: ApiRequest) -> int:
    """The number of tokens of the longest prompt that is given as token ids, or 0."""
    prompt = parsed.fields.get("prompt")
    if parsed.path != "/v1/completions" or not isinstance(prompt, list):
        return 0
    prompts = prompt if text_limit.is_batch(parsed.fields, "prompt") else [prompt]
    return max((len(ids) for ids in prompts if isinstance(ids, list)), default=0)


def context_in(message: str) -> int | None:
    """The context length named in an engine's error, in tokens."""
    match = CONTEXT.search(message[:MESSAGE_LIMIT])
    return int(match[1]) if match else None


def prompt_in(message: str) -> int | None:
    """The exact number of the prompt's tokens in an engine's error, if it can be told from it."""
    message = message[:MESSAGE_LIMIT]
    if match := REQUESTED.search(message):
        return int(match[1]) - int(match[2])
    match = PROMPT.search(message)
    return int(match[1]) if match else None


def _pick(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


async def read_head(response: aiohttp.ClientResponse) -> bytes:
    """The first ERROR_LIMIT bytes of a response, or all of it."""
    head = bytearray()
    while len(head) < ERROR_LIMIT and (data := await response.content.readany()):
        head += data
    return bytes(head)


def _message(response: aiohttp.ClientResponse, head: bytes) -> str | None:
    """The text of an error response, unless it is compressed."""
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    return head.decode(errors="replace") if is_plain else None
