"""What a model's server does not accept, learned from its refusals, so that it is asked without it.

OpenAI-compatible servers differ in the fields they know: some refuse vLLM's own (top_k), some newer
or older ones of OpenAI (stream_options, max_tokens), and some chat templates have no system role.
Only fields are left out, never because of their values: a temperature that is too high stays an
error.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any

from vllm_space.server import Model

log = logging.getLogger(__name__)

MAX_CHANGES = 12  # until an answer, each of which costs a request
MESSAGE_LIMIT = 4000  # characters of an error that are read

REQUIRED = {"model", "messages", "prompt", "stream"}
# Fields that OpenAI's API does not have: the first to go if a server does not name what it refuses.
EXTRAS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "stream_interval",
    "continue_final_message",
    "add_generation_prompt",
    "stream_options",
)
RENAMED = {"max_tokens": "max_completion_tokens"}

# "Unrecognized request argument supplied: top_k", "Unknown name "seed"", "extra_forbidden",
# "'max_tokens' is not supported with this model", "property 'top_k' is unsupported"
REFUSAL = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|forbidden|"
    r"not[ _](?:permitted|supported|allowed|recogni[sz]ed|accepted|enabled|implemented)|"
    r"n[o']t (?:support|accept|allow|recogni[sz]e)|"
    r"cannot be used|can't be used|cannot find field|no such (?:field|parameter|argument)|"
    r"invalid (?:field|parameter|argument|property)\b|deprecated|extra (?:inputs|fields)",
    re.IGNORECASE,
)
# Of a value rather than a field, unless the error's code says otherwise.
VALUE = re.compile(
    r"must be|at most|at least|(?:less|greater|larger|smaller) than|between|range|maximum|minimum|"
    r"exceed|too (?:large|high|low|small|long|many)|[<>]=",
    re.IGNORECASE,
)
FIELD_CODE = re.compile(r"unsupported_(?:parameter|value)|unknown_parameter|extra_forbidden")
# Says that there is a field too many, even if not which.
NAMELESS = re.compile(
    r"(?:unrecogni[sz]ed|unknown|unexpected|extra|additional|unsupported) "
    r"(?:request |input |keyword |body )*(?:field|parameter|argument|input|propert|key)",
    re.IGNORECASE,
)
# "System role not supported", "'messages[0].role' does not support 'system'",
# "Developer instruction is not enabled"
NO_SYSTEM_ROLE = re.compile(
    r"\b(?:system|developer)\b['\" ]*(?:role|message|prompt|instruction)s?\b|"
    r"\brole\b.{0,60}['\"](?:system|developer)['\"]",
    re.IGNORECASE | re.DOTALL,
)


@dataclass
class Dialect:
    """What is left out or changed in the requests to one model."""

    omitted: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    system_role: bool = True

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body of a request as the server takes it."""
        fields = {
            self.renamed.get(name, name): value
            for name, value in body.items()
            if self.renamed.get(name, name) not in self.omitted
        }
        if not self.system_role and "messages" in fields:
            fields["messages"] = without_system_role(fields["messages"])
        return fields

    def learn(self, sent: dict[str, Any], status: int, error: object) -> str:
        """What is changed because the server refused `sent`, for the log; empty if nothing is.

        `error` is the decoded body of the response.
        """
        if status in (401, 402, 403, 404, 408, 413, 429) or status > 501:
            return ""
        message = json.dumps(error, ensure_ascii=False)[:MESSAGE_LIMIT]
        is_about_value = VALUE.search(message) and not FIELD_CODE.search(message)
        if is_about_value or not REFUSAL.search(message):
            return ""
        has_system = any(part["role"] == "system" for part in sent.get("messages", ()))
        if self.system_role and has_system and NO_SYSTEM_ROLE.search(message):
            self.system_role = False
            return "its system prompt is put into the first question"
        name = _named_field(sent, error, message)
        if not name and NAMELESS.search(message):
            name = next(filter(sent.__contains__, EXTRAS), "")
        if not name:
            return ""
        if new_name := RENAMED.get(name):
            self.renamed[name] = new_name
            return f"{name} is called {new_name}"
        self.omitted.add(name)
        unlimited = ", so MAX_TOKENS_LIMIT does not apply" if name in RENAMED.values() else ""
        return f"{name} is left out{unlimited}"


_dialects: dict[tuple[str, str], Dialect] = {}  # (URL of the server, name of the model)


def of(model: Model) -> Dialect:
    """A copy of what is known about a model's server so far."""
    known = _dialects.get((model.server.base, model.name), Dialect())
    return Dialect(set(known.omitted), dict(known.renamed), known.system_role)


def remember(model: Model, known: Dialect) -> None:
    """Use this for all requests to the model from now on."""
    _dialects[model.server.base, model.name] = known


def without_system_role(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the system prompt at the beginning of the first question."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *others = messages
    if not others or others[0]["role"] != "user":
        return [system | {"role": "user"}, *others]
    content = others[0]["content"]
    if isinstance(content, str):
        content = f"{system['content']}\n\n{content}"
    else:
        content = [{"type": "text", "text": system["content"]}, *content]
    return [others[0] | {"content": content}, *others[1:]]


def _named_field(sent: dict[str, Any], error: object, message: str) -> str:
    """The field of the request that an error is about; empty if it names none."""
    names = [name for name in sent if name not in REQUIRED]
    for value in (*_values(error, "param"), *_values(error, "loc")):
        path = re.split(r"[.\[\]]+", value) if isinstance(value, str) else value
        for part in path if isinstance(path, list) else []:
            if part in names:
                return str(part)
    places = {}
    for name in names:
        spellings = f"{re.escape(name)}|{re.escape(name.replace('_', ''))}"
        if match := re.search(rf"(?<![\w])(?:{spellings})(?!\w)", message, re.IGNORECASE):
            places[name] = match.start()
    return min(places, key=places.__getitem__, default="")


def _values(error: object, name: str, depth: int = 0) -> list[Any]:
    """All values of a field in an error, wherever it is."""
    if depth > 5:
        return []
    if isinstance(error, dict):
        own = [error[name]] if error.get(name) else []
        return own + [value for item in error.values() for value in _values(item, name, depth + 1)]
    if isinstance(error, list):
        return [value for item in error[:20] for value in _values(item, name, depth + 1)]
    return []
