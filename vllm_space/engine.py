"""The vLLM api_server as a process: its command line, start, wait, restart, stop, and why it died.

Run by start.sh as `python -m vllm_space.engine`. It writes what it is doing to the log and to
`status.json` in ENGINE_RUN_DIR, which the page reads. Knows nothing of Gradio.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import requests

from vllm_space import errors, hardware, model_check, preflight, settings, startup, weights
from vllm_space.settings import Settings

HOST = "127.0.0.1"
NO_PROXY = {"http": "", "https": ""}  # a proxy of the owner's must not stand before loopback
NO_HOST = "none.invalid"  # no name ends so: RFC 2606
POLL = 0.2  # seconds between two looks at a starting engine
PROGRESS_EVERY = 5  # seconds between two lines of progress
HEALTH_EVERY = 5  # seconds between two health checks of a running engine
HUNG_AFTER = 60  # seconds without health after which a live process counts as dead
STOP_GRACE = 5  # seconds between asking the engine to stop and killing it
TRACKER_GRACE = 1  # seconds in which Python's resource tracker cleans up after the killed
STEADY_AFTER = 600  # seconds of service after which earlier deaths are forgotten
PAUSES = (1, 5, 20, 60)  # seconds before the first, second, ... restart in a row
STATUS_FILE = "status.json"
LOG_FILE = "engine.log"
PID_FILE = "engine.pid"  # leader of the engine's process group, for start.sh should this process be killed


# -- what to run -------------------------------------------------------------------------------------------


def model_id(config: Settings, gpus: list[hardware.Gpu]) -> str:
    """The model to serve: the owner's, else one that fits a T4, else the embedded demo model."""
    if config.model_id:
        return config.model_id
    on_gpu = gpus and config.engine_device != "cpu"
    return settings.DEFAULT_GPU_MODEL if on_gpu else str(settings.DEMO_MODEL)


def served_model_name(model: str) -> str:
    """The name under which the API knows a model: a local folder shows its own name only, never the path."""
    if Path(model) == settings.DEMO_MODEL:
        return settings.DEMO_MODEL_NAME
    return Path(model).resolve().name if Path(model).exists() else model


def command(config: Settings, gpus: list[hardware.Gpu]) -> list[str]:
    """The engine's command line. No secret is in it: other users of the machine can read it."""
    model = model_id(config, gpus)
    on_gpu = bool(gpus) and config.engine_device != "cpu"
    dtype = config.dtype
    if dtype is None and on_gpu and min(gpu.compute_capability for gpu in gpus) < 8:
        dtype = "half"  # before Ampere there is no bfloat16
    flags: dict[str, object] = {
        "--model": model,
        "--host": HOST,
        "--port": config.engine_port,
        "--served-model-name": served_model_name(model),
        "--revision": config.model_revision if config.model_revision != "main" else None,
        "--dtype": dtype,
        "--quantization": config.quantization,
        "--max-model-len": config.max_model_len or -1,  # -1 fits the context to the memory
        "--gpu-memory-utilization": config.gpu_memory_utilization,
        "--tensor-parallel-size": config.tensor_parallel_size or (_power_of_two(len(gpus)) if on_gpu else None),
        "--trust-remote-code": config.trust_remote_code,
        "--enforce-eager": not on_gpu,
    }
    if config.engine_module.endswith("openai.api_server"):  # the legacy server knows none of these
        flags |= {
            "--reasoning-parser": config.reasoning_parser,
            "--tool-call-parser": config.tool_call_parser,
            "--enable-auto-tool-choice": bool(config.tool_call_parser),
            # No request makes the engine fetch an address: pictures come within requests. ENGINE_ARGS may name hosts.
            "--allowed-media-domains": NO_HOST,
            "--disable-uvicorn-access-log": True,
        }
    line = [sys.executable, "-m", config.engine_module]
    for flag, value in flags.items():
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line + list(config.engine_args)  # last, so that they win


def environment(config: Settings, gpus: list[hardware.Gpu]) -> dict[str, str]:
    """The engine's environment: this one's, and what it lacks. The owner's own values win."""
    quiet = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")  # usage statistics
    extra = {"PYTHONUNBUFFERED": "1"} | dict.fromkeys(quiet, "1")
    if not hardware.has_nvcc():
        extra["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # it compiles with nvcc at start: vLLM issue 49497
    if not gpus or config.engine_device == "cpu":
        # GiB for the KV cache: a part of what is free, so that weights and the system have room.
        extra["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(16, int(hardware.memory_gib() / 8))))
        if cores := hardware.core_limit():
            # vLLM would bind a thread to every core it sees, and they would wait for each other. One is for the rest.
            extra |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores - 1))}
    secret = {
        "VLLM_API_KEY": config.model_api_key.get_secret_value() if config.model_api_key else "",
        "HF_TOKEN": config.hf_token.get_secret_value() if config.hf_token else "",
    }
    # The page's own secrets are none of the engine's, nor of what it runs.
    own = {name: value for name, value in os.environ.items() if name.upper() not in settings.SECRETS}
    return extra | own | {name: value for name, value in secret.items() if value}


def cores(config: Settings, gpus: list[hardware.Gpu]) -> set[int]:
    """The CPU cores that the engine may use: without a GPU all but one, which is for the page.

    vLLM's processes spin while they wait for each other: on every core, they keep the page and the door waiting for
    seconds. Where the owner, or `environment` on a share of a machine, sees to its threads, it may use all.
    """
    mine = sorted(os.sched_getaffinity(0))
    bound = "VLLM_CPU_OMP_THREADS_BIND" in environment(config, gpus)
    on_gpu = gpus and config.engine_device != "cpu"
    return set(mine if on_gpu or bound or len(mine) == 1 else mine[:-1])


def _power_of_two(count: int) -> int:
    """The largest power of two that is at most `count`: attention heads divide by it."""
    return 1 << (count.bit_length() - 1)


# -- what it is doing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What the engine is doing, as the page shows it. Times are seconds since the epoch."""

    state: str = "starting"  # starting | ready | restarting | failed
    phase: str = "starting"  # while starting: what it is busy with
    since: float = 0.0  # when this state began
    restarts: int = 0  # deaths survived since start.sh began
    reason: str = ""  # of the last death


def read_status(run_dir: Path | None) -> Status | None:
    """The status that the engine's process last wrote; None where there is none."""
    try:
        return Status(**json.loads((run_dir / STATUS_FILE).read_text())) if run_dir else None
    except (OSError, ValueError, TypeError):
        return None


def has_started(run_dir: Path) -> bool:
    """Whether the engine has been ready once."""
    status = read_status(run_dir)
    return status is not None and status.state != "starting"


def _write_status(run_dir: Path, status: Status) -> None:
    draft = run_dir / (STATUS_FILE + ".new")
    try:
        draft.write_text(json.dumps(asdict(status)))
        draft.replace(run_dir / STATUS_FILE)  # readers see the old one or the new one, never half
    except OSError as error:  # a full disk is no reason to end an engine that runs
        say(f"WARNING: {run_dir} cannot be written to ({error.strerror}): the page does not learn of {status.state}.")


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


class Engine:
    """One run of the engine's process, its output read and kept."""

    def __init__(self, config: Settings, gpus: list[hardware.Gpu]):
        self.config = config
        self._begins("starting Python")
        self.lines: deque[str] = deque(maxlen=200)
        self.log = (config.engine_run_dir / LOG_FILE).open("a", buffering=1, encoding="utf-8")
        self.process = subprocess.Popen(
            command(config, gpus),
            env=environment(config, gpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=functools.partial(_begin, cores(config, gpus)),
        )
        (config.engine_run_dir / PID_FILE).write_text(str(self.process.pid))
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
            with contextlib.suppress(OSError):  # the disk may be full; the engine must not wait for a reader
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
        startup.begins(self.config.engine_run_dir, startup.OF_VLLM + phase)

    def healthy(self) -> bool:
        try:
            return requests.get(f"http://{HOST}:{self.config.engine_port}/health", timeout=5, proxies=NO_PROXY).ok
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
        return errors.explain_death(lines, self.process.returncode)

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
                while os.waitpid(-self.process.pid, os.WNOHANG)[0]:  # orphans of the group are ours: see adopt_orphans
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


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happened (prctl PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _begin(cores: set[int]) -> None:
    """What the engine's process does first: lead a group, keep to its cores, and die with its parent.

    In a group of its own, its workers get the signals that we send, and no Ctrl-C of the terminal. It stays in the
    page's session: Linux shares the cores out by session, and vLLM's spinning processes would starve the page.
    """
    os.setpgrp()
    os.sched_setaffinity(0, cores)
    die_with_parent()


def adopt_orphans() -> None:
    """Ask Linux to make this process the parent of its orphaned descendants (prctl PR_SET_CHILD_SUBREAPER).

    The first process of a container may reap nothing, and a group of zombies would look alive for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)


# -- keeping it running ----------------------------------------------------------------------------------------


def supervise(config: Settings) -> None:
    """Start the engine and keep it running until a signal ends this process.

    Raises EngineError when the first start fails, or when it died more than MAX_RESTARTS times in a row.
    """
    gpus = hardware.gpus()
    status = Status(since=time.time())
    _write_status(config.engine_run_dir, status)  # before anything takes time: the page waits for a status
    if not read_status(config.engine_run_dir):
        raise errors.EngineError(f"{config.engine_run_dir} cannot be written to: set TMPDIR to a folder with room.")
    model = model_id(config, gpus)
    for warning in model_check.check(config, model, gpus if config.engine_device == "auto" else []):
        say(f"WARNING: {warning}")
    deaths = 0  # in a row
    while True:
        _write_status(config.engine_run_dir, status)
        preflight.require_free_port(HOST, config.engine_port, "ENGINE_PORT")
        engine = Engine(config, gpus)
        try:
            if not deaths:  # the first start. Only now, since a process cannot safely be forked while a thread imports
                weights.fetch_in_background(config, model, say)
            began = time.monotonic()
            reason = _wait_until_ready(engine, status)
            if reason and status.state == "starting":
                raise errors.EngineError(f"vLLM did not start: {reason}.")
            if not reason:
                say(f"vLLM is ready after {time.monotonic() - began:.0f} s.")
                startup.begins(config.engine_run_dir, "opening the page")
                status = replace(status, state="ready", phase="", since=time.time())
                _write_status(config.engine_run_dir, status)
                hung = _watch(engine)
                if time.time() - status.since > STEADY_AFTER:
                    deaths = 0
                # Told at once: to end what is left of it and to find out why it died may take seconds.
                _write_status(config.engine_run_dir, Status("restarting", "", time.time(), status.restarts))
                reason = hung or engine.why_dead()
        except BaseException:
            _write_status(config.engine_run_dir, replace(status, state="failed", since=time.time()))
            raise
        finally:
            engine.stop()
        deaths += 1
        if deaths > config.max_restarts:
            raise errors.EngineError(f"vLLM died {deaths} times in a row; the last time: {reason}.")
        pause = PAUSES[min(deaths, len(PAUSES)) - 1]
        say(f"vLLM died: {reason}. Restart {deaths} of {config.max_restarts} in {pause} s.")
        status = Status("restarting", "starting Python", time.time(), status.restarts + 1, reason)
        _write_status(config.engine_run_dir, status)
        time.sleep(pause)


def _wait_until_ready(engine: Engine, status: Status) -> str:
    """Wait, telling the phase and the time; the reason of the failure, or an empty string when ready."""
    began = told = time.monotonic()
    phase = ""
    while not engine.healthy():
        elapsed = time.monotonic() - began
        if engine.dead():
            return engine.why_dead()
        if elapsed > engine.config.startup_timeout:
            return (
                f"it was still {engine.phase} after {elapsed:.0f} s: raise STARTUP_TIMEOUT if the model is large, "
                "or choose a smaller one"
            )
        if (engine.phase != phase and time.monotonic() - told > 1) or time.monotonic() - told > PROGRESS_EVERY:
            told, phase = time.monotonic(), engine.phase
            say(f"vLLM is {phase} ({elapsed:.0f} s)")
            _write_status(engine.config.engine_run_dir, replace(status, phase=phase))
        time.sleep(POLL)
    return ""


def _watch(engine: Engine) -> str:
    """Block while the engine lives. One without health for a minute counts as dead: then that is the answer."""
    last_healthy = time.monotonic()
    next_check = last_healthy + HEALTH_EVERY
    while not engine.dead():
        if time.monotonic() >= next_check:
            if engine.healthy():
                last_healthy = time.monotonic()
            elif time.monotonic() - last_healthy > HUNG_AFTER:
                return f"it answered nothing for {HUNG_AFTER} s"
            next_check = time.monotonic() + HEALTH_EVERY
        time.sleep(POLL)
    return ""


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    die_with_parent()
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    config = settings.load()
    try:
        supervise(config)
    except errors.SpaceError as error:
        sys.exit(f"ERROR: {config.mask(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
