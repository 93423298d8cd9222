"""start.sh and settings.py read the same variables: from `.env`, the environment and the flags.

In a copy of the code whose environment.sh installs nothing: it prints which environment start.sh
chooses ("page" has no vLLM), and then what preflight decides to start.
"""

import os
import shutil

import pytest

from support import case_server
from support.programs import ROOT, free_port

INSTALL_NOTHING = """
choose_environment() { echo "environment $1"; }
fill_environment() { echo "plan $plan"; exit 0; }
"""
URL = "http://127.0.0.1:9"


@pytest.fixture
def decide(program, tmp_path):
    """decide(`.env`, flags, NAME="value") -> (exit code, lines of output)."""
    root = tmp_path / "copy"
    shutil.copytree(
        ROOT / "vllm_space", root / "vllm_space", ignore=shutil.ignore_patterns("demo_model")
    )
    for name in ("start.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, root)
    with (root / "vllm_space" / "environment.sh").open("a") as script:
        script.write(INSTALL_NOTHING)

    def run(env_file: bytes, *flags: str, **env: str) -> tuple[int, list[str]]:
        (root / ".env").write_bytes(env_file)
        ports = ["--port", str(free_port())]
        env = {"ENGINE_PORT": str(free_port()), "HF_TOKEN_PATH": os.devnull} | env
        running = program(["bash", "start.sh", *ports, *flags], cwd=root, **env)
        return running.process.wait(60), running.output.splitlines()

    return run


def case(name: str) -> bytes:
    return case_server.data(f"s14-{name}.env")


@pytest.mark.parametrize(
    ("env_file", "flags", "env"),
    [
        pytest.param(case("a"), [], {}, id="UTF-16"),
        pytest.param(case("b"), [], {}, id="BOM"),
        pytest.param(case("c"), [], {}, id="spaced"),
        pytest.param(f"MODEL_URL = {URL}\n".encode("utf-16-be"), [], {}, id="UTF-16, no BOM"),
        pytest.param(f"export  MODEL_URL={URL}\r\n".encode(), [], {}, id="export, CRLF"),
        pytest.param(f"MODEL_URL=' {URL} ' # here\n".encode(), [], {}, id="quoted"),
        pytest.param(f"BASE={URL}\nMODEL_URL=${{BASE}}/v1\n".encode(), [], {}, id="expanded"),
        pytest.param(f'MODELS={{"a": "{URL}"}}\n'.encode(), [], {}, id="several"),
        pytest.param(f'MODELS="{{\n\\"a\\": \\"{URL}\\"}}"'.encode(), [], {}, id="several lines"),
        pytest.param(f"MODEL_URL={URL}\n".encode(), [], {"MODEL_URL": " "}, id="blank above"),
        pytest.param(b"", [], {"MODEL_URL": f'"{URL}"'}, id="quotes in the environment"),
        pytest.param(b"", [], {"model_url": URL}, id="lower case"),
        pytest.param(b"", [f"--model-url={URL}"], {}, id="flag"),
    ],
)
def test_running_server_needs_no_vllm(decide, env_file, flags, env):
    code, lines = decide(env_file, *flags, **env)
    assert (code, lines[0], lines[-1]) == (0, "environment page", "plan page")


@pytest.mark.parametrize(
    ("env_file", "env"),
    [
        pytest.param(b"", {}, id="nothing"),
        pytest.param(f"# MODEL_URL={URL}\n".encode(), {}, id="comment"),
        pytest.param(b"MODEL_URL=\nMODELS= # later\n", {}, id="empty"),
        pytest.param(b"MODEL_URL='  '\n", {}, id="blank"),
        pytest.param(f'APP_TITLE="\nMODEL_URL={URL}\n"\n'.encode(), {}, id="within a text"),
        pytest.param(f"MODEL_URL={URL}\nMODEL_URL=\n".encode(), {}, id="taken back"),
        pytest.param(b"", {"MODELS": " {} "}, id="no servers"),
        pytest.param(b"", {"MODEL_URL": "''"}, id="quotes around nothing"),
    ],
)
def test_no_server_means_vllm(decide, env_file, env):
    code, lines = decide(env_file, ENGINE_DEVICE="cpu", **env)
    assert (code, lines[0]) == (0, "environment cpu")
    assert lines[-1] == "plan boot"


@pytest.mark.parametrize(
    "env_file",
    [
        pytest.param(b"APP_TITLE=x\nMODEL_URL http://marked\n", id="no ="),
        pytest.param(b"\nMODEL_URL='http://marked\n", id="open quote"),
        pytest.param(b"APP_TITLE=x\nMODEL_URL=http://m\xe4rked\n", id="Latin-1"),
    ],
)
def test_unreadable_line_ends_the_start(decide, env_file):
    code, lines = decide(env_file)
    assert code == 2
    (line,) = lines
    assert line.startswith("ERROR: .env: line 2 cannot be read: ")
    assert "rked" not in line
