"""Reads the model lists that servers send, in any of the forms that are in use.

OpenAI's {"data": [{"id": ...}]}, a bare list, Ollama's {"models": [{"name": ...}]}, or plain names.
What a list says about a model besides its name differs from server to server; it is read from
wherever the larger ones put it. Knows nothing of HTTP.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm_space import error_body, errors

log = logging.getLogger(__name__)

MAX_NAME = 500  # characters of a model's name
MAX_MODELS = 10_000

# Fields of a context length in tokens: vLLM; OpenRouter, Together; Groq; Mistral; Cohere.
CONTEXT_LENGTHS = (
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "max_model_length",
)
# Words for what a model is for, in the fields of KINDS. Whatever is not in either set may chat.
CHAT_KINDS = frozenset(
    "chat chat-completion completion generate llm vlm language text text-generation".split()
)
OTHER_KINDS = frozenset(
    "embedding embeddings text-embedding text-embeddings feature-extraction sentence-similarity "
    "rerank reranker reranking score ranking text-ranking text-classification classification "
    "moderation audio speech tts stt asr transcribe transcription text-to-speech speech-to-text "
    "text-to-audio automatic-speech-recognition audio-transcription image text-to-image "
    "image-generation image-to-image video text-to-video video-generation".split()
)
# Fields with such a word: Together; LM Studio and Cloudflare; Hugging Face; vLLM-like servers.
KINDS = ("type", "task", "pipeline_tag", "model_type", "mode", "kind")


@dataclass(frozen=True)
class Entry:
    """A model of a list, with the fields of server.Model. None: the list does not say."""

    name: str
    context_length: int | None = None  # tokens
    is_vllm: bool = False
    chats: bool | None = None
    takes_images: bool | None = None


def parse(body: Any, address: str, secrets: Iterable[str] = ()) -> list[Entry]:
    """The models of a list. Entries that cannot be read are left out, with a line in the log.

    `address` is where the list is, for the errors, in which `secrets` are masked. Raises ModelError
    if the body is not a list of models, or if none of its entries can be read.
    """
    items = _items(body, address, secrets)
    entries: dict[str, Entry] = {}
    for item in items[:MAX_MODELS]:
        if entry := _entry(item):
            entries.setdefault(entry.name, entry)
        else:
            _warn_once(address, f"{item!r:.200}")
    if items and not entries:
        raise errors.not_a_model_list(address)
    return list(entries.values())


@functools.lru_cache(maxsize=1000)
def _warn_once(address: str, item: str) -> None:
    log.warning("%s lists a model without a usable name: %s", address, item)


def _items(body: Any, address: str, secrets: Iterable[str]) -> list[Any]:
    """The entries of a list. Raises ModelError if there is none."""
    if isinstance(body, list):
        return body
    if isinstance(body, dict):
        for name in ("data", "models"):  # llama.cpp sends both
            value = body.get(name)
            if isinstance(value, list):
                return value
            if isinstance(value, dict):  # the names as keys
                return [
                    {"id": key} | (item if isinstance(item, dict) else {})
                    for key, item in value.items()
                ]
        if error_body.has_message(body):
            raise errors.list_refused(address, body, secrets)
        if body.get("data", body.get("models", "")) is None:
            return []
    raise errors.not_a_model_list(address)


def _entry(item: Any) -> Entry | None:
    fields = item if isinstance(item, dict) else {"id": item}
    names = [fields[key] for key in ("id", "name", "model") if _is_name(fields.get(key))]
    # GitHub's ids are addresses, such as azureml://registries/...
    name = next((name for name in names if "://" not in name), next(iter(names), None))
    if name is None:
        return None
    return Entry(
        name,
        _context_length(fields),
        fields.get("owned_by") == "vllm",
        _chats(fields),
        _takes_images(fields),
    )


def _is_name(name: Any) -> bool:
    """Whether a name can be shown on the page and in the log."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name.strip()) <= MAX_NAME


def _context_length(fields: dict[str, Any]) -> int | None:
    for name in CONTEXT_LENGTHS:
        value = fields.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 16:
            value = int(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < 2**53:
            return int(value)
    return None


def _chats(fields: dict[str, Any]) -> bool | None:
    """Whether the model is for chat, rather than for embeddings, speech or ranking."""
    capabilities = fields.get("capabilities")
    if isinstance(capabilities, dict):  # Mistral
        for name in ("completion_chat", "chat", "chat_completion"):
            if isinstance(capabilities.get(name), bool):
                return bool(capabilities[name])
    output = _modalities(fields, "output")
    if output and "text" not in output:
        return False
    words = set(_kinds(fields))
    if words & CHAT_KINDS:
        return True
    return False if words & OTHER_KINDS else None


def _kinds(fields: dict[str, Any]) -> Iterator[str]:
    for name in KINDS:
        yield from _words(fields.get(name))
    for name in ("capabilities", "endpoints", "tasks"):  # Ollama, LM Studio; Cohere
        yield from _words(fields.get(name))


def _takes_images(fields: dict[str, Any]) -> bool | None:
    capabilities = fields.get("capabilities")
    if isinstance(capabilities, dict) and isinstance(capabilities.get("vision"), bool):
        return bool(capabilities["vision"])
    kinds = set(_kinds(fields))
    if kinds & {"vision", "vlm", "image-text-to-text"}:
        return True
    modalities = _modalities(fields, "input")
    return "image" in modalities if modalities else None


def _modalities(fields: dict[str, Any], side: str) -> set[str]:
    """What goes into a model, or comes out of it: "text", "image", ...; empty if unknown."""
    places = (fields, fields.get("architecture"), fields.get("meta"), fields.get("modalities"))
    for place in places:
        if isinstance(place, dict):
            words = set(_words(place.get(f"{side}_modalities", place.get(side))))
            modality = place.get("modality")  # "text+image->text"
            if not words and isinstance(modality, str) and "->" in modality:
                words = set(modality.split("->")[side == "output"].lower().split("+"))
            if words:
                return words
    return set()


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [word.lower().replace("_", "-") for word in values if isinstance(word, str)]
