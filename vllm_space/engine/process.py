"""One run of the engine's process: its output read, its phases noted, its health asked, its end made sure of."""

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

NO_PROXY = {"http": "", "https": ""}  # a proxy of the owner's must not stand before loopback
PROGRESS_EVERY = 5  # seconds between two lines of progress
STOP_GRACE = 5  # seconds between asking the engine to stop and killing it
TRACKER_GRACE = 1  # seconds in which Python's resource tracker cleans up after the killed

# Lines of vLLM's log that begin a phase of its start, in the order in which they come.
PHASES = [
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"Initializing a V1 LLM engine|Resolved architecture", "setting up"),
        (r"Starting to load model", "loading the model"),
        (r"Downloading|Fetching \d+ files|\.safetensors:\s+\d+%", "downloading the weights"),
        (r"Loading safetensors|Loading weights", "loading the weights"),
        (r"Loading weights took|Model loading took", "measuring memory"),
        (r"Dynamo bytecode transform|Compiling a graph|Start compiling", "compiling"),
        (r"KV cache size|Maximum concurrency", "reserving the KV cache"),
        (r"Capturing CUDA graphs|Capturing the model|Warming up", "warming up"),
        (r"init engine \(profile", "opening the API"),
    )
]
PROGRESS_BAR = re.compile(r"\d+%\|")  # tqdm: vLLM's own download and loading progress
# What a library of vLLM's prints when the process ends, a hundred lines of it, whatever it ended of.
NOISE = re.compile(r"nanobind: |See https://nanobind|\s*- (?:leaked |\.\.\. skipped)")
TROUBLE = re.compile(r"\b(?:ERROR|CRITICAL|Traceback)\b|^\w*(?:Error|Exception): ")


class EngineProcess:
    """One run of the engine's process, its output read and kept."""

    def __init__(self, config: Settings, folder: Path, gpus: list[hardware.Gpu]):
        self.config = config
        self.folder = folder
        self._begins("starting Python")
        self.lines: deque[str] = deque(maxlen=200)
        self.log = run_dir.open_log(folder)
        self.process = subprocess.Popen(
            command.command_line(config, gpus),
            env=command.environment(config, gpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=functools.partial(_begin, command.cores(config, gpus)),
        )
        run_dir.write_pid(folder, self.process.pid)
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, output: IO[bytes]) -> None:
        last_bar = 0.0
        for raw in output:
            # A progress bar rewrites its line with carriage returns: only its last state counts.
            line = raw.decode("utf-8", "replace").rstrip().rsplit("\r", 1)[-1]
            line = self.config.mask(line)
            if not line:
                continue
            if not NOISE.match(line):
                self.lines.append(line)
            with contextlib.suppress(
                OSError
            ):  # the disk may be full; the engine must not wait for a reader
                self.log.write(line + "\n")
            for pattern, phase in PHASES:
                if pattern.search(line) and phase != self.phase:
                    self._begins(phase)
            if PROGRESS_BAR.search(line) and time.monotonic() - last_bar > PROGRESS_EVERY:
                last_bar = time.monotonic()
                say(line)
        with contextlib.suppress(OSError):
            self.log.close()

    def _begins(self, phase: str) -> None:
        self.phase = phase
        run_dir.begin_phase(self.folder, run_dir.VLLM_PHASE + phase)

    def healthy(self) -> bool:
        url = f"http://{command.HOST}:{self.config.engine_port}/health"
        try:
            return requests.get(url, timeout=5, proxies=NO_PROXY).ok
        except requests.RequestException:
            return False

    def dead(self) -> bool:
        return self.process.poll() is not None

    def why_dead(self) -> str:
        """Why it ended, as a sentence without the full stop; its last lines go to the log."""
        self.stop(grace=0)  # what is left of it can do nothing more, and holds the pipe open
        self.reader.join(timeout=5)  # its last words may still be in there
        lines = list(self.lines)
        if any(TROUBLE.search(line) for line in lines):
            say("The engine's last lines:\n" + "\n".join("    " + line for line in lines[-30:]))
        return deaths.explain(lines, self.process.returncode)

    def stop(self, grace: float = STOP_GRACE) -> None:
        """End the process and all its children, after `grace` seconds by force; a GPU must never be left held."""
        _signal_group(self.process.pid, signal.SIGTERM)
        if not self._ends_within(grace):
            _kill_all_but_tracker(self.process.pid)
            self._ends_within(TRACKER_GRACE)
            _signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _ends_within(self, seconds: float) -> bool:
        """Wait until no process of the group is left, zombies reaped."""
        deadline = time.monotonic() + seconds
        while True:
            self.process.poll()
            with contextlib.suppress(ChildProcessError):
                # Orphans of the group are this process's children: see prctl.adopt_orphans.
                while os.waitpid(-self.process.pid, os.WNOHANG)[0]:
                    pass
            if not _signal_group(self.process.pid, 0):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _signal_group(leader: int, number: int) -> bool:
    """Send a signal to every process of a group; False when none is left."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    return True


def _kill_all_but_tracker(leader: int) -> None:
    """Kill a group, save Python's resource tracker: it removes the shared memory that the others leave, and ends."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_group = os.getpgid(int(folder.name)) == leader
            if of_group and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def _begin(cores: set[int]) -> None:
    """What the engine's process does first: lead a group, keep to its cores, and die with its parent.

    In a group of its own, its workers get the signals that we send, and no Ctrl-C of the terminal. It stays in the
    page's session: Linux shares the cores out by session, and vLLM's spinning processes would starve the page.
    """
    os.setpgrp()
    os.sched_setaffinity(0, cores)
    prctl.die_with_parent()


def say(text: str) -> None:
    """Print a line for the owner, who reads it in the Space's log as it comes."""
    print(text, flush=True)
