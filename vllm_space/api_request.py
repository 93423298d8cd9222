"""A request to the API gateway: its body is read, checked, and rewritten where it must be.

Whatever an engine would take as a larger answer than is allowed, or as more work than one request
may cause, is found here, before the engine is asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vllm_space import errors, request_body, text_limit
from vllm_space.text_limit import TextSize

BODY_LIMIT = 32 * 2**20  # bytes; room for a few images
# In a JSON body. Python needs much longer for these than for as many bytes of text.
MAX_VALUES = 1_000_000
MAX_FIELDS = 500_000
MAX_SEQUENCES = 128  # answers to one request
MAX_EMBEDDINGS = 2048  # texts in one request; OpenAI's limit as well

# Path -> the fields with the maximum length of an answer that its engine reads.
ANSWERS = {
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
# What a request must not decide: vLLM runs a template in the thread that serves everybody, or reads
# as much of a video into memory as it is told.
FORBIDDEN_FIELDS = ("chat_template", "media_io_kwargs")
# The spellings of `false` that an engine might accept
FALSE = ("none", "false", "0", "0.0", "off", "no", "n", "f", "")

# What decides about the length of a prompt, by the names of /tokenize and count_tokens
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

# https://docs.anthropic.com/en/api/errors. Other statuses are an `invalid_request_error`, or from
# 500 on an `api_error`.
ANTHROPIC_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error response of the gateway: HTTP status, message and the `code` of OpenAI's format."""

    def __init__(self, status: int, message: str, code: str, **headers: object):
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}

    def body(self, path: str) -> bytes:
        """The error in Anthropic's format under /v1/messages, otherwise in OpenAI's."""
        message, is_client_error = str(self), self.status < 500
        error: dict[str, Any]
        if path.startswith("/v1/messages"):
            default = "invalid_request_error" if is_client_error else "api_error"
            kind = ANTHROPIC_ERRORS.get(self.status, default)
            error = {"type": "error", "error": {"type": kind, "message": message}}
        else:
            kind = "invalid_request_error" if is_client_error else "server_error"
            error = {"error": {"message": message, "type": kind, "param": None, "code": self.code}}
        return json.dumps(error).encode()

    def response(self, path: str) -> Response:
        return Response(self.body(path), self.status, self.headers, "application/json")


def _invalid(message: str) -> ApiError:
    return ApiError(400, message, "invalid_request")


def too_large(message: str) -> ApiError:
    return ApiError(413, message, "request_too_large")


async def read_body(request: Request) -> bytes:
    """The request's body. Raises ApiError, and ClientDisconnect if the client disconnects."""
    try:
        return await request_body.read(request, BODY_LIMIT)
    except request_body.TooLarge:
        size = BODY_LIMIT // 2**20
        raise too_large(
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
        tokens = _tokens(path, fields)
        _check_sequences(path, fields)
        size = text_limit.measure(fields)
        try:
            text_limit.check_bytes(size)
        except errors.Rejected as error:
            raise too_large(str(error)) from None
        return cls(path, fields, len(body), size, tokens)

    def changed(self, changes: Mapping[str, Any]) -> ApiRequest:
        """The request with other values in some fields; None removes a field."""
        fields = {name: value for name, value in self.fields.items() if name not in changes}
        fields |= {name: value for name, value in changes.items() if value is not None}
        return replace(self, fields=fields, tokens=_tokens(self.path, fields))

    def encode(self) -> bytes:
        """Its body. Raises ApiError if it holds something that is not JSON."""
        return encode(self.fields)

    def capped(self, limit: int) -> dict[str, Any]:
        """The changes that keep its answer to `limit` tokens."""
        changes = self.lowered(limit)
        names = ANSWERS.get(self.path, ())
        if names and not any(name in self.tokens for name in names):
            changes[names[0]] = limit
        return changes

    @property
    def asked(self) -> float:
        """The length of the answer that it asks for, in tokens; 0 if it names none."""
        return max((self.tokens.get(name, 0) for name in ANSWERS.get(self.path, ())), default=0)

    def lowered(self, tokens: int) -> dict[str, Any]:
        """The changes that ask for an answer of at most this many tokens."""
        return {name: tokens for name, number in self.tokens.items() if number > tokens}

    def without_length(self) -> dict[str, Any]:
        """The changes that leave the length of the answer to the engine."""
        return dict.fromkeys(ANSWERS[self.path])

    def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """The engine's path that counts the tokens of a prompt, and a request for each prompt.

        There is none if the engine cannot count them.
        """
        fields = self.fields
        if self.path == "/v1/messages":
            return "/v1/messages/count_tokens", [_pick(fields, MESSAGES_FIELDS)]
        if self.path == "/v1/chat/completions":
            template = _pick(fields, TEMPLATE_FIELDS)
            thinks: dict[str, Any] = {}
            if effort := template.get("reasoning_effort"):
                thinks["enable_thinking"] = effort != "none"
            known = fields.get("chat_template_kwargs")
            arguments = thinks | (known if isinstance(known, dict) else {}) | template
            return "/tokenize", [_pick(fields, CHAT_FIELDS) | {"chat_template_kwargs": arguments}]
        if self.path == "/v1/completions":
            prompts = fields["prompt"] if text_limit.is_batch(fields, "prompt") else []
            prompts = prompts or [fields.get("prompt")]
            body = _pick(fields, ("model", "add_special_tokens"))
            texts = [prompt for prompt in prompts if isinstance(prompt, str)]
            return "/tokenize", [body | {"prompt": text} for text in texts]
        return "", []

    @property
    def token_ids(self) -> int:
        """The number of tokens of the longest prompt that is given as token ids, or 0."""
        prompt = self.fields.get("prompt")
        if self.path != "/v1/completions" or not isinstance(prompt, list):
            return 0
        prompts = prompt if text_limit.is_batch(self.fields, "prompt") else [prompt]
        return max((len(ids) for ids in prompts if isinstance(ids, list)), default=0)


class _Ambiguous(dict[str, Any]):
    """A JSON object with a duplicate field: the engine might use the other value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Ambiguous(fields)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON request. Raises ApiError for anything that cannot be checked."""
    # More than enough for any text, even though these bytes count in texts, too.
    values = body.count(b",") + body.count(b"{") + body.count(b"[")
    if values > MAX_VALUES or body.count(b":") > MAX_FIELDS:
        raise too_large("The request body has too many JSON values. Split the request.")
    try:
        # A hook in Python also lets other threads run.
        fields = json.loads(body, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or isinstance(fields, _Ambiguous):
        message = "The request body must be a JSON object without duplicate fields."
        raise ApiError(400, message, "invalid_json")
    return fields


def _tokens(path: str, fields: Mapping[str, Any]) -> dict[str, float]:
    if path not in ANSWERS:
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
    if isinstance(value, int) and not isinstance(value, bool):
        number = value  # can be larger than any float
    elif isinstance(value, (float, str)):
        with suppress(ValueError):
            number = float(value)
    if number < 0 or (isinstance(number, float) and not math.isfinite(number)):
        raise _invalid(f"{name} must be a number, 0 or greater.")
    return number


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise ApiError if a request has a field that is the owner's decision."""
    arguments = fields.get("chat_template_kwargs")
    for source in (fields, arguments if isinstance(arguments, dict) else {}):
        for name in FORBIDDEN_FIELDS:
            if source.get(name) is not None:
                raise _invalid(f"{name} is not available here: remove it.")


def _check_sequences(path: str, fields: Mapping[str, Any]) -> None:
    """Raise ApiError if a request asks for more answers than one request may."""
    beam_search = fields.get("use_beam_search")
    if isinstance(beam_search, (list, dict)) or str(beam_search).strip().lower() not in FALSE:
        raise _invalid("Beam search is not available here: remove use_beam_search.")
    prompts = max(
        len(fields[name]) if text_limit.is_batch(fields, name) else 1
        for name in ("prompt", "input", "messages")
    )
    if path not in ANSWERS:
        if prompts > MAX_EMBEDDINGS:
            raise _invalid(f"At most {MAX_EMBEDDINGS} inputs are allowed in a request.")
        return
    sequences: float = prompts
    for name in ("n", "best_of"):
        sequences *= max(1, _number(fields, name) or 1)
    if sequences > MAX_SEQUENCES:
        message = (
            "The request asks for too many answers: n, best_of and the number of prompts, "
            f"multiplied, can be at most {MAX_SEQUENCES}."
        )
        raise _invalid(message)


# -- when prompt and answer do not fit into the context -------------------------------------

# "maximum context length is 4096 tokens", "max_model_len=4096"
CONTEXT = re.compile(r"(?:context (?:length|window|size)|max_model_len)\D{0,24}(\d+)")
# OpenAI, SGLang: "you requested 5000 tokens (904 in the messages, 4096 in the completion)"
REQUESTED = re.compile(
    r"requested (?:a total of )?(\d+) tokens.*?(\d+) (?:tokens )?(?:in|for) the completion",
    re.DOTALL,
)
# vLLM: "contains 904 input tokens". It only counts up to a limit: "at least 905", "bound for 905".
PROMPT = re.compile(r"(?<!at least )(?<!bound for )\b(\d+) input tokens")


def context_in(message: str) -> int | None:
    """The context length named in an engine's error, in tokens."""
    match = CONTEXT.search(message)
    return int(match[1]) if match else None


def prompt_in(message: str) -> int | None:
    """The exact number of the prompt's tokens in an engine's error, if it can be told from it."""
    if match := REQUESTED.search(message):
        return int(match[1]) - int(match[2])
    match = PROMPT.search(message)
    return int(match[1]) if match else None


def encode(fields: Mapping[str, Any]) -> bytes:
    """The JSON of an object. Raises ApiError for a number such as 1e999, and for deep nesting."""
    try:
        return json.dumps(fields, allow_nan=False).encode()
    except (ValueError, RecursionError):
        message = "The request has a number that is too large, or is nested too deep."
        raise _invalid(message) from None


def _pick(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}
