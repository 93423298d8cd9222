"""The log that the engine's process writes into ENGINE_RUN_DIR, read for the page. Its secrets are masked there."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from vllm_space.engine import LOG_FILE

TAIL = 64 * 2**10  # bytes
HEAD = 2**20  # bytes; what vLLM says of its configuration comes in its first lines
DTYPE = re.compile(r"\bdtype=torch\.(\w+)")


def tail(run_dir: Path | None, lines: int = 200) -> str:
    """The last lines; empty where there is no log."""
    try:
        with (run_dir / LOG_FILE).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
    except (OSError, TypeError):
        return ""


@lru_cache
def dtype(run_dir: Path) -> str:
    """The number format that the engine chose for the weights; empty where its log does not tell."""
    try:
        with (run_dir / LOG_FILE).open("rb") as log:
            found = DTYPE.search(log.read(HEAD).decode("utf-8", "replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""
