"""Secrets appear in no output, page, error, process title, command line or environment."""

import json
import re
from collections.abc import Iterator

import psutil
import pytest
import requests

from support.programs import STAND_IN, STAND_IN_ENGINE, START, free_port

MARK = "MARKED"
SECRETS = {
    "HF_TOKEN": "hf_MARKEDtoken0123456789",
    "APP_USERNAME": "alice",
    "APP_PASSWORD": "MARKEDpassword-1",
    "APP_USERS": "bob:MARKEDpassword-2,carol:MARKEDpassword-3",
    "API_KEYS": "phone:MARKEDkey-1,MARKEDkey-2",
}
PATHS = """
    / /config /gradio_api/info /healthz /gradio_api/openapi.json /openapi.json /docs /login
    /gradio_api/startup-events /gradio_api/app_id /v1/models /no-such-page /robots.txt /monitoring
    /gradio_api/file=/proc/self/environ /gradio_api/mcp/schema
""".split()


@pytest.fixture
def marked(program, tmp_path):
    """start.sh with marked secrets, and an engine that prints its own: (Program, URL)."""
    port = free_port()
    env = {"SCRIPT": "indiscreet", "ENGINE_PORT": str(free_port()), "TMPDIR": str(tmp_path)}
    running = program([*START, "--port", str(port)], **STAND_IN_ENGINE, **SECRETS, **env)
    url = f"http://127.0.0.1:{port}"
    running.wait_until_up(url, 60)
    return running, url


def sign_in(session: requests.Session, url: str, password: str) -> requests.Response:
    form = {"username": "alice", "password": password}
    return session.post(f"{url}/login", data=form, timeout=10)


def all_answers(url: str) -> Iterator[tuple[str, requests.Response]]:
    """What the page and the API answer to strangers, visitors who signed in, and API clients."""
    stranger, visitor = requests.Session(), requests.Session()
    sign_in(visitor, url, "MARKEDpassword-1")
    assert visitor.cookies
    yield "wrong password", sign_in(stranger, url, "MARKEDpassword-4")
    functions = visitor.get(f"{url}/config", timeout=10).json()["dependencies"]
    for who, session in (("stranger", stranger), ("visitor", visitor)):
        for path in PATHS:
            yield f"{who} {path}", session.get(url + path, timeout=10)
        for number in range(len(functions)):
            body = {"data": [None] * 14, "fn_index": number, "session_hash": "x"}
            answer = session.post(f"{url}/gradio_api/run/predict", json=body, timeout=10)
            yield f"{who} function {number}", answer
    for key in ("MARKEDkey-1", "wrong"):
        for body in ({"messages": []}, {"max_tokens": 10**9}, []):
            headers = {"Authorization": f"Bearer {key}"}
            chat = f"{url}/v1/chat/completions"
            answer = requests.post(chat, data=json.dumps(body), headers=headers, timeout=10)
            yield f"/v1 {key} {body}", answer


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it has just ended
        return {}


@pytest.mark.vllm
def test_secrets_appear_nowhere(marked, tmp_path):
    running, url = marked
    processes = running.processes()
    environments = [environment(process) for process in processes]
    engine_key = next(env["VLLM_API_KEY"] for env in environments if "VLLM_API_KEY" in env)
    marks = re.compile(f"{MARK}|{re.escape(engine_key)}")

    log_shown_masked = False
    for where, answer in all_answers(url):
        assert not marks.search(answer.text + str(answer.headers)), where
        if where.startswith("visitor function"):
            log_shown_masked |= "the token is ***" in answer.text
    assert log_shown_masked, "the Status tab shows the engine's log to whoever signed in"

    for process, env in zip(processes, environments, strict=True):
        command = " ".join(process.cmdline())
        assert not marks.search(command + process.name()), process
        if STAND_IN in command or "sleep" in command:  # the engine and its worker
            assert env["HF_TOKEN"] == SECRETS["HF_TOKEN"]
            assert not re.search(r"MARKED(?:password|key)", str(env)), "the engine needs no others"
        elif "app.py" in command:
            assert "HF_TOKEN" not in env
            assert "VLLM_API_KEY" not in env

    for file in tmp_path.rglob("*"):  # including the engine's log
        if file.is_file():
            assert not marks.search(file.read_text(errors="replace")), file
    running.check_sigterm()
    assert not marks.search(running.output)


@pytest.mark.vllm
@pytest.mark.parametrize("source", ["HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_any_token_is_the_engines_only(program, tmp_path, source):
    """Also if `hf auth login` saved it."""
    token = SECRETS["HF_TOKEN"]
    (tmp_path / "token").write_text(f"{token}\n")
    values = {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HOME": str(tmp_path)}
    port = free_port()
    env = STAND_IN_ENGINE | {"ENGINE_PORT": str(free_port()), "SCRIPT": "indiscreet"}
    running = program([*START, "--port", str(port)], **env, **{source: values.get(source, token)})
    running.wait_until_up(f"http://127.0.0.1:{port}", 60)
    assert running.part(STAND_IN).environ()["HF_TOKEN"] == token
    assert MARK not in str(running.part("app.py").environ())
    assert MARK not in running.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_URL", "user:MARKED-1@gpu-box"),
        ("MODEL_URL", "http://u:MARKED/2@gpu-box"),
        ("MODELS", '{"a": "ftp://gpu-box/?key=MARKED-3"}'),
    ],
)
def test_bad_address_hides_its_password(program, name, value):
    running = program([*START, "--port", str(free_port())], **{name: value})
    assert running.process.wait(30) == 2
    assert f"ERROR: {name}=" in running.output
    assert MARK not in running.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_API_KEY", "MARKED-key’"),
        ("APP_PASSWORD", "MARKED\npassword"),
        ("APP_USERS", "alice:MARKED,password"),
    ],
)
def test_unusable_secret_is_not_printed(program, name, value):
    env = {"APP_USERNAME": "alice", "APP_PASSWORD": "x", name: value}
    running = program([*START, "--port", str(free_port())], MODEL_URL="http://127.0.0.1:9", **env)
    assert running.process.wait(30) == 2
    assert running.output.startswith(f"ERROR: {name} ")
    assert MARK not in running.output


@pytest.mark.parametrize(
    "name", ["MODEL_API_KEY", "HF_TOKEN", "APP_PASSWORD", "APP_USERS", "API_KEYS"]
)
def test_failed_start_prints_no_secret(program, name):
    value = SECRETS.get(name, "MARKED-key").replace(":", "")
    running = program(
        [*START, "--port", str(free_port())],
        TEMPERATURE="hot",
        MODEL_URL="MARKED-no-address",
        **{name: value},
    )
    assert running.process.wait(30) == 2
    assert MARK not in running.output.replace("MODEL_URL=MARKED-no-address", "")
