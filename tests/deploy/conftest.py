"""The unprivileged user, who runs Spaces and other people's checkouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.unprivileged import give


@pytest.fixture(scope="session")
def home(computer: Path) -> Path:
    """The user's home folder."""
    folder = computer / "home"
    folder.mkdir()
    give(folder)
    return folder


@pytest.fixture(scope="session")
def user_env(computer: Path, home: Path, user_python: Path) -> dict[str, str]:
    """The variables that every program of the user needs here."""
    return {
        "HOME": str(home),
        "USER": "user",  # for getpass: there may be no such user on this machine
        "PATH": f"{user_python.parent}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(computer / "env" / "base" / "lib"),  # see unprivileged.py
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
