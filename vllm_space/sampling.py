"""Sampling parameters: validates a visitor's values and turns them into request fields.

An unset parameter is not sent, so the model's own generation_config applies. The bounds are those
of the variables with the same names in settings.py. Knows nothing of Gradio or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, create_model

from vllm_space import errors, settings
from vllm_space.settings import Settings, shorten

NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)  # in the order of the page

_FIELDS: dict[str, Any] = {
    name: (field.annotation, field) for name, field in Settings.model_fields.items()
}
_Sampling = create_model("_Sampling", **{name: _FIELDS[name] for name in NAMES})


def defaults(config: Settings) -> dict[str, Any]:
    """The owner's default for each parameter; None means the model's own value."""
    return {name: getattr(config, name) for name in NAMES} | {
        "stop": "\n".join(config.stop) or None
    }


def request_fields(values: Mapping[str, Any], max_tokens_limit: int) -> dict[str, Any]:
    """The validated request fields for `values`, without those that are unset (None or empty).

    max_tokens is always sent, by default as the limit, so that no answer is unbounded. Raises
    Rejected with one sentence for each invalid value.
    """
    set_values = {
        name: value
        for name, value in values.items()
        if name in NAMES and value not in (None, "", [], ())
    }
    try:
        fields: dict[str, Any] = _Sampling(**set_values).model_dump(include=set(set_values))
    except ValidationError as error:
        raise errors.Rejected(" ".join(_explain(problem) for problem in error.errors())) from None
    if fields.setdefault("max_tokens", max_tokens_limit) > max_tokens_limit:
        raise errors.Rejected(
            f"max_tokens={fields['max_tokens']} is too large: "
            f"this Space allows at most {max_tokens_limit}."
        )
    if "stop" in fields:
        fields["stop"] = list(fields["stop"])
    return fields


def _explain(problem: Any) -> str:
    name = str(problem["loc"][0])
    allowed = settings.allowed(name).replace("MAX_TOKENS_LIMIT", "the limit of this page")
    return f"{name}={shorten(str(problem['input']))} is invalid. Use {allowed}."
