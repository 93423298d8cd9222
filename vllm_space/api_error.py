"""The error responses of the API gateway, in the formats of OpenAI and Anthropic."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import Response

from vllm_space.errors import ModelError

RETRY_AFTER = 5  # seconds; sent to clients who have to wait for an engine, or for themselves

# https://docs.anthropic.com/en/api/errors. Other statuses are an `invalid_request_error`, or from
# 500 on an `api_error`.
ANTHROPIC_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# https://platform.openai.com/docs/guides/error-codes. Other statuses are an
# `invalid_request_error`, or from 500 on a `server_error`.
OPENAI_ERRORS = {429: "rate_limit_error"}
ANTHROPIC_PATH = re.compile(r"(?:/+(?:v1|api|anthropic))*/+messages(?:/.*)?", re.I | re.S)


class ApiError(Exception):
    """An error response of the gateway: HTTP status, message and the `code` of OpenAI's format."""

    def __init__(self, status: int, message: str, code: str, **headers: object):
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}

    def body(self, path: str) -> bytes:
        """The error in Anthropic's format for the paths of its clients, otherwise in OpenAI's."""
        message, is_client_error = str(self), self.status < 500
        error: dict[str, Any]
        if is_for_anthropic(path):
            default = "invalid_request_error" if is_client_error else "api_error"
            kind = ANTHROPIC_ERRORS.get(self.status, default)
            error = {"type": "error", "error": {"type": kind, "message": message}}
        else:
            default = "invalid_request_error" if is_client_error else "server_error"
            kind = OPENAI_ERRORS.get(self.status, default)
            error = {"error": {"message": message, "type": kind, "param": None, "code": self.code}}
        return json.dumps(error).encode()

    def event(self, path: str) -> bytes:
        """The error as an event of a stream that has begun.

        https://platform.openai.com/docs/api-reference/responses-streaming/error has the fields of
        the error at the top; OpenAI's clients also look for them in `error`, as on other paths.
        """
        data = self.body(path)
        if path.startswith("/v1/responses"):
            fields = json.loads(data)
            names = ("message", "param", "code")
            top = {name: fields["error"][name] for name in names}
            data = json.dumps({"type": "error", "sequence_number": 0, **top, **fields}).encode()
        elif not is_for_anthropic(path):
            return b"data: " + data + b"\n\n"
        return b"event: error\ndata: " + data + b"\n\n"

    def response(self, path: str) -> Response:
        return Response(self.body(path), self.status, self.headers, "application/json")


def is_for_anthropic(path: str) -> bool:
    """Whether a path is one that Anthropic's clients ask for, if only by mistake."""
    return ANTHROPIC_PATH.fullmatch(path) is not None


def invalid(message: str) -> ApiError:
    return ApiError(400, message, "invalid_request")


def too_large(message: str) -> ApiError:
    return ApiError(413, message, "request_too_large")


def too_many(message: str, code: str, retry_after: int = RETRY_AFTER) -> ApiError:
    return ApiError(429, message, code, retry_after=retry_after)


def engine_unavailable(error: ModelError) -> ApiError:
    return ApiError(error.status, str(error), "engine_unavailable", retry_after=RETRY_AFTER)


def legacy_server() -> ApiError:
    message = (
        "This model runs on vLLM's legacy server, which has no OpenAI API. "
        "Use the page or its API endpoints instead."
    )
    return ApiError(404, message, "legacy_server")
