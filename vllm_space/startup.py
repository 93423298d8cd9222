"""The phases of a start, and how long each took.

Whoever begins one adds a line to the file `phases` in ENGINE_RUN_DIR, start.sh first: the time in seconds since the
epoch, and a name. The page prints the whole when its port is open.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

FILE = "phases"
OF_VLLM = "vLLM: "  # how the names of its phases begin
WIDTH = 40  # characters of a bar as long as the start
SHORT = 0.05  # seconds; a phase of less is not shown


def begins(run_dir: Path, phase: str) -> None:
    """Note that a phase begins now. On a full disk it goes unnoted."""
    with suppress(OSError), (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(f"{time.time():.3f} {phase}\n")


def chart(run_dir: Path, now: float) -> str:
    """All phases until `now` (seconds since the epoch), each with its time and a bar; empty where none was noted."""
    try:
        noted = re.findall(r"^([\d.]+) (.+)$", (run_dir / FILE).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        noted = []
    if not noted:
        return ""
    began = [(float(at), name) for at, name in noted]
    took: dict[str, float] = {}
    for (at, name), (until, _) in zip(began, [*began[1:], (now, "")], strict=True):
        took[name] = took.get(name, 0.0) + until - at
    total = sum(took.values())
    of_vllm = sum(seconds for name, seconds in took.items() if name.startswith(OF_VLLM))
    rows = [
        f"  {seconds:6.1f} s  {'#' * max(1, round(WIDTH * seconds / max(total, SHORT))):<{WIDTH}}  {name}"
        for name, seconds in took.items()
        if seconds >= SHORT
    ]
    return "\n".join([f"Up after {total:.1f} s, {of_vllm:.1f} s of them vLLM's.", *rows])
