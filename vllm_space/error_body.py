"""What a server's error says, whatever its form: OpenAI's, Anthropic's, Google's, FastAPI's...

Knows neither HTTP nor our own sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

MAX_LENGTH = 300  # characters
MAX_DEPTH = 8
NESTED = ("error", "errors", "base_resp")
MESSAGES = (
    "message",
    "msg",
    "error_message",
    "error_msg",
    "errorMessage",
    "status_msg",
    "Message",
    "title",
)
DETAILS = ("detail", "error_description")
KINDS = ("code", "type", "error_type", "status")
HTML = re.compile(
    r"\s*(?:<!doctype|<\?xml|<!--|<(?:html|head|body|title|center|h\d|div|p)\b)", re.I
)
EVENT = re.compile(r"(?:data|error):\s*")

FAILURE = re.compile(
    r"error|exception|fail|invalid|exceeded|denied|unavailable|overload|time.?out", re.IGNORECASE
)
NUMBERS = ("code", "status", "status_code", "statusCode", "http_status_code", "http_status")
# What servers write in `code`, `type` or `status` -> the HTTP status that it stands for.
STATUSES = {
    402: re.compile(r"billing|balance|credit|payment|arrear", re.I),
    429: re.compile(r"quota|rate.?limit|throttl|exhausted|too.?many", re.I),
    401: re.compile(r"authenticat|unauthori[sz]ed|api.?key", re.I),
    403: re.compile(r"permission|forbidden|denied|unsupported.country", re.I),
    404: re.compile(r"not.?found", re.I),
    400: re.compile(r"^invalid|bad.?request|^context|context.?(?:length|size)", re.I),
}


def words(body: object, secrets: Iterable[str] = ()) -> str:
    """What the server says in an error's decoded JSON or text, as one short line, or "".

    `secrets` are masked, since some servers repeat the key that they reject.
    """
    return one_line(_find(body) or next(iter(kinds(body)), ""), secrets)


def one_line(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without secrets, line breaks and control characters, and not too long."""
    text = mask(text, secrets)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"


def kinds(body: object) -> list[str]:
    """The words by which an error names its kind, such as "insufficient_quota"."""
    if not isinstance(body, dict):
        return []
    error = body.get("error")
    places = (error, body) if isinstance(error, dict) else (body,)
    values = [place.get(name) for place in places for name in KINDS]
    return [value for value in values if isinstance(value, str) and value != "error"]


def status(body: object) -> int | None:
    """The HTTP status that an error names, as a number or in words; None if it names none."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    places = [error, body] if isinstance(error, dict) else [body]
    for place in places:
        for name in NUMBERS:
            if number := http_error(place.get(name)):
                return number
    for kind in kinds(body):
        for number, pattern in STATUSES.items():
            if pattern.search(kind):
                return number
    return None


def http_error(value: object) -> int | None:
    """The value as an HTTP status of an error, if it is one: 429 and "429" are."""
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
        return int(value)
    if isinstance(value, int) and 400 <= value < 600:
        return value
    return None


def is_error(body: dict[str, Any]) -> bool:
    """Whether a JSON object that a server sent as an answer, or a part of one, is an error."""
    error = body.get("error")
    if isinstance(error, dict):
        return any(error.values())  # some servers send all fields, empty, with every event
    if error or body.get("object") == "error" or body.get("type") == "error":
        return True
    if not has_message(body):
        return False
    return (
        any(http_error(body.get(name)) for name in NUMBERS)
        or any(name.startswith("error") and value for name, value in body.items())
        or any(FAILURE.search(kind) for kind in kinds(body))
    )


def has_message(body: dict[str, Any]) -> bool:
    """Whether a JSON object without an answer says something, as an error may."""
    return not body.get("choices") and bool(_find(body))


def mask(text: str, secrets: Iterable[str]) -> str:
    """Replace secrets. A short one may be a common word, so it only counts on its own."""
    for secret in filter(None, secrets):
        pattern = re.escape(secret)
        text = re.sub(pattern if len(secret) >= 8 else rf"(?<!\w){pattern}(?!\w)", "***", text)
    return text


def _find(body: object, depth: int = 0) -> str:
    if depth > MAX_DEPTH:
        return ""
    if isinstance(body, str):
        return _in_text(body.strip(), depth)
    if isinstance(body, list):
        return "; ".join(filter(None, (_find(item, depth + 1) for item in body[:3])))
    if not isinstance(body, dict):
        return ""
    parts = [_first(body, names, depth) for names in (NESTED, MESSAGES, DETAILS)]
    location, metadata = body.get("loc"), body.get("metadata")
    if isinstance(location, list):  # FastAPI's and Pydantic's: the field
        parts.insert(0, ".".join(map(str, location)))
    if isinstance(metadata, dict):  # OpenRouter's: what the provider behind it says
        parts.append(_first(metadata, ("raw",), depth))
    return _joined(parts)


def _in_text(text: str, depth: int) -> str:
    if HTML.match(text):
        return ""
    json_text = EVENT.sub("", text, count=1) if EVENT.match(text) else text
    if json_text.startswith(("{", "[")):
        try:
            return _find(json.loads(json_text), depth + 1) or text
        except (ValueError, RecursionError):
            pass
    return json_text


def _first(body: dict[str, Any], names: Iterable[str], depth: int) -> str:
    return next(filter(None, (_find(body.get(name), depth + 1) for name in names)), "")


def _joined(parts: Iterable[str]) -> str:
    """The parts that say something new, such as "Bad Request: unknown field"."""
    text = ""
    for part in filter(None, parts):
        if text.lower() in part.lower():
            text = part
        elif part.lower() not in text.lower():
            text = f"{text.rstrip('.: ')}: {part}"
    return text
