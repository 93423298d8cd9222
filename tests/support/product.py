"""A copy of the product that a test can change."""

import shutil
from pathlib import Path

from support.programs import ROOT


def copy_product(folder: Path) -> Path:
    """Copy what runs into `folder`, without the tests and the documentation. Returns `folder`."""
    for name in ("app.py", "start.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, folder)
    without_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vllm_space", folder / "vllm_space", ignore=without_cache)
    return folder
