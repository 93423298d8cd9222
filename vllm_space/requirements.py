"""Which packages named in requirements files are missing from this interpreter?

    python vllm_space/requirements.py FILE...      exit code 1 and their names if any is missing

The one list of what is needed is the requirements files themselves. Standard library only, since this is asked before
anything is installed; nothing is imported, since Gradio and vLLM take seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAME = re.compile(r"[A-Za-z][\w.-]*")  # of a package, at the beginning of a line


def packages(path: Path) -> list[str]:
    """The packages that a requirements file names, those of files that it includes (-r) among them."""
    names: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            names += packages(path.parent / line[3:].strip())
        elif match := NAME.match(line):
            names.append(
                match[0].lower().removesuffix("-cpu")
            )  # vLLM's build for the CPU is as good as the other
    return names


def missing(paths: Iterable[Path], besides: Iterable[str] = ()) -> list[str]:
    """The packages that the files name and this interpreter lacks, `besides` left out."""
    names = (name for path in paths for name in packages(path))
    return [
        name
        for name in names
        if name not in besides and not any(map(_is_installed, (name, f"{name}-cpu")))
    ]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    if lacking := missing(map(Path, sys.argv[1:])):
        sys.exit(", ".join(lacking))
