"""Programs that only tests use: other servers, and clients of the API.

Each is installed once, into the user's cache folder, under a name with the hash of what it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-space"
INSTALL_TIMEOUT = 1800  # seconds; a package built from source takes longest
UV = "uv pip install --quiet --python".split()
NPM = "npm install --no-audit --no-fund --loglevel=error --prefix".split()


def environment(name: str, pypi: Sequence[str] = (), npm: Sequence[str] = ()) -> Path:
    """The folder of an environment with these packages, such as "openai==3.51.0".

    Their programs are in bin/ and node_modules/.bin/. Raises CalledProcessError if a package cannot
    be installed.
    """

    def install(folder: Path) -> None:
        if pypi:
            run(sys.executable, "-m", "venv", "--clear", str(folder))
            run(*UV, str(folder / "bin" / "python"), *pypi)
        if npm:
            run(*NPM, str(folder), *npm)

    return cached(name, "\n".join([platform.python_version(), *pypi, "", *npm]), install)


def cached(name: str, contents: str, fill: Callable[[Path], None]) -> Path:
    """A folder that `fill` filled, now or in an earlier run; `contents` says with what."""
    folder = CACHE / f"{name}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be filling it
        if not (folder / ".complete").exists():
            fill(folder)
            (folder / ".complete").touch()
    return folder


def run(*command: str) -> None:
    """Run a command to its end. Raises CalledProcessError if it fails."""
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT)
