"""Programs under another user than the tests', in an environment of their own: as the platform runs a Space."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UID = 1000 if os.geteuid() == 0 else os.geteuid()  # 1000 is the user of a Space


def as_user(env: dict[str, str], *command: str) -> list[str]:
    """The command line that runs `command` as that user, who has these variables and no others.

    Where the tests themselves run as an ordinary user, as that one.
    """
    clean = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *command]
    if os.geteuid() != 0:
        return clean
    return [
        "setpriv",
        f"--reuid={UID}",
        f"--regid={UID}",
        "--clear-groups",
        "--no-new-privs",
        *clean,
    ]


def give(*paths: Path) -> None:
    """Make that user the owner of folders and of what is in them."""
    for path in paths if os.geteuid() == 0 else ():
        for one in (path, *path.rglob("*")):
            os.chown(one, UID, UID, follow_symlinks=False)


@contextmanager
def folder_of_the_user() -> Iterator[Path]:
    """An empty folder of that user's. (pytest's own temporary folders are closed to others.)"""
    path = Path(tempfile.mkdtemp(prefix="vllm-space-test-"))
    try:
        path.chmod(0o755)
        give(path)
        yield path
    finally:
        shutil.rmtree(path)


def environment_for_the_user(target: Path) -> Path:
    """The tests' Python environment where that user can read it, which root's own folders are not; its python.

    Should that Python have a library of its own, it is in `target`/base/lib: for LD_LIBRARY_PATH.
    """
    link_copy(Path(sys.prefix), target)
    python = target / "bin" / "python"
    base = Path(sys.base_prefix)
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in (base, *base.parents)):
        link_copy(base, target / "base")
        real = target / "base" / Path(os.path.realpath(python)).relative_to(os.path.realpath(base))
        for name in target.glob("bin/python*"):
            name.unlink()
            name.symlink_to(real)
        settings = target / "pyvenv.cfg"
        text = re.sub(r"(?m)^home = .*", f"home = {real.parent}", settings.read_text())
        settings.unlink()  # the file is the original one's as well
        settings.write_text(text)
    return python


def link_copy(source: Path, target: Path) -> None:
    """Copy a folder by hard links, which takes no space; where it lies on another disk, for real."""
    try:
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
