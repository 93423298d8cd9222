"""The path from a request to its answer: validate, fit to the context, limit per visitor, stream.

The page's tabs, the endpoints /chat and /complete and their MCP tools all use it. Knows nothing of
Gradio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_space import client, errors, sampling, text_limit, tokenizer
from vllm_space.catalog import Catalog
from vllm_space.client import Message, Stream
from vllm_space.server import Model
from vllm_space.settings import Settings
from vllm_space.streaming import Answer, Streams

TEMPLATE_MARGIN = 512  # tokens that a chat template may add to the messages


@dataclass(frozen=True)
class Request:
    """A visitor's request to a model.

    `prompt` is either a conversation to answer, without its system prompt, or a text to continue.
    `model` is a label or a name; empty means the first model. `sampling` holds unvalidated
    parameters by name; None and "" are unset.
    """

    prompt: str | list[Message]
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str = ""


class Generation:
    """Generates the answers of this Space's page."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        # One visitor gets at most a quarter of the slots, but at least the four of a comparison.
        self.streams = Streams(max(4, config.max_concurrency // 4), config.max_concurrency)

    def answer(self, request: Request, visitor: str) -> Iterator[Answer]:
        """Yield the growing answer, the same object each time. Failures end up in its `error`."""
        for answers in self.answers([request], visitor):
            yield answers[0]

    def answers(self, requests: list[Request], visitor: str) -> Iterator[list[Answer]]:
        """Like `answer`, for several concurrent requests. If one fails, the others go on."""
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
        """A stream for the request, validated and fitted to the context. Raises SpaceError."""
        fields = sampling.request_fields(request.sampling, self.config.max_tokens_limit)
        if isinstance(request.prompt, str):
            model = self._model(request, {"prompt": request.prompt} | fields)
            fields = _fit_to_context(model, request.prompt, fields)
            return client.complete(model, request.prompt, fields)
        _check(request)
        messages = [*system_message(request.system_prompt), *alternating(request.prompt)]
        model = self._model(request, {"messages": messages} | fields)
        return client.chat(model, messages, _fit_to_context(model, messages, fields))

    def _model(self, request: Request, body: dict[str, Any]) -> Model:
        """The model of a request. Raises SpaceError, also if the body has too much text for it."""
        size = text_limit.measure(body)
        text_limit.check_bytes(size)
        model = self.catalog.find(request.model)
        name = "text" if isinstance(request.prompt, str) else "conversation"
        text_limit.check_context(size, model.context_length, name)
        return model


def system_message(system_prompt: str) -> list[Message]:
    """The messages sent to the engine before a conversation: the system prompt, unless it is empty.

    They are not part of the saved conversation, which stores the visitor's system prompt itself
    (page/conversation.py).
    """
    return [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []


def alternating(messages: list[Message]) -> list[Message]:
    """The messages with those of the same role, one after the other, joined into one.

    Many chat templates demand that roles alternate. After a question that got no answer, or an
    empty one, they do not.
    """
    joined: list[Message] = []
    for message in messages:
        if message["role"] == "assistant" and not message["content"]:
            continue
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = message | {"content": _join(joined[-1]["content"], message["content"])}
        else:
            joined.append(message)
    return joined


def _join(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    """Two contents of messages as one."""
    if isinstance(first, str) and isinstance(second, str):
        return "\n\n".join(filter(None, (first, second)))
    return [*_parts(first), *_parts(second)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check(request: Request) -> None:
    """Raise Rejected unless the request, which any program can send, is a valid conversation."""
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
    """Whether `part` is a text or image content part in OpenAI's format."""
    if not isinstance(part, dict):
        return False
    image = part.get("image_url")
    return isinstance(part.get("text"), str) or (
        isinstance(image, dict) and isinstance(image.get("url"), str)
    )


def _fit_to_context(
    model: Model, prompt: str | list[Message], fields: dict[str, Any]
) -> dict[str, Any]:
    """The fields with max_tokens lowered to the room left in the context.

    Raises Rejected if the prompt leaves no room. A token is at least one byte, so a short prompt is
    known to fit without asking the server to count its tokens.
    """
    context = model.context_length
    if not context or model.protocol != "openai":
        return fields
    texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if size + TEMPLATE_MARGIN + fields["max_tokens"] <= context:
        return fields
    count = tokenizer.count_tokens(model, prompt)
    if count is None:
        return fields
    if count >= context:
        raise errors.too_long("text" if isinstance(prompt, str) else "conversation", count, context)
    return fields | {"max_tokens": min(fields["max_tokens"], context - count)}
