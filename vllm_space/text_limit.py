"""How much text may be sent to an engine: the one rule for the page and the API gateway.

An engine tokenizes in one thread and cannot be interrupted, so that a text of some megabytes
stops it for everybody. Such a text is refused before the engine is asked anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_space import errors

# A text is refused if it cannot fit into the context: tokens have 4 characters on average, and
# hardly ever 8. Counted in characters: in Hindi or Thai, a token can have 10 bytes and more.
CHARACTERS_PER_TOKEN = 8
MAX_BYTES = 2_000_000  # of UTF-8, in all texts of a request together
# Less than this never keeps an engine busy, so nobody needs to know the model's context.
ALWAYS_ALLOWED = 4096  # characters

# What any value counts at least. With 7 characters, as many token ids as fit into the context pass.
MIN_CHARACTERS = CHARACTERS_PER_TOKEN - 1
MIN_BYTES = 4

# Type of a content part -> its field with an image or sound, as a data URL or base64. In
# {"image_url": {"url": ...}} and the like, it is in an object inside that field.
MEDIA = {
    "image_url": "image_url",
    "input_image": "image_url",
    "image": "source",
    "image_embeds": "image_embeds",
    "audio_url": "audio_url",
    "input_audio": "input_audio",
    "audio_embeds": "audio_embeds",
    "video_url": "video_url",
    "video_embeds": "video_embeds",
}
MEDIA_KEYS = ("url", "data")
# They describe the form of an answer, and are not part of the prompt.
SCHEMA_FIELDS = ("response_format", "structured_outputs", "text", "output_config")
MAX_SCHEMA_VALUES = 10_000  # in these and in tools: vLLM compiles them, and cannot be interrupted

# vLLM repeats an invalid value in its error message, and looks for file names in that, which takes
# time with the square of the length of such a text.
PATH = re.compile(r"[\w/-]{1000,}")
MAX_PATH_COST = 1_000_000  # characters times slashes


@dataclass(frozen=True)
class TextSize:
    """`characters` of the longest prompt and what goes with it; `utf8_bytes` of all text."""

    characters: int
    utf8_bytes: int


def measure(body: Mapping[str, Any]) -> TextSize:
    """The size of all text in a request's body that may reach a tokenizer or a chat template.

    That is every string except images and sounds. Each value counts as about a token at least: the
    token ids of a prompt are numbers, templates write the values of tools out as text, and a
    million empty strings keep an engine busy, too.
    """
    media = _media(body)
    rest = dict(body)
    rest.pop("prompt_embeds", None)
    schemas = _size([rest.pop(name) for name in SCHEMA_FIELDS if name in rest], media)
    prompts = [rest.pop(name) for name in ("prompt", "input", "messages") if is_batch(body, name)]
    characters, utf8_bytes = _size(rest, media)
    sizes = [_size(prompt, media) for batch in prompts for prompt in batch]
    characters += max((size[0] for size in sizes), default=0)
    return TextSize(characters, utf8_bytes + schemas[1] + sum(size[1] for size in sizes))


def check_values(body: Mapping[str, Any]) -> None:
    """Raise Rejected for values that would stop an engine, whatever the size of the text."""
    for name in (*SCHEMA_FIELDS, "tools"):
        if sum(1 for _ in _values(body.get(name))) > MAX_SCHEMA_VALUES:
            raise errors.schema_too_large(name, MAX_SCHEMA_VALUES)
    for value in _values(body):
        for match in PATH.finditer(value) if isinstance(value, str) else ():
            if len(match[0]) * match[0].count("/") > MAX_PATH_COST:
                raise errors.looks_like_a_path(len(match[0]))


def is_batch(body: Mapping[str, Any], name: str) -> bool:
    """Whether the field holds a list of prompts (texts, token ids, conversations), not just one."""
    value = body.get(name)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, (str, list)) for item in value)
    )


def check_bytes(size: TextSize) -> None:
    """Raise Rejected if the text is too large for any model."""
    if size.utf8_bytes > MAX_BYTES:
        raise errors.too_much_text(size.utf8_bytes, MAX_BYTES)


def check_context(size: TextSize, context_length: int | None, prompt: str = "text") -> None:
    """Raise Rejected if the text cannot fit into the context, whose length is in tokens.

    `prompt` is what to call it: "conversation" or "text".
    """
    if context_length and size.characters > ALWAYS_ALLOWED:
        limit = context_length * CHARACTERS_PER_TOKEN
        if size.characters > limit:
            raise errors.too_many_characters(prompt, size.characters, limit, context_length)


def _size(value: Any, media: Mapping[int, str]) -> tuple[int, int]:
    """The characters and bytes of the text in a JSON value. Not recursive: it may be deep."""
    characters = utf8_bytes = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            size = len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
            characters += max(MIN_CHARACTERS, len(item))
            utf8_bytes += max(MIN_BYTES, size)
            continue
        size = 0
        if isinstance(item, int):  # it can have thousands of digits, each of three bits or more
            size = item.bit_length() // 3
        characters += max(MIN_CHARACTERS, size)
        utf8_bytes += max(MIN_BYTES, size)
        if isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            skipped = media.get(id(item))
            for name, field in item.items():
                pending.append(name)
                if name != skipped:
                    pending.append(field)
    return characters, utf8_bytes


def _values(value: Any) -> Iterator[Any]:
    """A JSON value, and all values and names of fields in it. Not recursive: it may be deep."""
    pending = [value]
    while pending:
        item = pending.pop()
        yield item
        if isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += [*item, *item.values()]


def _media(body: Mapping[str, Any]) -> dict[int, str]:
    """`id` of each object in a conversation that holds an image or sound -> the field with it.

    Only where an engine looks for them: elsewhere, such as in the arguments of a tool, the same
    fields are text.
    """
    media: dict[int, str] = {}
    pending = [
        message
        for name in ("messages", "input")
        for message in _objects(body.get(name))
        if isinstance(message, dict)
    ]
    while pending:
        message = pending.pop()
        for part in _objects(message.get("content")) + _objects(message.get("output")):
            field = MEDIA.get(str(part.get("type")), "")
            value = part.get(field)
            if isinstance(value, str):
                media[id(part)] = field
            elif isinstance(value, dict):
                for name in MEDIA_KEYS:
                    if isinstance(value.get(name), str):
                        media[id(value)] = name
            # In an assistant's message, vLLM writes a tool's result out as text.
            elif part.get("type") == "tool_result" and message.get("role") == "user":
                pending.append(part | {"role": "tool"})
    return media


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list, or in a list of lists."""
    if not isinstance(value, list):
        return []
    items = [item for entry in value for item in (entry if isinstance(entry, list) else [entry])]
    return [item for item in items if isinstance(item, dict)]
