"""`hf upload` and the deploying workflow, on a local Hub: exactly the right files arrive."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from upgrade import OFFLINE

from support import space_card
from support.programs import ROOT
from support.scripted_upload_hub import LFS_FROM, SPACE, UPLOAD, upload, upload_hub

README = (ROOT / "README.md").read_text()

# What is uploaded from outside these folders, and which of all files are binary.
FOLDERS = ("vllm_space/", "tests/", "docs/")
TOP = """
    .ci/run .github/workflows/deploy.yml .github/workflows/test.yml .gitignore CHANGELOG.md
    LICENSE README.md SECURITY.md app.py packages.txt pyproject.toml requirements-cpu.txt
    requirements.txt start.sh
""".split()
BINARY = ["docs/chat.png", "docs/status.png", "vllm_space/demo_model/model.safetensors"]

# What accumulates in a checkout that somebody works in.
JUNK = """
    .env .env.local .venv/bin/python .venv/lib/python3.12/site-packages/x.py venv/pyvenv.cfg
    __pycache__/app.cpython-312.pyc vllm_space/__pycache__/api.cpython-312.pyc
    tests/__pycache__/conftest.cpython-312.pyc .pytest_cache/v/cache/lastfailed
    .ruff_cache/0.14/1 .mypy_cache/3.12/x.json .hypothesis/examples/1 .gradio/certificate.pem
    start.log tests/program-0.log node_modules/openai/index.js .idea/workspace.xml
    .vscode/settings.json .DS_Store .cache/huggingface/upload/x.lock
""".split()


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git would commit here."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("this is not a git checkout")
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).exists())


@pytest.fixture
def checkout(tracked, tmp_path) -> Path:
    """A checkout of this repository that somebody has worked in."""
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


def test_upload_sends_the_tracked_files(checkout, tracked, hub):
    done = upload(UPLOAD, checkout, hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.files == {name: (checkout / name).read_bytes() for name in tracked}
    assert [name for name in tracked if not name.startswith(FOLDERS)] == sorted(TOP)
    this_file = Path(__file__).relative_to(ROOT).as_posix()
    marked = {name for name, data in hub.files.items() if b"SECRET=marked" in data}
    assert marked == {this_file}
    assert hub.created["type"] == "space"
    assert hub.created["sdk"] == "gradio"


def test_upload_needs_no_lfs_setup(checkout, tracked, hub):
    """No file exceeds the limit of plain git; the client itself sends binary ones by LFS or Xet."""
    assert upload(UPLOAD, checkout, hub.url).returncode == 0
    assert max(map(len, hub.files.values())) < LFS_FROM
    assert sorted(hub.by_lfs) == BINARY
    assert sum(map(len, hub.files.values())) < 20_000_000


@pytest.mark.registry
@pytest.mark.release
def test_older_command_uploads_the_same(checkout, tracked, hub, tmp_path):
    """huggingface_hub 1 dropped huggingface-cli, but many people still use it."""
    older = "tool run --no-config --from huggingface_hub<1 huggingface-cli".split()
    uv = [str(Path(sys.executable).parent / "uv"), "--cache-dir", str(tmp_path / "uv")]
    done = upload(shlex.join([*uv, *older, *UPLOAD.split()[1:]]), checkout, hub.url)
    if re.search(OFFLINE, done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(hub.files) == tracked


def test_workflow_deploys_and_removes_files(checkout, tracked, hub):
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["deploy"]["steps"]]
    command = next(command for command in commands if "hf upload" in command)
    hub.files = {".gitattributes": b"*.safetensors filter=lfs", "vllm_space/gone.py": b""}
    done = upload(command, checkout, hub.url, HF_SPACE=SPACE, GITHUB_SHA="abc123")
    assert done.returncode == 0, done.stdout + done.stderr
    deployed = {name for name in tracked if not name.startswith(".github/")}
    assert hub.files.keys() == {".gitattributes", *deployed}
    assert hub.messages == ["Deploy abc123"]
    button = f"https://huggingface.co/spaces/{SPACE}?duplicate=true"
    assert button in hub.files["README.md"].decode()


def test_read_only_token_uploads_nothing(checkout, hub):
    done = upload(UPLOAD, checkout, hub.url, HF_TOKEN="hf_other")
    assert done.returncode != 0
    assert hub.files == {}


# -- the card --------------------------------------------------------------------------------------


def test_card_follows_the_documented_rules():
    assert space_card.problems(README) == []


@pytest.mark.parametrize(
    ("line", "invalid"),
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
def test_invalid_line_of_the_card_is_found(line, invalid):
    assert line in README
    assert space_card.problems(README.replace(line, invalid, 1))


def test_upload_with_an_invalid_card_fails(checkout, hub):
    (checkout / "README.md").write_text(README.replace("emoji: 🚀", "emoji: rocket", 1))
    done = upload(UPLOAD, checkout, hub.url)
    assert done.returncode != 0
    assert "emoji cannot be 'rocket'" in done.stderr + done.stdout
    assert hub.files == {}
