"""Finds requests that would generate or cost more than one may, before the engine sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from vllm_space import api_error, errors, request_body, text_limit
from vllm_space.api_error import ApiError
from vllm_space.request_body import reject_constant
from vllm_space.settings import shorten
from vllm_space.text_limit import TextSize

BODY_LIMIT = 32 * 2**20  # bytes; room for a few images
# In a JSON body. Python needs much longer for these than for as many bytes of text.
MAX_VALUES = 1_000_000
MAX_FIELDS = 500_000
MAX_SEQUENCES = 128  # answers to one request
MAX_NUMBER = 2**53  # of tokens or answers; more would not be exact
MAX_EMBEDDINGS = 2048  # texts in one request; OpenAI's limit as well

# Path -> the fields for the maximum length of an answer that vLLM reads there.
MAX_TOKENS_FIELDS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}
# Those of all endpoints, and what servers other than vLLM read.
TOKEN_FIELDS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "n_predict",
)
# Not for clients: vLLM renders templates in the thread that serves everyone, and reads as many
# video frames as `media_io_kwargs` asks for.
FORBIDDEN_FIELDS = ("chat_template", "media_io_kwargs")
# Fields of /v1/responses that need stored responses: the engine would keep what clients wrote, for
# all of them. `store` alone does no harm, and clients set it by default.
STORE_FIELDS = {
    "background": "Remove it.",
    "previous_response_id": "Send the whole conversation as input instead.",
    "conversation": "Send the whole conversation as input instead.",
}
# The spellings of `false` that an engine might accept
FALSE = ("none", "false", "0", "0.0", "off", "no", "n", "f", "")


def announced_length(request: Request) -> int:
    """The Content-Length as far as `read_body` would read; 0 if it is missing."""
    return min(request_body.announced_length(request) or 0, BODY_LIMIT)


async def read_body(request: Request) -> bytes:
    """The request's body. Raises ApiError, and ClientDisconnect if the client disconnects."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        message = f"The request body is compressed ({shorten(encoding)}). Send it uncompressed."
        raise ApiError(415, message, "unsupported_encoding")
    try:
        return await request_body.read(request, BODY_LIMIT)
    except request_body.TooLarge:
        size = BODY_LIMIT // 2**20
        raise api_error.too_large(
            f"The request body is larger than {size} MiB. Send smaller images, or split it."
        ) from None
    except request_body.StoppedArriving:
        message = "The request body stopped arriving. Send the request again."
        raise ApiError(408, message, "body_timeout", connection="close") from None


@dataclass(frozen=True)
class ApiRequest:
    """A request with a JSON body that passed the checks. `length` is that of the body, in bytes.

    `tokens` are the fields that limit the length of its answer, as numbers, without those that are
    null; empty on a path that does not answer.
    """

    path: str
    fields: dict[str, Any]
    length: int
    size: TextSize
    tokens: dict[str, float]

    @classmethod
    def parse(cls, path: str, body: bytes) -> ApiRequest:
        """The request in a body. Raises ApiError for one that must not reach an engine.

        Takes up to a second for a body of BODY_LIMIT.
        """
        fields = _fields(body)
        _check_fields(fields)
        if path == "/v1/responses":
            _check_store(fields)
        tokens = _tokens(path, fields)
        _check_sequences(path, fields)
        size = text_limit.measure(fields)
        try:
            text_limit.check_values(fields)
            text_limit.check_bytes(size)
        except errors.Rejected as error:
            raise api_error.too_large(str(error)) from None
        return cls(path, fields, len(body), size, tokens)

    def changed(self, changes: Mapping[str, Any]) -> ApiRequest:
        """The request with other values in some fields; None removes a field."""
        fields = {name: value for name, value in self.fields.items() if name not in changes}
        fields |= {name: value for name, value in changes.items() if value is not None}
        return replace(self, fields=fields, tokens=_tokens(self.path, fields))

    def encode(self) -> bytes:
        """Its body. Raises ApiError if it holds something that is not JSON."""
        return encode(self.fields)

    def changes_to_cap(self, limit: int) -> dict[str, Any]:
        """The changes that keep its answer to `limit` tokens."""
        changes = self.changes_to_lower(limit)
        names = MAX_TOKENS_FIELDS.get(self.path, ())
        if names and not any(name in self.tokens for name in names):
            changes[names[0]] = limit
        return changes

    @property
    def streams(self) -> bool:
        """Whether it asks for its answer as events."""
        return self.fields.get("stream") is True

    @property
    def requested_tokens(self) -> float:
        """The length of the answer that it asks for, in tokens; 0 if it names none."""
        names = MAX_TOKENS_FIELDS.get(self.path, ())
        return max((self.tokens.get(name, 0) for name in names), default=0)

    def changes_to_lower(self, tokens: int) -> dict[str, Any]:
        """The changes that ask for an answer of at most this many tokens."""
        return {name: tokens for name, number in self.tokens.items() if number > tokens}


class _Ambiguous(dict[str, Any]):
    """A JSON object with a duplicate field: the engine might use the other value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Ambiguous(fields)


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON request. Raises ApiError for anything that cannot be checked."""
    # More than enough for any text, even though these bytes count in texts, too.
    values = body.count(b",") + body.count(b"{") + body.count(b"[")
    if values > MAX_VALUES or body.count(b":") > MAX_FIELDS:
        raise api_error.too_large(
            f"The request body has more than {MAX_VALUES:,} JSON values "
            f"(or {MAX_FIELDS:,} fields). Split the request."
        )
    try:
        # A hook in Python also lets other threads run.
        fields = json.loads(body, object_pairs_hook=_object, parse_constant=reject_constant)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or isinstance(fields, _Ambiguous):
        message = "The request body must be a JSON object without duplicate fields."
        raise ApiError(400, message, "invalid_json")
    return fields


def _tokens(path: str, fields: Mapping[str, Any]) -> dict[str, float]:
    if path not in MAX_TOKENS_FIELDS:
        return {}
    numbers = {name: _number(fields, name) for name in TOKEN_FIELDS}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    """The field as a number if an engine might accept it as one (9, 9.0, "9"); None for null.

    Raises ApiError for anything else, and for numbers that no engine could mean.
    """
    value = fields.get(name)
    if value is None:
        return None
    number: float = -1
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not 0 <= number <= MAX_NUMBER:  # nor NaN
        raise api_error.invalid(f"{name} must be a number from 0 to 2^53.")
    return number


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise ApiError if a request has a field that is the owner's decision."""
    arguments = fields.get("chat_template_kwargs")
    for source in (fields, arguments if isinstance(arguments, dict) else {}):
        for name in FORBIDDEN_FIELDS:
            if source.get(name) is not None:
                raise api_error.invalid(f"{name} is not available here: remove it.")


def _check_store(fields: Mapping[str, Any]) -> None:
    """Raise ApiError if a request needs stored responses."""
    for name, advice in STORE_FIELDS.items():
        if _is_set(fields, name):
            raise api_error.invalid(
                f"{name} is not available here, since responses are not stored. {advice}"
            )


def _is_set(fields: Mapping[str, Any], name: str) -> bool:
    """Whether an engine might take the field for anything but `false`."""
    value = fields.get(name)
    return isinstance(value, (list, dict)) or str(value).strip().lower() not in FALSE


def _check_sequences(path: str, fields: Mapping[str, Any]) -> None:
    """Raise ApiError if a request asks for more answers than one request may."""
    if _is_set(fields, "use_beam_search"):
        raise api_error.invalid("Beam search is not available here: remove use_beam_search.")
    prompts = max(
        len(fields[name]) if text_limit.is_batch(fields, name) else 1
        for name in ("prompt", "input", "messages")
    )
    if path not in MAX_TOKENS_FIELDS:
        if prompts > MAX_EMBEDDINGS:
            raise api_error.invalid(f"At most {MAX_EMBEDDINGS} inputs are allowed in a request.")
        return
    sequences: float = prompts
    for name in ("n", "best_of"):
        sequences *= max(1, _number(fields, name) or 1)
    if sequences > MAX_SEQUENCES:
        message = (
            "The request asks for too many answers: n, best_of and the number of prompts, "
            f"multiplied, can be at most {MAX_SEQUENCES}."
        )
        raise api_error.invalid(message)


def encode(fields: Mapping[str, Any]) -> bytes:
    """The JSON of an object. Raises ApiError for a number such as 1e999, and for deep nesting."""
    try:
        return json.dumps(fields, allow_nan=False).encode()
    except (ValueError, RecursionError):
        message = "The request has a number that is too large, or is nested too deep."
        raise api_error.invalid(message) from None
