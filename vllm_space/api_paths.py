"""The paths of the API gateway, and what is wrong with the others that clients ask for.

Only what is in ENDPOINTS, and a model's id below /v1/models, is ever served. Everything else gets
a 404 that helps: with the base address if the client has another one, or with the reason.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from vllm_space import server
from vllm_space.api_error import ApiError, is_for_anthropic
from vllm_space.settings import shorten

MODELS = "/v1/models"
# Path -> method. All other engine endpoints are blocked: LoRA loading, sleep, profiling, metrics...
ENDPOINTS = {
    MODELS: "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/embeddings": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/version": "GET",
}
MODEL = f"{MODELS}/"  # then the id of a model, which can contain slashes

# What clients put in front of an endpoint if their base address is not ours: another version, the
# addresses of other providers (Azure's has the name of a deployment), or an endpoint.
_TAILS = {path.removeprefix("/v1"): path for path in ENDPOINTS}
_TAIL = "|".join(sorted(_TAILS, key=len, reverse=True))
_VERSION = f"/{server.VERSION.pattern}"
_PREFIX = rf"{_VERSION}|/api|/openai|/anthropic|/(?:deployments|engines)/[^/]+"
_MISADDRESSED = re.compile(rf"(?:{_PREFIX}|{_TAIL})*({_TAIL}|/models/.+)", re.IGNORECASE)
_BASE = re.compile(rf"(?:{_PREFIX})*{_VERSION}", re.IGNORECASE)
_API = re.compile(r"/v1(?:/.*)?", re.IGNORECASE | re.DOTALL)
LONGEST = 1000  # characters of a path that decide

# The first part of vLLM's other paths, without /v1: they change, show or stop the engine, belong to
# other tasks than this API's, or would get around its limits.
CLOSED = frozenset(
    "abort_requests audio classify cohere collective_rpc fault_tolerance finish_weight_update "
    "generative_scoring get_world_size inference init_weight_transfer_engine invocations is_paused "
    "is_scaling_elastic_ep is_sleeping load load_lora_adapter metrics pause ping pooling ready "
    "readyz realtime rerank reset_encoder_cache reset_mm_cache reset_prefix_cache resume "
    "scale_elastic_ep score server_info sleep start_draft_weight_update start_profile "
    "start_weight_update stop_profile tokenizer_info unload_lora_adapter update_weight_version "
    "update_weights wake_up weight_info".split()
)
_CLOSED = re.compile(
    rf"(?:{_VERSION})*/(?:{'|'.join(sorted(CLOSED))})(?:/.*)?|(?:{_VERSION})*(?:{_TAIL})/.+",
    re.IGNORECASE | re.DOTALL,
)


def serves(path: str) -> bool:
    """Whether the gateway handles this path, if only to reject it. Gradio has none of these."""
    if path in ENDPOINTS:
        return True
    plain = _plain(path)
    return any(pattern.fullmatch(plain) for pattern in (_API, _MISADDRESSED, _BASE, _CLOSED))


def check(request: Request) -> None:
    """Raise ApiError unless a path is served with this method."""
    path = request.scope["path"]
    method = "GET" if model_id(request) else None
    # Compare the raw bytes too: an encoded %2F or %2E must not pass for "/" or ".".
    if request.scope.get("raw_path", path.encode()) == path.encode():
        method = ENDPOINTS.get(path, method)
    if method is None:
        raise ApiError(404, _explanation(request), "not_found")
    if request.method != method:
        message = f"{shorten(path)} accepts {method}, not {request.method}."
        raise ApiError(405, message, "method_not_allowed", allow=method)


def model_id(request: Request) -> str:
    """The id in GET /v1/models/<id>, encoded or not; empty if the path is another one."""
    path = request.scope["path"]
    raw = request.scope.get("raw_path", path.encode())
    if not path.startswith(MODEL) or not raw.startswith(MODEL.encode()):
        return ""
    name = str(path.removeprefix(MODEL))
    is_endpoint = _MISADDRESSED.fullmatch(_plain(f"/{name}"))  # /v1/models/chat/completions
    return name if name.strip("/. ") and not is_endpoint else ""


def _explanation(request: Request) -> str:
    """Why there is nothing at a path."""
    path = request.scope["path"]
    plain, shown = _plain(path), shorten(path)
    base = _base_address(request)
    if match := _MISADDRESSED.fullmatch(plain):
        target = _TAILS.get(match[1].lower(), f"/v1{match[1]}")
        anthropic = f" Anthropic's clients need {base}." if is_for_anthropic(target) else ""
        return (
            f"{shown} is not an endpoint of this API. The base address of this API is {base}/v1: "
            f"send this request to {base}{target}.{anthropic}"
        )
    if _BASE.fullmatch(plain):
        return (
            f"{shown} is not an endpoint of this API. The base address of this API is {base}/v1: "
            f"clients add the endpoint to it, such as {base}/v1/chat/completions."
        )
    if _CLOSED.fullmatch(plain):
        stored = " Responses are not stored here." if "/responses/" in plain.lower() else ""
        return (
            f"{shown} is closed on purpose: this API only generates text, embeds and counts "
            f"tokens.{stored}"
        )
    return f"{shown} is not an endpoint of this API."


def _plain(path: str) -> str:
    """A path without empty parts, dots and spaces at the ends of its parts."""
    parts = (part.strip() for part in path[:LONGEST].split("/"))
    return "".join(f"/{part}" for part in parts if part.strip("."))


def _base_address(request: Request) -> str:
    """The address of this server, as the client knows it."""
    url = request.base_url
    if host := request.headers.get("x-forwarded-host"):  # forwarded.py leaves only a proxy's
        url = url.replace(netloc=host)
    return shorten(str(url).rstrip("/"), 200)
