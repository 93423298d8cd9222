"""Keeps the engine running: starts it, waits until it is ready, restarts it if it dies or hangs.

Reports what it is doing in the log, and to the page through their common folder (run_dir.py).
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from vllm_space import errors, hardware, listening, run_dir
from vllm_space.engine import command, download, model_check
from vllm_space.engine.cpu_meter import CpuMeter
from vllm_space.engine.process import EngineProcess, say
from vllm_space.run_dir import Status
from vllm_space.settings import Settings

POLL = 0.2  # seconds between two looks at the engine
REPORT_EVERY = 60  # seconds between two lines about a long phase
HEALTH_EVERY = 5  # seconds between two health checks of a running engine
HEALTH_TIMEOUT = 15  # seconds that such a check waits for the response
HUNG_AFTER = 60  # seconds without a response after which a live process counts as hung
STARVED_AFTER = 600  # the same while it does not get the CPU that it needs to respond
STEADY_AFTER = 600  # seconds of service after which earlier deaths no longer count
PAUSES = (1, 5, 20, 60)  # seconds before the first, second, ... restart in a row


def supervise(config: Settings) -> NoReturn:
    """Start the engine and keep it running until a signal ends this process.

    Raises EngineError if it cannot be started, or if it dies more than MAX_RESTARTS times in a row.
    """
    folder = config.engine_run_dir
    if folder is None:
        raise errors.EngineError("ENGINE_RUN_DIR is not set: run ./start.sh, which sets it.")
    gpus = hardware.gpus(config.engine_device)
    model = command.model_id(config, gpus)
    label = f"{command.served_model_name(model)} ({command.model_origin(config, gpus)})"
    status = Status(phase="checking the model", since=time.time(), model=label)
    _publish(folder, status)
    if not run_dir.read_status(folder):
        raise errors.EngineError(f"{folder} is not writable: set TMPDIR to a folder with space.")
    say(f"Checking {label}")
    for warning in model_check.check(config, model, gpus):
        say(f"WARNING: {warning}")

    deaths = 0  # in a row
    while True:
        listening.require_free_port(command.HOST, config.engine_port, "ENGINE_PORT")
        engine = EngineProcess(config, folder, gpus)
        hung = ""
        try:
            if status.restarts == 0:
                # Not before the process exists: forking is not safe while a thread imports modules.
                download.fetch_in_background(config, model, say)
            began = time.monotonic()
            cause = _wait_until_ready(engine, folder, status)
            if cause and status.state == "starting":
                engine.print_last_lines()
                raise errors.EngineError(f"vLLM did not start: {cause}.")
            if not cause:
                seconds = time.monotonic() - began
                say(f"vLLM is ready ({seconds:.0f} s)")
                status = replace(
                    status, state="ready", phase="", since=time.time(), boot_seconds=seconds
                )
                _publish(folder, status)
                hung = _watch(engine)
                if time.time() - status.since > STEADY_AFTER:
                    deaths = 0
                # Before looking for the cause, which may take seconds.
                _publish(folder, replace(status, state="restarting", since=time.time(), reason=""))
                cause = hung or engine.cause_of_death()
        except BaseException:
            _publish(folder, replace(status, state="failed", since=time.time()))
            raise
        finally:
            engine.stop()
        deaths += 1
        if deaths > config.max_restarts:
            engine.print_last_lines()
            times = f" {deaths} times in a row" if deaths > 1 else ""
            raise errors.EngineError(
                f"vLLM died{times}, and MAX_RESTARTS is {config.max_restarts}. "
                f"Last failure: {cause}."
            )
        pause = PAUSES[min(deaths, len(PAUSES)) - 1]
        what = "hung" if hung else "died"
        say(f"vLLM {what}: {cause}. Restart {deaths} of {config.max_restarts} in {pause} s.")
        status = replace(
            status,
            state="restarting",
            phase=f"waiting {pause} s",
            since=time.time(),
            restarts=status.restarts + 1,
            reason=cause,
        )
        _publish(folder, status)
        time.sleep(pause)


def _wait_until_ready(engine: EngineProcess, folder: Path, status: Status) -> str:
    """Wait and report every phase; returns the cause if it dies or takes too long, otherwise ""."""
    began = time.monotonic()
    phase, reported = "", began
    while not engine.is_healthy():
        now = time.monotonic()
        if engine.is_dead():
            return engine.cause_of_death()
        if now - began > engine.config.startup_timeout:
            return (
                f"still {engine.phase} after {now - began:.0f} s: raise STARTUP_TIMEOUT if the "
                "model is large, or choose a smaller one"
            )
        if engine.phase != phase or now - reported > REPORT_EVERY:
            still = "still " if engine.phase == phase else ""
            phase, reported = engine.phase, now
            say(f"vLLM is {still}{phase} ({now - began:.0f} s)")
            _publish(folder, replace(status, phase=phase))
        time.sleep(POLL)
    return ""


def _watch(engine: EngineProcess) -> str:
    """Block until the engine dies or hangs; returns the cause if it hangs, otherwise ""."""
    healthy_at = excused_at = time.monotonic()
    next_check = healthy_at + HEALTH_EVERY
    while not engine.is_dead():
        time.sleep(POLL)
        if time.monotonic() < next_check:
            continue
        meter = CpuMeter(engine.process.pid, os.getpid())
        is_healthy = engine.is_healthy(HEALTH_TIMEOUT)
        now = time.monotonic()
        next_check = now + HEALTH_EVERY
        if is_healthy:
            healthy_at = excused_at = now
        elif now - healthy_at > STARVED_AFTER:
            return f"no response for {STARVED_AFTER} s, on an overloaded machine"
        elif meter.shows_starvation(HEALTH_TIMEOUT / 2):
            excused_at = now
            if now - healthy_at > HUNG_AFTER:
                _warn_once(
                    f"vLLM has not responded for {HUNG_AFTER} s because this machine's CPUs are "
                    f"overloaded. It will be restarted if that lasts for {STARVED_AFTER} s."
                )
        elif now - excused_at > HUNG_AFTER:
            return f"no response for {HUNG_AFTER} s"
    return ""


def _publish(folder: Path, status: Status) -> None:
    """Tell the page. A full disk must not end an engine that runs."""
    try:
        run_dir.write_status(folder, status)
    except OSError as error:
        _warn_once(
            f"{folder} is not writable ({error.strerror}): the page cannot show that the engine is "
            f"{status.state}."
        )


@cache
def _warn_once(text: str) -> None:
    say(f"WARNING: {text}")
