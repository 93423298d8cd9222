"""The folder that start.sh, the engine's process and the page share while a Space runs (ENGINE_RUN_DIR).

    plan         what preflight decided; start.sh acts on it
    phases       when each phase of the start began; start.sh adds to it too
    status.json  what the engine is doing: the supervisor writes it, the page reads it
    engine.log   the engine's output, with secrets masked
    engine.pid   the leader of the engine's process group, for start.sh in case the supervisor was killed

Readers take None for the folder: then the engine runs elsewhere, and there is nothing to read. Knows neither
processes nor Gradio.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

PLAN = "plan"
PHASES = "phases"
STATUS = "status.json"
LOG = "engine.log"
PID = "engine.pid"

VLLM_PHASE = "vLLM: "  # prefix of the phases that are vLLM's own
BAR_WIDTH = 40  # characters of the chart's bars, all phases together
SHORT = 0.05  # seconds; shorter phases are left out of the chart

LOG_TAIL = 64 * 2**10  # bytes of the log that are shown at most
LOG_HEAD = 2**20  # bytes; vLLM prints its configuration in its first lines
DTYPE = re.compile(r"\bdtype=torch\.(\w+)")


# -- the plan -------------------------------------------------------------------------------------------------


def write_plan(folder: Path, plan: str) -> None:
    """Leave `plan` ("boot URL" or "page") for start.sh."""
    (folder / PLAN).write_text(plan + "\n")


# -- what the engine is doing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What the engine is doing. Times are seconds since the epoch."""

    state: str = "starting"  # starting | ready | restarting | failed
    phase: str = "starting"  # while it starts: what it is busy with
    since: float = 0.0  # when this state began
    restarts: int = 0  # deaths survived since start.sh began
    reason: str = ""  # of the last death

    @property
    def sentence(self) -> str:
        """The state as one sentence."""
        return f"The engine is {self.state}" + (f": {self.phase}." if self.phase else ".")


def read_status(folder: Path | None) -> Status | None:
    """The status that the supervisor last wrote, or None if there is none."""
    if folder is None:
        return None
    try:
        return Status(**json.loads((folder / STATUS).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_status(folder: Path, status: Status) -> None:
    """Replace the status; readers see the old one or the new one, never half of it. Raises OSError."""
    draft = folder / (STATUS + ".new")
    draft.write_text(json.dumps(asdict(status)))
    draft.replace(folder / STATUS)


def has_started(folder: Path) -> bool:
    """Whether the engine has been ready at least once."""
    status = read_status(folder)
    return status is not None and status.state != "starting"


# -- the engine's process and its log -------------------------------------------------------------------------


def write_pid(folder: Path, pid: int) -> None:
    (folder / PID).write_text(str(pid))


def open_log(folder: Path) -> TextIO:
    """The log, opened to append line by line."""
    return (folder / LOG).open("a", buffering=1, encoding="utf-8")


def log_tail(folder: Path | None, lines: int = 200) -> str:
    """The last lines of the log; empty if there is none."""
    if folder is None:
        return ""
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - LOG_TAIL))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


@lru_cache
def dtype(folder: Path) -> str:
    """The dtype that the engine chose for the weights; empty if its log does not say."""
    try:
        with (folder / LOG).open("rb") as log:
            match = DTYPE.search(log.read(LOG_HEAD).decode("utf-8", "replace"))
    except OSError:
        return ""
    return match.group(1) if match else ""


# -- the phases of the start ----------------------------------------------------------------------------------


def begin_phase(folder: Path, phase: str) -> None:
    """Note that a phase begins now. On a full disk it goes unnoted."""
    with suppress(OSError), (folder / PHASES).open("a", encoding="utf-8") as file:
        file.write(f"{time.time():.3f} {phase}\n")


def chart(folder: Path, now: float) -> str:
    """All phases until `now` (seconds since the epoch), each with its time and a bar; empty if none was noted."""
    try:
        lines = re.findall(
            r"^([\d.]+) (.+)$", (folder / PHASES).read_text(encoding="utf-8"), re.MULTILINE
        )
    except OSError:
        lines = []
    if not lines:
        return ""
    starts = [(float(start), name) for start, name in lines]
    durations: dict[str, float] = {}
    for (start, name), (end, _) in zip(starts, [*starts[1:], (now, "")], strict=True):
        durations[name] = durations.get(name, 0.0) + end - start
    total = sum(durations.values())
    vllm = sum(seconds for name, seconds in durations.items() if name.startswith(VLLM_PHASE))
    rows = [
        f"  {seconds:6.1f} s  {'#' * max(1, round(BAR_WIDTH * seconds / max(total, SHORT))):<{BAR_WIDTH}}  {name}"
        for name, seconds in durations.items()
        if seconds >= SHORT
    ]
    return "\n".join([f"Up after {total:.1f} s, {vllm:.1f} s of them vLLM's.", *rows])
