"""Makes an engine's answer the one that the client asked for: under the same name, and streamed.

Most answers need neither and pass through the gateway byte for byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

JSON, EVENTS = "application/json", "text/event-stream"
MAX_LINE = 2**20  # bytes; a longer line of a stream passes unchanged


@dataclass
class AnswerForm:
    """What a client expects of an answer: its `model`, if not the engine's name, and events."""

    path: str
    model: str
    streams: bool
    _rest: bytes = field(default=b"", repr=False)  # the beginning of a line

    def whole(self, body: bytes) -> tuple[bytes, str]:
        """An answer that came as JSON, and its content type."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            return body, JSON
        renamed = self._rename(fields)
        if self.streams and (chunk := _chunk(self.path, fields)):
            return b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n", EVENTS
        return json.dumps(fields).encode() if renamed else body, JSON

    def part(self, data: bytes) -> bytes:
        """What can be sent of a stream of events after some more of it has arrived."""
        if not self.model:
            return data
        complete, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = b"" if len(rest) > MAX_LINE else rest
        lines = b"\n".join(map(self._line, complete.split(b"\n"))) + newline
        return lines if self._rest else lines + rest

    def end(self) -> bytes:
        """What is left of a stream that has ended."""
        return self._line(self._rest)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b'"model"' not in line:
            return line
        try:
            fields = json.loads(line.removeprefix(b"data:"))
        except (ValueError, RecursionError):
            return line
        if not isinstance(fields, dict) or not self._rename(fields):
            return line
        return b"data: " + json.dumps(fields).encode() + (b"\r" if line.endswith(b"\r") else b"")

    def _rename(self, fields: dict[str, Any]) -> bool:
        """Whether there was another name, also in Anthropic's first event or OpenAI's response."""
        if not self.model:
            return False
        renamed = False
        for place in (fields, fields.get("message"), fields.get("response")):
            if isinstance(place, dict) and place.get("model", self.model) != self.model:
                place["model"] = self.model
                renamed = True
        return renamed


def _chunk(path: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """A whole answer as the only chunk of a stream; None if it is not one, or on another path."""
    choices = fields.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return None
    if path == "/v1/completions":  # its chunks have the same form
        return fields
    if path != "/v1/chat/completions":
        return None
    return fields | {
        "object": "chat.completion.chunk",
        "choices": [_delta(each) for each in choices],
    }


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of a chat completion in the form of a chunk's."""
    message = choice.get("message")
    delta = dict(message) if isinstance(message, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [
            {"index": index, **call} if isinstance(call, dict) else call
            for index, call in enumerate(calls)
        ]
    rest = {name: value for name, value in choice.items() if name not in ("message", "delta")}
    return rest | {"delta": choice.get("delta") or delta}
