"""Which packages named in requirements files are missing from this interpreter?

    python vllm_space/requirements.py FILE...      exit code 1 and their names if any is missing

The one list of what is needed is the requirements files themselves. Standard library only, since this is asked before
anything is installed; nothing is imported, since Gradio and vLLM take seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

NAME = re.compile(r"[A-Za-z][\w.-]*")  # of a package, at the beginning of a line


def modules(path: Path) -> list[str]:
    """The modules that a requirements file stands for, those of files it includes (-r) among them."""
    names: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            names += modules(path.parent / line[3:].strip())
        elif match := NAME.match(line):
            # vLLM's build for the CPU has another name and the same module.
            names.append(match[0].lower().removesuffix("-cpu").replace("-", "_"))
    return names


def missing(paths: Iterable[Path], besides: Iterable[str] = ()) -> list[str]:
    """The modules that the files name and this interpreter lacks, `besides` left out."""
    names = (name for path in paths for name in modules(path))
    return [name for name in names if name not in besides and not find_spec(name)]


if __name__ == "__main__":
    if lacking := missing(map(Path, sys.argv[1:])):
        sys.exit(", ".join(lacking))
