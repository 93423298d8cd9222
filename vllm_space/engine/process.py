"""One run of the engine's process: start it, follow its log, check its health, stop it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

import requests

from vllm_space import hardware, prctl, run_dir
from vllm_space.engine import command, deaths
from vllm_space.settings import Settings

NO_PROXY = {"http": "", "https": ""}  # reach loopback directly, whatever the environment says
PROGRESS_EVERY = 10  # seconds between two lines of progress
STOP_GRACE = 5  # seconds between asking the engine to stop and killing it
TRACKER_GRACE = 1  # seconds that Python's resource tracker has to clean up
KEPT_LINES = 200  # of output, to explain a death
SHOWN_LINES = 30  # of these, in the log

# Patterns in vLLM's log -> the phase of its start that begins there, in order.
PHASES = [
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"Initializing a V1 LLM engine|Resolved architecture", "setting up"),
        (r"Starting to load model", "loading the model"),
        (r"Downloading|Fetching \d+ files|\.safetensors:\s+\d+%", "downloading the weights"),
        (r"Loading safetensors|Loading weights", "loading the weights"),
        (r"Loading weights took|Model loading took", "profiling memory"),
        (r"Dynamo bytecode transform|Compiling a graph|Start compiling", "compiling"),
        (r"KV cache size|Maximum concurrency", "allocating the KV cache"),
        (r"Capturing CUDA graphs|Capturing the model|Warming up", "warming up"),
        (r"init engine \(profile", "starting the API server"),
    )
]
PROGRESS_BAR = re.compile(r"\d+%\|")  # tqdm's
# A hundred lines that nanobind, a dependency of vLLM, prints at exit, whatever the reason.
NOISE = re.compile(r"nanobind: |See https://nanobind|\s*- (?:leaked |\.\.\. skipped)")
ERROR_LINE = re.compile(r"\b(?:ERROR|CRITICAL|Traceback)\b|^\w*(?:Error|Exception): ")


class EngineProcess:
    """One run of the engine's process."""

    def __init__(self, config: Settings, folder: Path, gpus: list[hardware.Gpu]):
        self.config = config
        self.phase_number, self.phase = 0, "starting Python"
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.log = run_dir.open_log(folder)
        self.process = subprocess.Popen(
            command.command_line(config, gpus),
            env=command.environment(config, gpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=functools.partial(_prepare_child, command.cores(config, gpus)),
        )
        run_dir.write_pid(folder, self.process.pid)
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, output: IO[bytes]) -> None:
        last_progress = 0.0
        for raw in output:
            # A progress bar overwrites its line with carriage returns: keep its last state.
            line = raw.decode("utf-8", "replace").rstrip().rsplit("\r", 1)[-1]
            line = self.config.mask(line)
            if not line:
                continue
            if not NOISE.match(line):
                self.lines.append(line)
            with contextlib.suppress(OSError):  # a full disk must not block the engine's output
                self.log.write(line + "\n")
            for number, (pattern, phase) in enumerate(PHASES, start=1):
                # Workers load at different speeds: one may still report a phase that others left.
                if number > self.phase_number and pattern.search(line):
                    self.phase_number, self.phase = number, phase
            if PROGRESS_BAR.search(line) and time.monotonic() - last_progress > PROGRESS_EVERY:
                last_progress = time.monotonic()
                say(line)
        with contextlib.suppress(OSError):
            self.log.close()

    def is_healthy(self, timeout: float = 5) -> bool:
        """Whether it responds to a health check within `timeout` seconds."""
        url = f"http://{command.HOST}:{self.config.engine_port}/health"
        try:
            return requests.get(url, timeout=timeout, proxies=NO_PROXY).ok
        except requests.RequestException:
            return False

    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def cause_of_death(self) -> str:
        """Why it died; see deaths.py."""
        self.stop(grace=0)  # its children can do nothing useful now, and they keep the pipe open
        self.reader.join(timeout=5)  # the pipe may still hold the last lines
        return deaths.explain(list(self.lines), self.process.returncode)

    def print_last_lines(self) -> None:
        """Print the end of the engine's log, if it contains an error."""
        lines = list(self.lines)
        if any(ERROR_LINE.search(line) for line in lines):
            say("The engine's last lines:")
            say("\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]))

    def stop(self, grace: float = STOP_GRACE) -> None:
        """End the process and its children, by force after `grace` seconds, to free the GPU."""
        _signal_group(self.process.pid, signal.SIGTERM)
        if not self._ends_within(grace):
            _kill_all_but_tracker(self.process.pid)
            self._ends_within(TRACKER_GRACE)
            _signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _ends_within(self, seconds: float) -> bool:
        """Wait until the process group is empty, and reap its zombies."""
        deadline = time.monotonic() + seconds
        while True:
            self.process.poll()
            with contextlib.suppress(ChildProcessError):
                # The group's orphans are children of this process: see prctl.adopt_orphans.
                while os.waitpid(-self.process.pid, os.WNOHANG)[0]:
                    pass
            if not _signal_group(self.process.pid, 0):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _signal_group(leader: int, number: int) -> bool:
    """Send a signal to every process of a group; False if none is left."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    return True


def _kill_all_but_tracker(leader: int) -> None:
    """Kill a process group except Python's resource tracker.

    The tracker deletes the shared memory that the killed processes leave behind, and then ends.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_member = os.getpgid(int(folder.name)) == leader
            if is_member and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def _prepare_child(cores: set[int]) -> None:
    """Runs in the new process: lead a process group, keep to the cores, die with the parent.

    With its own process group, the engine gets the signals sent here, but no Ctrl-C from the
    terminal. It stays in the page's session, because Linux divides the CPU between sessions and
    vLLM's spinning processes would starve the page.
    """
    os.setpgrp()
    os.sched_setaffinity(0, cores)
    prctl.die_with_parent()


def say(text: str) -> None:
    """Print a line of the start log."""
    print(text, flush=True)
