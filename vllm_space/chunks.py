"""Turns what a chat server streams into chunks of an answer.

Reads /v1/chat/completions and /v1/completions of any server that resembles OpenAI's: tolerant of
the form, strict about the meaning. An error is never taken for an answer, nor a part of an answer
for the whole. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vllm_space import error_body, errors, sse

log = logging.getLogger(__name__)

DECODER = json.JSONDecoder(strict=False)  # some servers leave tabs in strings
DONE = "[DONE]"
MAX_DEPTH = 8  # of parts within parts
TEXTS = ("text", "thinking", "summary", "content", "value", "refusal")  # where a part has its text
REASONINGS = ("reasoning", "reasoning_content", "reasoning_text", "thinking")
SURROGATE = re.compile("[\ud800-\udfff]")

# What servers write, in lower case -> OpenAI's word. Others are kept as they are.
FINISH_REASONS = {
    name: reason
    for reason, names in {
        "stop": "stop eos eos_token stop_sequence stop_token end_turn end complete completed done",
        "length": "length max_tokens max_length max_new_tokens max_output_tokens model_length "
        "context_length model_context_window_exceeded token_limit",
        "content_filter": "content_filter content-filter content_filtered safety recitation "
        "blocklist prohibited_content spii sensitive refusal image_safety",
        "error": "error failed failure abort aborted cancelled canceled network_error "
        "insufficient_system_resource",
        "": "null none unspecified",
    }.items()
    for name in names.split()
}


class Chunk(NamedTuple):
    """One event of a stream: new text or reasoning; at the end, the finish reason and the usage."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] | None = None


def read(blocks: Iterable[bytes], secrets: Iterable[str] = ()) -> Iterator[Chunk]:
    """The chunks in the body of a response, which comes in blocks of any size.

    Raises ModelError for an error in the stream, in the server's own words without the `secrets`,
    and for an answer that is cut off or unreadable. What came before has been yielded by then.
    """
    answer = _Answer(tuple(secrets))
    for name, data in sse.events(answer.received(blocks)):
        text = data.decode("utf-8", "replace").strip()
        if len(text) < 10 and text.strip('"').upper() == DONE:
            return answer.end(is_done=True)
        if name == sse.BODY:
            text = text.removesuffix(f"data: {DONE}").rstrip()
        try:
            value = DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            answer.skip(name, text, error)
            continue
        for event in value if value and isinstance(value, list) else (value,):
            if not isinstance(event, dict):
                answer.skip(name, text)
                continue
            if chunk := answer.chunk(event):
                yield chunk
            if "error" in event or not event.get("choices"):
                answer.check(name, event)
    return answer.end(is_done=False)


class _Answer:
    """What is known of an answer while it is read."""

    def __init__(self, secrets: tuple[str, ...]):
        self.secrets = secrets
        self.index: object = 0  # of the choice that is read
        self.has_choice = False
        self.has_deltas = False  # with text or reasoning
        self.has_plain_reasoning = False
        self.messages = 0  # whole ones
        self.is_readable = False  # at least one event is a part of an answer
        self.is_strange = False  # at least one is not
        self.is_finished = False
        self.has_failed = False
        # What the server sent instead of an answer, unless more of the answer followed.
        self.unread: dict[str, Any] | str | None = None
        self.is_truncated = False
        self.text = _Characters()
        self.reasoning = _Characters()

    def received(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks. If the connection breaks after the server has sent everything, they end."""
        try:
            yield from blocks
        except Exception as error:
            is_silent = isinstance(error, errors.TimedOut)
            if not self.is_finished and (is_silent or not self.unread):
                raise

    def chunk(self, event: dict[str, Any]) -> Chunk | None:
        """The chunk that an event holds; None if it holds nothing."""
        usage = event.get("usage")
        usage = _counts(usage) if usage else None
        choices = event.get("choices")
        choice = self._choice(choices) if choices else None
        if choice is None:
            if "choices" in event or usage:
                self.is_readable = True
            else:
                self.is_strange = True
            return Chunk(usage=usage) if usage else None
        self.is_readable = True
        delta = choice.get("delta")
        if isinstance(delta, dict):
            text, reasoning = self._content(delta)
            if text or reasoning:
                self.has_deltas = True
        elif isinstance(message := choice.get("message"), dict):
            # At the end of a stream, it repeats the deltas.
            text, reasoning = self._content(message) if not self.has_deltas else ("", "")
            self.messages += event.get("object") != "chat.completion.chunk"
        else:  # /v1/completions
            text, reasoning = _text(choice.get("text")) or _text(delta), ""
        if not text.isascii() or self.text.half:
            text = self.text.complete(text)
        if not reasoning.isascii() or self.reasoning.half:
            reasoning = self.reasoning.complete(reasoning)
        if self.unread and (text or reasoning or isinstance(self.unread, str)):
            self.unread, self.is_truncated = None, False
        groq = event.get("x_groq")
        failure = choice.get("error") or (isinstance(groq, dict) and groq.get("error"))
        if failure:  # OpenRouter's, Groq's
            self.has_failed, self.unread = True, {"error": failure}
        reason = choice.get("finish_reason")
        if reason is not None:
            reason = self._finish_reason(reason, choice)
        if usage is None and (usage := choice.get("usage")):  # Moonshot's
            usage = _counts(usage)
        return (
            Chunk(text, reasoning, reason, usage) if text or reasoning or reason or usage else None
        )

    def check(self, name: str, event: dict[str, Any]) -> None:
        """Raise the error that an event is, if it is one."""
        if error_body.is_error(event) or (name == sse.ERROR and not event.get("choices")):
            raise self._error(event)
        if error_body.has_message(event):  # or only news, such as a place in a queue
            self.unread = event

    def skip(self, name: str, text: str, error: Exception | None = None) -> None:
        """Skip an event that is not a JSON object. Raises ModelError if it is an error."""
        if name == sse.ERROR:
            raise self._error(text)
        if not text:  # a keep-alive
            return
        if not self.is_strange:  # logged once
            shown = error_body.mask(text, self.secrets)[:500]
            log.error("the model server sent something that is not a JSON object: %r", shown)
        self.is_strange = True
        self.unread = text
        self.is_truncated = isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(text) or error.msg.startswith("Unterminated string")
        )

    def end(self, is_done: bool) -> None:
        """Raise ModelError unless the answer is complete. `is_done` is whether [DONE] came."""
        if self.is_finished and not self.has_failed:
            return
        if self.unread and _says_something(self.unread):
            raise self._error(self.unread)
        if self.has_failed:
            raise errors.aborted()
        is_whole = is_done or (self.messages == 1 and not self.has_deltas)
        if is_whole and (self.is_readable or not self.is_strange):
            return
        if self.is_truncated and not is_done:
            raise errors.cut_off()
        if self.unread or (self.is_strange and not self.is_readable):
            raise errors.malformed_response()
        raise errors.cut_off()

    def _error(self, body: object) -> errors.ModelError:
        return errors.from_response(None, body, self.secrets)

    def _choice(self, choices: object) -> dict[str, Any] | None:
        """The choice that is ours: a request asks for one, which most servers give the index 0."""
        if not isinstance(choices, list):
            return choices if isinstance(choices, dict) else None
        for choice in choices:
            if isinstance(choice, dict):
                index = choice.get("index")
                if index == self.index or index is None:
                    self.has_choice = True
                    return choice
        for choice in choices:
            if not self.has_choice and isinstance(choice, dict) and _is_used(choice):
                self.index, self.has_choice = choice["index"], True
                return choice
        return None

    def _content(self, message: dict[str, Any]) -> tuple[str, str]:
        """(text, reasoning) of a delta or a message."""
        content = message.get("content")
        text, reasoning = (content, "") if isinstance(content, str) else _parts(content)
        if refusal := message.get("refusal"):
            text += _text(refusal)
        for name in REASONINGS:  # some servers send two of them
            if (value := message.get(name)) and (plain := _text(value)):
                self.has_plain_reasoning = True
                return text, plain
        if not self.has_plain_reasoning and (details := message.get("reasoning_details")):
            reasoning = _text(details) or reasoning
        return text, reasoning

    def _finish_reason(self, value: object, choice: dict[str, Any]) -> str | None:
        """The finish reason in OpenAI's words; None if there is none, or if the answer failed."""
        if isinstance(value, dict):  # SGLang's: {"type": "abort", "message": "..."}
            if error_body.has_message(value):
                self.unread = value
            value = value.get("type")
        if not isinstance(value, str):
            return None
        name = value.strip().lower().rpartition(".")[2].removeprefix("finish_reason_")
        reason = FINISH_REASONS.get(name, value)
        if reason == "error":
            self.has_failed = True
            return None
        self.is_finished = self.is_finished or bool(reason)
        return reason or None


class _Characters:
    """Joins the halves of characters that servers in JavaScript cut in two: UTF-16 surrogates."""

    half = ""

    def complete(self, text: str) -> str:
        """The text without a half character at its end, which is kept for the next one."""
        if not (self.half and text) and not SURROGATE.search(text):
            return text
        text = self.half + text
        self.half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        text = text.removesuffix(self.half)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts(content: object) -> tuple[str, str]:
    """(text, reasoning) of a list of typed parts."""
    text = reasoning = ""
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            text += _text(part)
            continue
        kind = part.get("type")
        kind = kind if isinstance(kind, str) else "text"
        if part.get("thought") is True or "thinking" in kind or "reasoning" in kind:
            reasoning += _text(part)
        elif "text" in kind or kind == "refusal":
            text += _text(part.get("text")) or _text(part.get("refusal"))
    return text, reasoning


def _text(value: object, depth: int = 0) -> str:
    """The text in a value: a string, or objects and lists around strings."""
    if isinstance(value, str):
        return value
    if not value or depth > MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(_text(item, depth + 1) for item in value)
    if isinstance(value, dict):
        texts = (_text(value.get(name), depth + 1) for name in TEXTS)
        return next(filter(None, texts), "")
    return ""


def _is_used(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or choice.get("message")
    fields = delta if isinstance(delta, dict) else {}
    values = [value for name, value in fields.items() if name != "role"]
    return any([choice.get("text"), choice.get("finish_reason"), *values])


def _counts(usage: object) -> dict[str, int] | None:
    """The numbers of tokens in a `usage`."""
    if not isinstance(usage, dict):
        return None
    return {name: value for name, value in usage.items() if type(value) is int} or None


def _says_something(unread: dict[str, Any] | str) -> bool:
    """Whether it is a message to people, and not JSON, HTML or a keep-alive."""
    if isinstance(unread, str) and (
        unread.startswith(("{", "[")) or " " not in unread or "\ufffd" in unread
    ):
        return False
    return bool(error_body.words(unread))
