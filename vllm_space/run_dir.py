"""The folder that start.sh, the engine's process and the page share while a Space runs.

    started      empty; start.sh creates it first, so its time is when the start began
    plan         what preflight decided; start.sh acts on it
    status.json  what the engine is doing: the supervisor writes it, the page reads it
    engine.log   the engine's output, with secrets masked
    engine.pid   leader of the engine's process group, in case start.sh has to kill it
    uploads      files of visitors, which the page stores and deletes

ENGINE_RUN_DIR names the folder. It is None if the engine runs elsewhere: then there is nothing to
read. Knows nothing of processes or Gradio.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

STARTED = "started"
PLAN = "plan"
STATUS = "status.json"
LOG = "engine.log"
PID = "engine.pid"

LOG_TAIL = 64 * 2**10  # bytes at the end of the log that the page can show
LOG_HEAD = 2**20  # bytes at its beginning that hold vLLM's configuration
DTYPE = re.compile(r"\bdtype=torch\.(\w+)")


# -- the start -----------------------------------------------------------------------------


def write_plan(folder: Path, plan: str) -> None:
    """Tell start.sh what to do: "boot URL" or "page"."""
    (folder / PLAN).write_text(plan + "\n")


def seconds_since_start(folder: Path) -> float:
    """How long ago ./start.sh was run; 0 if it could not create its file."""
    try:
        return time.time() - (folder / STARTED).stat().st_mtime
    except OSError:
        return 0.0


# -- what the engine is doing ----------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What the engine is doing."""

    state: str = "starting"  # starting | ready | restarting | failed
    phase: str = ""  # what it is doing until it is ready
    since: float = 0.0  # when this state began, in seconds since the epoch
    restarts: int = 0  # since start.sh was run
    reason: str = ""  # cause of the last failure
    model: str = ""  # what it serves, and why: "org/name (MODEL_ID)"
    boot_seconds: float = 0.0  # how long vLLM took to become ready

    @property
    def sentence(self) -> str:
        """The state as a sentence."""
        return f"The engine is {self.state}" + (f": {self.phase}." if self.phase else ".")


def read_status(folder: Path | None) -> Status | None:
    """The last status that the supervisor wrote, or None."""
    if folder is None:
        return None
    try:
        return Status(**json.loads((folder / STATUS).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_status(folder: Path, status: Status) -> None:
    """Replace the status atomically. Raises OSError."""
    draft = folder / (STATUS + ".new")
    draft.write_text(json.dumps(asdict(status)))
    draft.replace(folder / STATUS)


def has_started(folder: Path) -> bool:
    """Whether the engine has been ready at least once."""
    status = read_status(folder)
    return status is not None and status.state in ("ready", "restarting")


# -- the engine's process and its log --------------------------------------------------------


def write_pid(folder: Path, pid: int) -> None:
    (folder / PID).write_text(str(pid))


def open_log(folder: Path) -> TextIO:
    """The log, opened for appending and flushed after every line."""
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
