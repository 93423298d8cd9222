"""Checks the YAML block of a Space's README against Hugging Face's documented rules.

See huggingface.co/docs/hub/spaces-config-reference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import yaml

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HARDWARE = set(
    """cpu-basic cpu-upgrade t4-small t4-medium l4x1 l4x4 l40sx1 l40sx4 l40sx8
    a10g-small a10g-large a10g-largex2 a10g-largex4 a100-large a100x4 a100x8""".split()
)
CROSS_ORIGIN = {f"cross-origin-{what}-policy" for what in ("embedder", "opener", "resource")}
REPOSITORY = r"[\w.-]+/[\w.-]+"
LONGEST_OAUTH = 43200  # minutes


def text(pattern: str = r".+", longest: int = 10_000) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, str) and len(value) <= longest and bool(re.fullmatch(pattern, value))
    )


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


def many(item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(item, value))


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def emoji(value: Any) -> bool:
    """Symbols only, with joiners and variation selectors."""
    if not isinstance(value, str) or not value:
        return False
    kinds = [unicodedata.category(character) for character in value]
    return kinds[0] == "So" and set(kinds) <= {"So", "Sk", "Mn", "Cf"}


RULES: dict[str, Callable[[Any], bool]] = {
    "title": text(),
    "emoji": emoji,
    "colorFrom": one_of(*COLORS),
    "colorTo": one_of(*COLORS),
    "sdk": one_of("gradio", "docker", "static"),
    "sdk_version": text(r"\d+\.\d+(\.\d+)?\w*"),  # quoted: YAML reads 6.30 as 6.3
    "python_version": text(r"3\.\d+(\.\d+)?"),
    "suggested_hardware": one_of(*HARDWARE),
    "suggested_storage": one_of("small", "medium", "large"),
    "app_file": text(r"[^/].*"),
    "app_build_command": text(),
    "app_port": lambda value: isinstance(value, int) and 0 < value < 65536,
    "base_path": text(r"/.*"),
    "fullWidth": boolean,
    "header": one_of("mini", "default"),
    "short_description": text(longest=60),
    "models": many(text(REPOSITORY)),
    "datasets": many(text(REPOSITORY)),
    "tags": many(text()),
    "thumbnail": text(r"https?://.+"),
    "pinned": boolean,
    "license": text(r"[a-z0-9.-]+"),
    "hf_oauth": boolean,
    "hf_oauth_scopes": many(text(r"[a-z-]+")),
    "hf_oauth_expiration_minutes": lambda value: (
        isinstance(value, int) and 0 < value <= LONGEST_OAUTH
    ),
    "hf_oauth_authorized_org": lambda value: text()(value) or many(text())(value),
    "disable_embedding": boolean,
    "startup_duration_timeout": text(r"\d+ ?(s|m|h|d)\w*"),
    "custom_headers": lambda value: isinstance(value, dict) and set(value) <= CROSS_ORIGIN,
    "preload_from_hub": many(text(rf"{REPOSITORY}( [^ ]+( [0-9a-f]{{40}})?)?")),
}


def problems(readme: str) -> list[str]:
    """A sentence for each value that Hugging Face would reject or ignore."""
    block = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", readme, re.DOTALL)
    if not block:
        return ["no YAML block between two lines of three dashes at the top"]
    try:
        card = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(card, dict):
        return ["the YAML block is not a mapping"]
    required = ["title", "sdk"]
    if card.get("sdk") == "gradio":
        required += ["sdk_version", "app_file"]
    sentences = [f"{name} is required" for name in required if name not in card]
    for name, value in card.items():
        if name not in RULES:
            sentences.append(f"{name} is unknown")
        elif not RULES[name](value):
            sentences.append(f"{name} cannot be {value!r}")
    return sentences
