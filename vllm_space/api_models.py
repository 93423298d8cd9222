"""The lists of models that the API gateway answers with, in OpenAI's form, and single models.

vLLM has no GET /v1/models/<id>, which clients use to look a model up.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vllm_space import errors, model_list
from vllm_space.api_error import ApiError
from vllm_space.server import Model, Server

# vLLM calls the model's folder `root`, and an adapter's base model `parent`.
PATH_FIELDS = ("root", "parent")
LOCAL_PATH = re.compile(r"/|\\|~|\.{1,2}[/\\]|[a-z]:[/\\]|file:", re.IGNORECASE)
Listing = dict[str, Any]


def of_servers(models: Iterable[Model], created: int) -> Listing:
    """The models of all servers, by name, or by label if two servers share a name.

    `created` is the time that is stated for them, in seconds since 1970.
    """
    models = [model for model in models if model.protocol == "openai"]
    names = Counter(model.name for model in models)
    data = [
        _entry(
            model.name if names[model.name] == 1 else model.label,
            "vllm" if model.is_vllm else model.server.label or "unknown",
            model.context_length,
            created,
        )
        for model in models
    ]
    return {"object": "list", "data": data}


def of_server(body: bytes, server: Server, created: int, name: str = "") -> bytes:
    """A server's own list, or the model of that name in it, as JSON.

    The list only changes if it is in another form, or shows a local path. Raises ModelError if it
    cannot be read, and ApiError if the model is not there.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise errors.not_a_model_list(f"{server.base}/models") from None
    listing = _listing(fields, server, created)
    if name:
        return json.dumps(find(listing, name)).encode()
    return body if listing == fields else json.dumps(listing).encode()


def find(listing: Listing, name: str) -> dict[str, Any]:
    """The model of that name. Raises ApiError if there is none."""
    for entry in listing["data"]:
        if entry["id"] == name:
            return dict(entry)
    problem = errors.unknown_model(name, (entry["id"] for entry in listing["data"]))
    raise ApiError(404, str(problem), "model_not_found")


def _listing(fields: Any, server: Server, created: int) -> Listing:
    data = fields.get("data") if isinstance(fields, dict) else None
    if isinstance(data, list) and all(map(_is_entry, data)):
        return {"object": "list", **fields, "data": [_without_paths(entry) for entry in data]}
    data = [
        _entry(model.name, "vllm" if model.is_vllm else "unknown", model.context_length, created)
        for model in model_list.parse(fields, f"{server.base}/models", server.secrets)
    ]
    return {"object": "list", "data": data}


def _entry(name: str, owner: str, context_length: int | None, created: int) -> dict[str, Any]:
    fields = {"id": name, "object": "model", "created": created, "owned_by": owner}
    return fields | {"max_model_len": context_length}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)


def _without_paths(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry that names the model instead of where its weights are."""
    paths = {
        name: entry["id"]
        for name in PATH_FIELDS
        if isinstance(entry.get(name), str) and LOCAL_PATH.match(entry[name])
    }
    return entry | paths
