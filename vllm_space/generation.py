"""The one path from a request to an answer: validate it, fit it to the context, count it for its visitor, stream it.

Every tab of the page, the endpoints /chat and /complete and their MCP tools go this way. Knows nothing of Gradio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_space import client, errors, sampling
from vllm_space.catalog import Catalog
from vllm_space.client import Message, Model, Stream
from vllm_space.settings import Settings
from vllm_space.streaming import Answer, Streams

TEMPLATE_ROOM = 512  # tokens that a chat template may add to what a visitor wrote


@dataclass(frozen=True)
class Request:
    """What a visitor asks of a model.

    `prompt` is a conversation to answer, without its system prompt, or a text to continue. `model` is a label or a
    name; empty means the first. `sampling` holds the parameters as the visitor gave them, by name; None and "" are
    unset.
    """

    prompt: str | list[Message]
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str = ""


class Generation:
    """All answers of this Space's page."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        # A quarter of the slots for one visitor, with ten tabs or not; a comparison alone takes four.
        self.streams = Streams(per_visitor=max(4, config.max_concurrency // 4))

    def answer(self, request: Request, visitor: str) -> Iterator[Answer]:
        """Yield the growing answer, the same object each time. Raises nothing: what goes wrong becomes its `error`."""
        for answers in self.answers([request], visitor):
            yield answers[0]

    def answers(self, requests: list[Request], visitor: str) -> Iterator[list[Answer]]:
        """Yield the growing answers to several requests that run at the same time. Otherwise as `answer`."""
        answers = [Answer(verbatim=isinstance(request.prompt, str)) for request in requests]
        streams = []
        for request, answer in zip(requests, answers, strict=True):
            try:
                streams.append((self.stream(request), answer))
            except errors.SpaceError as error:
                answer.fail(error)
        if not streams:
            yield answers
            return
        for _ in self.streams.follow(streams, visitor):
            yield answers

    def stream(self, request: Request) -> Stream:
        """The request, validated and fitted to the context, about to be sent. Raises SpaceError."""
        model = self.catalog.find(request.model)
        fields = sampling.request_fields(request.sampling, self.config.max_tokens_limit)
        if isinstance(request.prompt, str):
            return client.complete(model, request.prompt, _fitted(model, request.prompt, fields))
        _check(request)
        messages = [*system_message(request.system_prompt), *request.prompt]
        return client.chat(model, messages, _fitted(model, messages, fields))


def system_message(system_prompt: str) -> list[Message]:
    """What is sent to the engine in front of a conversation; no message if there is no system prompt.

    Only the engine gets it. A saved conversation holds the visitor's own system prompt (page/conversation.py).
    """
    return [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []


def _check(request: Request) -> None:
    """Raise Rejected if a request, which may come from any program, is no conversation."""
    if not isinstance(request.prompt, list) or not isinstance(request.system_prompt, str):
        raise errors.malformed_request()
    for message in request.prompt:
        content = message.get("content")
        is_content = isinstance(content, str) or (
            isinstance(content, list) and all(map(_is_part, content))
        )
        if message.get("role") not in ("user", "assistant") or not is_content:
            raise errors.bad_message()


def _is_part(part: Any) -> bool:
    """Whether that is a text or an image of OpenAI's typed parts."""
    if not isinstance(part, dict):
        return False
    image = part.get("image_url")
    return isinstance(part.get("text"), str) or (
        isinstance(image, dict) and isinstance(image.get("url"), str)
    )


def _fitted(model: Model, prompt: str | list[Message], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, with max_tokens lowered to what is left of the context.

    Raises Rejected, with the numbers, if nothing is left. A token is at least one byte, so most prompts need no
    counting.
    """
    context = model.context_length
    texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if (
        not context
        or model.protocol != "openai"
        or size + TEMPLATE_ROOM + fields["max_tokens"] <= context
    ):
        return fields
    count = client.count_tokens(model, prompt)
    if count is None:
        return fields
    if count >= context:
        raise errors.too_long("text" if isinstance(prompt, str) else "conversation", count, context)
    return fields | {"max_tokens": min(fields["max_tokens"], context - count)}
