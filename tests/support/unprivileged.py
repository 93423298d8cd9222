"""Runs programs as an unprivileged user in a clean environment, as the platform runs a Space."""

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
    """The command line that runs `command` as the user UID, with exactly these variables.

    If the tests do not run as root, that is their own user.
    """
    clean = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *command]
    if os.geteuid() != 0:
        return clean
    drop_root = f"setpriv --reuid={UID} --regid={UID} --clear-groups --no-new-privs".split()
    return [*drop_root, *clean]


def give(*paths: Path) -> None:
    """Make the user UID the owner of folders and everything in them."""
    for folder in paths if os.geteuid() == 0 else ():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)


@contextmanager
def folder_of_the_user() -> Iterator[Path]:
    """An empty folder that belongs to the user UID, who cannot enter pytest's own folders."""
    path = Path(tempfile.mkdtemp(prefix="vllm-space-test-"))
    try:
        path.chmod(0o755)
        give(path)
        yield path
    finally:
        shutil.rmtree(path)


def environment_for_the_user(target: Path) -> Path:
    """Copy the tests' Python environment to where the user UID can read it; returns its python.

    LD_LIBRARY_PATH needs `target`/base/lib, in case this Python has a shared library.
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
        settings.unlink()  # a hard link: writing to it would change the original
        settings.write_text(text)
    return python


def link_copy(source: Path, target: Path) -> None:
    """Copy a folder with hard links; copy the data only if it is on another disk."""
    try:
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
