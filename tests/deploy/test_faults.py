"""A start that cannot work ends in a sentence with the right exit code, and leaves nothing behind.

engine/test_deaths.py has an engine that dies; page/test_request_faults.py has requests that fail or are hostile.
"""

import sys

import pytest

from support.http_server import QuietHandler, serving
from support.programs import ROOT, STAND_IN_ENGINE, START, free_port, wait_for
from support.scripted_hub import hub, model

pytestmark = (
    pytest.mark.vllm
)  # start.sh looks for it, though nothing here comes as far as running it


# -- a start that cannot work ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "says"),
    [
        pytest.param(
            {"TEMPERATURE": "hot"}, "TEMPERATURE=hot is invalid", id="a word for a number"
        ),
        pytest.param({"MAX_TOKENS": "-1"}, "MAX_TOKENS=-1 is invalid", id="a number out of bounds"),
        pytest.param(
            {"MAX_TOKENS": "9999"}, "more than MAX_TOKENS_LIMIT=4096", id="more than the limit"
        ),
        pytest.param({"MODEL_URL": "gpu-box"}, "MODEL_URL=gpu-box is invalid", id="no address"),
        pytest.param(
            {"MODEL_URL": "http://a", "MODELS": '{"a": "http://b"}'},
            "MODEL_URL and MODELS are both set",
            id="two ways",
        ),
        pytest.param(
            {"APP_PASSWORD": "x-marked"}, "APP_USERNAME is not set", id="a password without a name"
        ),
        pytest.param(
            {"APP_USERNAME": "x"}, "APP_PASSWORD is not set", id="a name without a password"
        ),
        pytest.param(
            {"APP_USERS": "alice"}, "APP_USERS is invalid", id="a user without a password"
        ),
        pytest.param(
            {"API_KEYS": "x-marked,phone:"}, "API_KEYS is invalid", id="a name without a key"
        ),
        pytest.param({"ENGINE_ARGS": "--x 'open"}, "ENGINE_ARGS", id="an open quote"),
        pytest.param(
            {"ENGINE_ARGS": "--api-key k"}, "--api-key is not yours to set", id="a flag of our own"
        ),
        pytest.param({"ENGINE_PORT": "{port}"}, "is the page's own port", id="one port for two"),
    ],
)
def test_settings_that_cannot_work_end_the_start_with_code_2(program, tmp_path, env, says):
    port = str(free_port())
    env = {name: value.replace("{port}", port) for name, value in env.items()}
    code, lines = program([*START, "--port", port], TMPDIR=str(tmp_path), **env).wait_for_exit(
        tmp_path
    )
    assert code == 2
    assert any(says in line for line in lines), lines
    assert "marked" not in "".join(lines)


@pytest.mark.parametrize(
    ("which", "names"),
    [("--port", "--port (or GRADIO_SERVER_PORT)"), ("ENGINE_PORT", "ENGINE_PORT")],
)
@pytest.mark.parametrize(
    "command", [START, [sys.executable, str(ROOT / "app.py")]], ids=["start.sh", "app.py"]
)
def test_a_taken_port_ends_the_start_before_anything_is_booted(
    program, tmp_path, command, which, names
):
    with serving(QuietHandler) as other:
        taken = str(other.server_port)
        port, engine_port = (
            (taken, str(free_port())) if which == "--port" else (str(free_port()), taken)
        )
        running = program([*command, "--port", port], TMPDIR=str(tmp_path), ENGINE_PORT=engine_port)
        code, lines = running.wait_for_exit(tmp_path)
    assert code == 1
    assert lines[-1].startswith(f"ERROR: Port {taken} on 127.0.0.1 cannot be used")
    assert f"set {names} to a free one" in lines[-1]


HUB = [
    pytest.param(
        [model("org/nama")], {}, ["no model org/name", "Did you mean org/nama?"], id="no such model"
    ),
    pytest.param(
        [model("org/name", gated="auto")], {}, ["is gated", "HF_TOKEN is not set"], id="gated"
    ),
    pytest.param(
        [model("org/name")], {"HF_TOKEN": "hf_bad-marked"}, ["refuses HF_TOKEN"], id="token refused"
    ),
    pytest.param(
        [model("org/name")], {"MODEL_REVISION": "v9"}, ["no revision v9"], id="no such revision"
    ),
    pytest.param(
        [model("org/name", siblings=[{"rfilename": "q.gguf", "size": 5}])],
        {},
        ["only GGUF files"],
        id="GGUF only",
    ),
    pytest.param(
        [
            model(
                "org/name",
                siblings=[
                    {"rfilename": "config.json"},
                    {"rfilename": "a.safetensors", "size": 10**15},
                ],
            )
        ],
        {},
        ["a download of 931322.6 GiB", "HF_HOME"],
        id="disk too small",
    ),
    pytest.param(
        [model("org/name")],
        {"HF_HOME": "/proc/nowhere"},
        ["/proc", "HF_HOME"],
        id="cache not writable",
    ),
]


@pytest.mark.parametrize(("models", "env", "says"), HUB)
def test_what_the_hub_says_ends_the_start_before_vllm_is_imported(
    program, tmp_path, models, env, says
):
    env = {"MODEL_ID": "org/name", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")} | env
    with hub(*models) as address:
        env |= {"HF_ENDPOINT": address, "TMPDIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
        code, lines = program([*START, "--port", str(free_port())], **env).wait_for_exit(tmp_path)
    assert code == 1
    for words in says:
        assert words in lines[-1]
    assert "marked" not in "".join(lines)


# -- a disk that is full -----------------------------------------------------------------------------------------------


def test_a_start_without_a_folder_for_its_log_says_so(program, tmp_path):
    code, lines = program(START, TMPDIR=str(tmp_path / "nowhere")).wait_for_exit(tmp_path)
    assert code == 1
    assert lines[-1] == "ERROR: Set TMPDIR to a writable folder."


@pytest.mark.parametrize(
    ("room", "ready"), [(0, False), (1, True)], ids=["no room at all", "no room for the log"]
)
def test_a_full_disk_ends_the_start_only_where_nothing_can_be_written(
    program, tmp_path, room, ready
):
    """`ulimit -f` refuses to write more than so many kB to a file, as a full disk does."""
    env = STAND_IN_ENGINE | {"SCRIPT": "verbose"}
    env |= {"ENGINE_RUN_DIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
    running = program(
        [
            "bash",
            "-c",
            f"(ulimit -f {room}; exec '{sys.executable}' -m vllm_space.engine) 2>&1 | cat",
        ],
        **env,
    )
    wait_for(
        lambda: "vLLM is ready" in running.output if ready else running.process.poll() is not None,
        60,
        "the start",
    )
    assert "Traceback" not in running.output
    if not ready:
        assert "cannot be written to: set TMPDIR to a folder with room" in running.output
