"""`hf upload` and the deploying workflow against a local server that plays the Hub: exactly the right files arrive."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import space_card
from support.programs import ROOT
from support.scripted_upload_hub import LFS_FROM, SPACE, UPLOAD, upload, upload_hub

README = (ROOT / "README.md").read_text()

# All that arrives outside vllm_space/, tests/ and docs/, and which of it all is binary.
TOP = [
    ".ci/run",
    ".github/workflows/deploy.yml",
    ".github/workflows/test.yml",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "app.py",
    "packages.txt",
    "pyproject.toml",
    "requirements-cpu.txt",
    "requirements.txt",
    "start.sh",
]
BINARY = ["docs/chat.png", "docs/status.png", "vllm_space/demo_model/model.safetensors"]

# What lies about in a checkout that is worked in.
JUNK = [
    ".env",
    ".env.local",
    ".venv/bin/python",
    ".venv/lib/python3.12/site-packages/x.py",
    "venv/pyvenv.cfg",
    "__pycache__/app.cpython-312.pyc",
    "vllm_space/__pycache__/api.cpython-312.pyc",
    "tests/__pycache__/conftest.cpython-312.pyc",
    ".pytest_cache/v/cache/lastfailed",
    ".ruff_cache/0.14/1",
    ".mypy_cache/3.12/x.json",
    ".hypothesis/examples/1",
    ".gradio/certificate.pem",
    "start.log",
    "tests/program-0.log",
    "node_modules/openai/index.js",
    ".idea/workspace.xml",
    ".vscode/settings.json",
    ".DS_Store",
    ".cache/huggingface/upload/x.lock",
]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """What git would commit here."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("this is no git checkout")
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).exists())


@pytest.fixture
def checkout(tracked, tmp_path) -> Path:
    """A clone of this repository in which somebody has worked."""
    folder = tmp_path / "checkout"
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SECRET=marked\n")
    return folder


@pytest.fixture
def hub():
    with upload_hub() as hub:
        yield hub


def test_hf_upload_brings_exactly_what_belongs_into_a_space(checkout, tracked, hub):
    done = upload(UPLOAD, checkout, hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(hub.files) == tracked
    assert [
        name for name in tracked if not name.startswith(("vllm_space/", "tests/", "docs/"))
    ] == sorted(TOP)
    assert hub.files == {name: (checkout / name).read_bytes() for name in tracked}
    this_file = Path(__file__).relative_to(ROOT).as_posix()
    assert not any(
        b"SECRET=marked" in data for name, data in hub.files.items() if name != this_file
    )
    assert hub.created["type"] == "space"
    assert hub.created["sdk"] == "gradio"


def test_nothing_needs_a_set_up_of_lfs(checkout, tracked, hub):
    """No file is over the limit of plain git; the few binary ones the client sends by LFS or Xet itself."""
    assert upload(UPLOAD, checkout, hub.url).returncode == 0
    assert max(map(len, hub.files.values())) < LFS_FROM
    assert sorted(hub.by_lfs) == BINARY
    assert sum(map(len, hub.files.values())) < 20_000_000


@pytest.mark.registry
@pytest.mark.release
def test_the_older_name_of_the_command_does_the_same(checkout, tracked, hub, tmp_path):
    """huggingface-cli left with huggingface_hub 1; many people still have it."""
    older = [
        str(Path(sys.executable).parent / "uv"),
        "tool",
        "run",
        "--no-config",
        "--cache-dir",
        str(tmp_path / "uv"),
        "--from",
        "huggingface_hub<1",
        "huggingface-cli",
    ]
    done = upload(shlex.join([*older, *UPLOAD.split()[1:]]), checkout, hub.url)
    if re.search(r"error sending request|dns error|Could not connect", done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(hub.files) == tracked


def test_the_workflow_deploys_without_itself_and_removes_what_is_gone(checkout, tracked, hub):
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())
    command = next(
        step["run"]
        for step in workflow["jobs"]["deploy"]["steps"]
        if "hf upload" in step.get("run", "")
    )
    hub.files = {".gitattributes": b"*.safetensors filter=lfs", "vllm_space/gone.py": b""}
    done = upload(command, checkout, hub.url, HF_SPACE=SPACE, GITHUB_SHA="abc123")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(hub.files) == {
        ".gitattributes",
        *(name for name in tracked if not name.startswith(".github/")),
    }
    assert hub.messages == ["Deploy abc123"]
    assert (
        f"https://huggingface.co/spaces/{SPACE}?duplicate=true" in hub.files["README.md"].decode()
    )


def test_a_token_that_may_not_write_leaves_nothing(checkout, hub):
    done = upload(UPLOAD, checkout, hub.url, HF_TOKEN="hf_other")
    assert done.returncode != 0
    assert hub.files == {}


# -- the card ------------------------------------------------------------------------------------------------------


def test_the_card_follows_the_documented_rules():
    assert space_card.problems(README) == []


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("emoji: 🚀", "emoji: rocket"),
        ("colorFrom: indigo", "colorFrom: violet"),
        ("sdk: gradio", "sdk: streamlit"),
        ("sdk_version: 6.31.0", "sdk_version: 6.3"),
        ('python_version: "3.12"', "python_version: 3.12"),
        ("suggested_hardware: l4x1", "suggested_hardware: l4"),
        ("startup_duration_timeout: 1h", "startup_duration_timeout: 3600"),
        ("hf_oauth: true", 'hf_oauth: "true"'),
        ("short_description: ", "short_description: far more than sixty characters of it, "),
        ("app_file: app.py", "app_flie: app.py"),
        ("license: apache-2.0", "license: [Apache 2.0"),
    ],
)
def test_an_upload_with_a_card_against_the_rules_is_refused(checkout, hub, line, instead):
    assert line in README
    card = README.replace(line, instead, 1)
    assert len(space_card.problems(card)) >= 1
    if line.startswith("emoji"):  # once by the command itself
        (checkout / "README.md").write_text(card)
        done = upload(UPLOAD, checkout, hub.url)
        assert done.returncode != 0
        assert re.search(r"emoji cannot be 'rocket'", done.stderr + done.stdout)
        assert hub.files == {}
