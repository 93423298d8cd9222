"""Keeps the engine running: start it, wait until it is ready, watch it, restart it when it dies.

Says what it is doing in the log and in the folder that it shares with the page (run_dir.py).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from vllm_space import errors, hardware, run_dir
from vllm_space.engine import command, download, model_check, preflight
from vllm_space.engine.process import PROGRESS_EVERY, EngineProcess, say
from vllm_space.run_dir import Status
from vllm_space.settings import Settings

POLL = 0.2  # seconds between two looks at a starting engine
HEALTH_EVERY = 5  # seconds between two health checks of a running engine
HUNG_AFTER = 60  # seconds without health after which a live process counts as dead
STEADY_AFTER = 600  # seconds of service after which earlier deaths are forgotten
PAUSES = (1, 5, 20, 60)  # seconds before the first, second, ... restart in a row


def supervise(config: Settings) -> None:
    """Start the engine and keep it running until a signal ends this process.

    Raises EngineError when the first start fails, or when it died more than MAX_RESTARTS times in a row.
    """
    folder = config.engine_run_dir
    if folder is None:
        raise errors.EngineError("ENGINE_RUN_DIR is not set: run ./start.sh, which sets it.")
    gpus = hardware.gpus(config.engine_device)
    status = Status(since=time.time())
    _tell(folder, status)  # before anything takes time: the page waits for a status
    if not run_dir.read_status(folder):
        raise errors.EngineError(
            f"{folder} cannot be written to: set TMPDIR to a folder with room."
        )
    model = command.model_id(config, gpus)
    for warning in model_check.check(config, model, gpus):
        say(f"WARNING: {warning}")
    deaths = 0  # in a row
    while True:
        _tell(folder, status)
        preflight.require_free_port(command.HOST, config.engine_port, "ENGINE_PORT")
        engine = EngineProcess(config, folder, gpus)
        try:
            if not deaths:  # the first start. Only now, since a process cannot safely be forked while a thread imports
                download.fetch_in_background(config, model, say)
            began = time.monotonic()
            reason = _wait_until_ready(engine, status)
            if reason and status.state == "starting":
                raise errors.EngineError(f"vLLM did not start: {reason}.")
            if not reason:
                say(f"vLLM is ready after {time.monotonic() - began:.0f} s.")
                run_dir.begin_phase(folder, "opening the page")
                status = replace(status, state="ready", phase="", since=time.time())
                _tell(folder, status)
                hung = _watch(engine)
                if time.time() - status.since > STEADY_AFTER:
                    deaths = 0
                # Told at once: to end what is left of it and to find out why it died may take seconds.
                _tell(folder, Status("restarting", "", time.time(), status.restarts))
                reason = hung or engine.why_dead()
        except BaseException:
            _tell(folder, replace(status, state="failed", since=time.time()))
            raise
        finally:
            engine.stop()
        deaths += 1
        if deaths > config.max_restarts:
            raise errors.EngineError(f"vLLM died {deaths} times in a row; the last time: {reason}.")
        pause = PAUSES[min(deaths, len(PAUSES)) - 1]
        say(f"vLLM died: {reason}. Restart {deaths} of {config.max_restarts} in {pause} s.")
        status = Status("restarting", "starting Python", time.time(), status.restarts + 1, reason)
        _tell(folder, status)
        time.sleep(pause)


def _wait_until_ready(engine: EngineProcess, status: Status) -> str:
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
        if (
            engine.phase != phase and time.monotonic() - told > 1
        ) or time.monotonic() - told > PROGRESS_EVERY:
            told, phase = time.monotonic(), engine.phase
            say(f"vLLM is {phase} ({elapsed:.0f} s)")
            _tell(engine.folder, replace(status, phase=phase))
        time.sleep(POLL)
    return ""


def _watch(engine: EngineProcess) -> str:
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


def _tell(folder: Path, status: Status) -> None:
    """Tell the page. A full disk is no reason to end an engine that runs."""
    try:
        run_dir.write_status(folder, status)
    except OSError as error:
        say(
            f"WARNING: {folder} cannot be written to ({error.strerror}): the page does not learn of {status.state}."
        )
