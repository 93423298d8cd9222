"""docs/updating.md: a new version of the template reaches a changed copy, and changes stay."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.programs import ROOT
from vllm_space import __version__

GUIDE = (ROOT / "docs" / "updating.md").read_text()
CLONE, ONCE, EVERY_TIME = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
# Only needed for the Hub itself.
HUB_ONLY = re.compile(r"( && |^)(hf|git lfs) .*", re.MULTILINE)
TEMPLATE = {
    "README.md": "One\nTwo\nThree\n",
    "app.py": "a = 1\n",
    "CHANGELOG.md": f"## {__version__}\n",
}


def run(command: str, folder: Path) -> None:
    env = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
        "GIT_EDITOR": "true",
    }
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def commit(repository: Path, message: str, **files: str) -> None:
    for name, text in files.items():
        (repository / name).write_text(text)
    run(f"git add . && git commit -q -m '{message}'", repository)


@pytest.fixture
def repositories(tmp_path) -> tuple[Path, Path]:
    """A template at the current version, and a copy of its files with a history of its own."""
    template, copy = tmp_path / "template", tmp_path / "copy"
    for repository in (template, copy):
        repository.mkdir()
        run("git init -q -b main && git config receive.denyCurrentBranch updateInstead", repository)
        commit(repository, "Files", **TEMPLATE)
    return template, copy


def test_a_duplicate_keeps_its_changes(repositories, tmp_path):
    template, copy = repositories
    commit(copy, "Mine", **{"README.md": "One\nTwo\nThree, mine\n", "mine.py": "b = 2\n"})

    def update(commands: str) -> None:
        commands = HUB_ONLY.sub("", commands)
        commands = commands.replace("https://huggingface.co/spaces/<user>/<space>", str(copy))
        run(commands.replace("https://huggingface.co/spaces/OWNER/SPACE", str(template)), tmp_path)

    new = {"README.md": "One, new\nTwo\nThree\n", "CHANGELOG.md": f"## 9.1.0\n\n## {__version__}\n"}
    commit(template, "9.1.0", **new)
    update(ONCE + EVERY_TIME)
    assert (copy / "README.md").read_text() == "One, new\nTwo\nThree, mine\n"
    assert (copy / "CHANGELOG.md").read_text() == new["CHANGELOG.md"]

    commit(template, "9.2.0", **{"app.py": "a = 2\n"})
    update("cd my-space\n" + EVERY_TIME)
    assert (copy / "app.py").read_text() == "a = 2\n"
    assert (copy / "README.md").read_text() == "One, new\nTwo\nThree, mine\n"
    assert (copy / "mine.py").exists()


def test_a_clone_keeps_its_changes(repositories, tmp_path):
    template, _ = repositories
    clone = tmp_path / "clone"
    run(f"git clone -q {template} {clone}", tmp_path)
    (clone / "README.md").write_text("One\nTwo\nThree, mine\n")
    commit(template, "9.1.0", **{"README.md": "One, new\nTwo\nThree\n"})
    run(HUB_ONLY.sub("", CLONE), clone)
    assert (clone / "README.md").read_text() == "One, new\nTwo\nThree, mine\n"
