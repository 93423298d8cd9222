"""supervisor.py and cpu_meter.py: a hung engine is restarted, one that waits for a CPU is not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from support.programs import STAND_IN, TESTS, alive, free_port, wait_for
from vllm_space import settings
from vllm_space.engine import supervisor
from vllm_space.engine.cpu_meter import CpuMeter
from vllm_space.engine.process import EngineProcess

HUNG_AFTER, STARVED_AFTER = supervisor.HUNG_AFTER, supervisor.STARVED_AFTER


def test_stopped_engine_counts_as_hung(tmp_path, monkeypatch):
    """It is alive and its port is open, but it does not respond."""
    for name, seconds in {"HUNG_AFTER": 2, "HEALTH_EVERY": 0.5, "HEALTH_TIMEOUT": 0.5}.items():
        monkeypatch.setattr(supervisor, name, seconds)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    config = settings.Settings(
        _env_file=None, engine_module=STAND_IN, engine_port=free_port(), engine_run_dir=tmp_path
    )
    engine = EngineProcess(config, tmp_path, [])
    try:
        wait_for(engine.is_healthy, 30, "the engine")
        leader = psutil.Process(engine.process.pid)
        processes = [leader, *leader.children()]
        leader.suspend()
        assert supervisor._watch(engine) == "no response for 2 s"
    finally:
        engine.stop()
    assert alive(processes) == []


# -- what it does, by the clock --------------------------------------------------------------


class Clock:
    """Replaces the module `time` of the supervisor."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeEngine:
    """Responds, and has a CPU, when these functions of the time say so; dies after an hour."""

    process = psutil.Process()

    def __init__(self, clock: Clock, responds: Callable, is_starved: Callable):
        self.clock, self.responds, self.is_starved = clock, responds, is_starved

    def is_dead(self) -> bool:
        return self.clock.now > 3600

    def is_healthy(self, timeout: float) -> bool:
        healthy = self.responds(self.clock.now)
        self.clock.now += 0 if healthy else timeout
        return healthy


@pytest.fixture
def watch(monkeypatch) -> Callable:
    """watch(responds, is_starved) -> (the cause, the second at which it was found)."""
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    supervisor._warn_once.cache_clear()

    def run(responds: Callable, is_starved: Callable) -> tuple[str, float]:
        engine = FakeEngine(clock, responds, is_starved)

        class FakeMeter:
            def __init__(self, *pids: int):
                assert pids == (engine.process.pid, os.getpid())

            def shows_starvation(self, seconds: float) -> bool:
                return engine.is_starved(clock.now)

        monkeypatch.setattr(supervisor, "CpuMeter", FakeMeter)
        return supervisor._watch(engine), clock.now

    return run


def test_hung_engine_is_found_in_a_minute(watch, capsys):
    cause, found_at = watch(lambda now: now < 100, lambda now: False)
    assert cause == f"no response for {HUNG_AFTER} s"
    assert found_at < 100 + HUNG_AFTER + 10
    assert capsys.readouterr().out == ""


def test_starved_engine_is_left_alone(watch, capsys):
    """The machine is overloaded between 100 s and 500 s, and again later."""

    def overloaded(now: float) -> bool:
        return 100 < now < 500 or 1000 < now < 1500

    cause, _ = watch(lambda now: not overloaded(now), overloaded)
    assert cause == ""
    warning = capsys.readouterr().out
    assert warning.count("this machine's CPUs are overloaded") == 1


def test_starved_engine_is_restarted_in_the_end(watch):
    cause, found_at = watch(lambda now: now < 100, lambda now: True)
    assert cause == f"no response for {STARVED_AFTER} s, on an overloaded machine"
    assert found_at < 100 + STARVED_AFTER + 30


def test_engine_that_hangs_after_a_load_is_found(watch):
    cause, found_at = watch(lambda now: now < 100, lambda now: now < 300)
    assert cause == f"no response for {HUNG_AFTER} s"
    assert found_at < 300 + HUNG_AFTER + 30


# -- what Linux counts -----------------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[Callable[[int], int]]:
    """busy(nice) -> the pid of a process that needs a CPU, always the same one, all the time."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this system does not count it")
    started: list[subprocess.Popen] = []
    core = min(os.sched_getaffinity(0))

    def start(nice: int) -> int:
        program = f"import os; os.sched_setaffinity(0, [{core}]); os.nice({nice})\nwhile 1: pass"
        started.append(subprocess.Popen([sys.executable, "-c", program]))
        pid = started[-1].pid
        wait_for(lambda: psutil.Process(pid).nice() == nice, 10, "its start")
        return pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_process_without_a_cpu_is_starved(busy):
    busy(0)
    meter = CpuMeter(busy(19))
    time.sleep(1)
    assert meter.shows_starvation(0.5)


def test_busy_process_is_not_starved(busy):
    meter = CpuMeter(busy(0))
    time.sleep(1)
    assert not meter.shows_starvation(0.5)


def test_stopped_process_is_not_starved(busy):
    busy(0)
    pid = busy(19)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.2)
    meter = CpuMeter(pid)
    time.sleep(1)
    assert not meter.shows_starvation(0.5)


def test_ended_process_is_not_starved():
    process = subprocess.Popen(["true"])
    process.wait()
    assert not CpuMeter(process.pid).shows_starvation(0.5)
