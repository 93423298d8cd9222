"""A start that cannot work ends with an explanation and an exit code, and leaves nothing behind.

engine/test_deaths.py has engines that die; page/test_request_faults.py has requests that fail.
"""

import sys

import pytest

from support.http_server import QuietHandler, serving
from support.programs import ROOT, STAND_IN_ENGINE, START, free_port, wait_for
from support.scripted_hub import hub, model

pytestmark = pytest.mark.vllm  # start.sh requires it to be installed; nothing here runs it


def case(id: str, *values: object) -> object:
    return pytest.param(*values, id=id)


# -- settings and ports ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "message"),
    [
        case("not a number", {"TEMPERATURE": "hot"}, "TEMPERATURE=hot is invalid"),
        case("out of bounds", {"MAX_TOKENS": "-1"}, "MAX_TOKENS=-1 is invalid"),
        case("over the limit", {"MAX_TOKENS": "9999"}, "exceeds MAX_TOKENS_LIMIT=4096"),
        case("not a URL", {"MODEL_URL": "gpu-box"}, "MODEL_URL=gpu-box is invalid"),
        case(
            "contradiction",
            {"MODEL_URL": "http://a", "MODELS": '{"a": "http://b"}'},
            "MODEL_URL and MODELS are both set",
        ),
        case("no user name", {"APP_PASSWORD": "x-marked"}, "APP_USERNAME is not set"),
        case("no password", {"APP_USERNAME": "x"}, "APP_PASSWORD is not set"),
        case("user without a password", {"APP_USERS": "alice"}, "APP_USERS is invalid"),
        case("label without a key", {"API_KEYS": "x-marked,phone:"}, "API_KEYS is invalid"),
        case("open quote", {"ENGINE_ARGS": "--x 'open"}, "ENGINE_ARGS"),
        case("reserved flag", {"ENGINE_ARGS": "--api-key k"}, "--api-key cannot be set here"),
        case("same port twice", {"ENGINE_PORT": "{port}"}, "is the page's port"),
    ],
)
def test_invalid_settings_exit_with_code_2(program, tmp_path, env, message):
    port = str(free_port())
    env = {name: value.replace("{port}", port) for name, value in env.items()}
    running = program([*START, "--port", port], TMPDIR=str(tmp_path), **env)
    code, lines = running.wait_for_exit(tmp_path)
    assert code == 2
    assert any(message in line for line in lines), lines
    assert "marked" not in "".join(lines)


@pytest.mark.parametrize("setting", ["--port (or GRADIO_SERVER_PORT)", "ENGINE_PORT"])
@pytest.mark.parametrize(
    "command", [START, [sys.executable, str(ROOT / "app.py")]], ids=["start.sh", "app.py"]
)
def test_port_in_use_stops_the_start(program, tmp_path, command, setting):
    with serving(QuietHandler) as other:
        taken, free = str(other.server_port), str(free_port())
        port, engine_port = (free, taken) if setting == "ENGINE_PORT" else (taken, free)
        running = program([*command, "--port", port], TMPDIR=str(tmp_path), ENGINE_PORT=engine_port)
        code, lines = running.wait_for_exit(tmp_path)
    assert code == 1
    assert lines[-1].startswith(f"ERROR: Port {taken} on 127.0.0.1 cannot be used")
    assert f"set {setting} to a free one" in lines[-1]


# -- models on the Hub -----------------------------------------------------------------------

GGUF = [{"rfilename": "q.gguf", "size": 5}]
HUGE = [{"rfilename": "config.json"}, {"rfilename": "a.safetensors", "size": 10**15}]


@pytest.mark.parametrize(
    ("model_on_hub", "env", "messages"),
    [
        case(
            "no such model",
            model("org/nama"),
            {},
            ["no model org/name", "Did you mean org/nama?"],
        ),
        case("gated", model("org/name", gated="auto"), {}, ["is gated", "HF_TOKEN is not set"]),
        case("bad token", model("org/name"), {"HF_TOKEN": "hf_bad-marked"}, ["rejected HF_TOKEN"]),
        case("bad revision", model("org/name"), {"MODEL_REVISION": "v9"}, ["no revision v9"]),
        case("GGUF only", model("org/name", siblings=GGUF), {}, ["only GGUF files"]),
        case(
            "disk too small",
            model("org/name", siblings=HUGE),
            {},
            ["a download of 931322.6 GiB", "HF_HOME"],
        ),
        case(
            "cache not writable",
            model("org/name"),
            {"HF_HOME": "/proc/nowhere"},
            ["/proc", "HF_HOME"],
        ),
    ],
)
def test_unusable_model_stops_the_start(program, tmp_path, model_on_hub, env, messages):
    env = {"MODEL_ID": "org/name", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")} | env
    with hub(model_on_hub) as url:
        env |= {"HF_ENDPOINT": url, "TMPDIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
        running = program([*START, "--port", str(free_port())], **env)
        code, lines = running.wait_for_exit(tmp_path)
    assert code == 1
    for message in messages:
        assert message in lines[-1]
    assert "marked" not in "".join(lines)
    assert "vLLM is" not in running.output


# -- full disks ------------------------------------------------------------------------------


def test_start_needs_a_temporary_folder(program, tmp_path):
    code, lines = program(START, TMPDIR=str(tmp_path / "nowhere")).wait_for_exit(tmp_path)
    assert code == 1
    assert lines[-1] == "ERROR: Cannot create a folder: set TMPDIR to a writable one."


@pytest.mark.parametrize(
    ("space", "is_enough"), [(0, False), (1, True)], ids=["no space", "space for the status only"]
)
def test_full_disk_need_not_stop_the_engine(program, tmp_path, space, is_enough):
    """`ulimit -f` limits the size of every file, in kB."""
    command = f"(ulimit -f {space}; exec '{sys.executable}' -m vllm_space.engine) 2>&1 | cat"
    env = STAND_IN_ENGINE | {"SCRIPT": "verbose"}
    env |= {"ENGINE_RUN_DIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
    running = program(["bash", "-c", command], **env)

    def is_done() -> bool:
        return (
            "vLLM is ready" in running.output if is_enough else running.process.poll() is not None
        )

    wait_for(is_done, 60, "the start")
    assert "Traceback" not in running.output
    if not is_enough:
        assert "is not writable: set TMPDIR to a folder with space" in running.output
