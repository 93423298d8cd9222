"""Whether processes get the CPU time that they need, from what Linux counts for each thread.

A process that hangs waits for something else, or keeps a CPU busy. One that waits for a CPU most of
the time is only slow, because the machine is overloaded.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

NANOSECONDS = 1e-9
MUCH = 10  # times as long as it ran; waiting less than that, a process has its share of the CPU


class CpuMeter:
    """Measures some processes from its creation on."""

    def __init__(self, *pids: int):
        self._before = {pid: _cpu_seconds(pid) for pid in pids}

    def shows_starvation(self, seconds: float) -> bool:
        """Whether one of the processes has waited that long for a CPU, and hardly run.

        False if the system does not count it, like gVisor.
        """
        for pid, (ran_before, waited_before) in self._before.items():
            ran, waited = _cpu_seconds(pid)
            if waited - waited_before > max(seconds, MUCH * (ran - ran_before)):
                return True
        return False


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """How long the threads of a process have run on a CPU, and waited for one while ready to."""
    ran = waited = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # the thread has ended
            thread_ran, thread_waited, _ = map(int, file.read_text().split())
            ran, waited = ran + thread_ran, waited + thread_waited
    return ran * NANOSECONDS, waited * NANOSECONDS
