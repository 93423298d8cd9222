"""Two requests that a process makes of the Linux kernel, so that nothing outlives a Space (man 2 prctl).

On other systems they do nothing.
"""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Send this process SIGTERM when its parent ends, however that happens."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants.

    The first process of a container might reap nothing, and a group of zombies would look alive forever.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument)
