"""A start with marked secrets leaves the marks nowhere: no output, page, error, title, command line or environment."""

import json
import re

import psutil
import pytest
import requests

from support.programs import STAND_IN, STAND_IN_ENGINE, START, free_port

SECRETS = {
    "HF_TOKEN": "hf_MARKEDtoken0123456789",
    "APP_USERNAME": "alice",
    "APP_PASSWORD": "MARKEDpassword-1",
    "APP_USERS": "bob:MARKEDpassword-2,carol:MARKEDpassword-3",
    "API_KEYS": "phone:MARKEDkey-1,MARKEDkey-2",
}
MARK = "MARKED"
PATHS = [
    "/",
    "/config",
    "/gradio_api/info",
    "/healthz",
    "/gradio_api/openapi.json",
    "/openapi.json",
    "/docs",
    "/login",
    "/gradio_api/startup-events",
    "/gradio_api/app_id",
    "/v1/models",
    "/no-such-page",
    "/robots.txt",
    "/monitoring",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/mcp/schema",
]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it has just ended
        return {}


@pytest.fixture
def marked(program, tmp_path):
    """start.sh with every secret marked, around an engine that repeats what it is told and reads the Hub's token."""
    port = free_port()
    env = (
        STAND_IN_ENGINE
        | SECRETS
        | {"SCRIPT": "indiscreet", "ENGINE_PORT": str(free_port()), "TMPDIR": str(tmp_path)}
    )
    running = program([*START, "--port", str(port)], **env)
    url = f"http://127.0.0.1:{port}"
    running.wait_until_up(url, 60)
    return running, url


def everything_said(url: str) -> dict[str, str]:
    """What the port answers to a stranger, to a visitor who signed in, and to a holder of a key, by address."""
    visitor = requests.Session()
    visitor.post(
        f"{url}/login", data={"username": "alice", "password": "MARKEDpassword-1"}, timeout=10
    )
    assert visitor.cookies
    config = visitor.get(f"{url}/config", timeout=10).json()
    said = {}
    for who, session in (("stranger", requests.Session()), ("visitor", visitor)):
        for path in PATHS:
            answer = session.get(url + path, timeout=10)
            said[f"{who} {path}"] = answer.text + str(answer.headers)
        for number in range(
            len(config["dependencies"])
        ):  # every handler, the one that shows the engine's log too
            body = {"data": [None] * 14, "fn_index": number, "session_hash": "x"}
            said[f"{who} handler {number}"] = session.post(
                f"{url}/gradio_api/run/predict", json=body, timeout=10
            ).text
    for key in ("MARKEDkey-1", "wrong"):
        for body in ({"messages": []}, {"max_tokens": 10**9}, []):
            answer = requests.post(
                f"{url}/v1/chat/completions",
                data=json.dumps(body),
                headers={"Authorization": f"Bearer {key}"},
                timeout=10,
            )
            said[f"/v1 {key} {body}"] = answer.text + str(answer.headers)
    wrong = requests.post(
        f"{url}/login", data={"username": "alice", "password": "MARKEDpassword-4"}, timeout=10
    )
    return said | {"wrong password": wrong.text + str(wrong.headers)}


@pytest.mark.vllm
def test_a_start_with_marked_secrets_leaves_the_marks_nowhere(marked, tmp_path):
    running, url = marked
    said = everything_said(url)
    shown = [
        text
        for where, text in said.items()
        if where.startswith("visitor handler") and "the token is ***" in text
    ]
    assert shown, "the engine's log is shown to who knows a password, masked"
    family = running.processes()
    engine_key = next(
        env["VLLM_API_KEY"] for env in map(environment, family) if "VLLM_API_KEY" in env
    )
    marks = re.compile(f"{MARK}|{re.escape(engine_key)}")
    for where, text in said.items():
        assert not marks.search(text), where

    for one in family:
        env, line = environment(one), " ".join(one.cmdline())
        assert not marks.search(line + one.name()), one
        if STAND_IN in line or "sleep" in line:  # the engine and its worker
            assert env["HF_TOKEN"] == SECRETS["HF_TOKEN"]
            assert not re.search(r"MARKED(?:password|key)", str(env)), (
                "the engine knows no password of the page"
            )
        elif "app.py" in line:
            assert "HF_TOKEN" not in env
            assert "VLLM_API_KEY" not in env

    for file in tmp_path.rglob("*"):  # the engine's log among them
        if file.is_file():
            assert not marks.search(file.read_text(errors="replace")), file
    running.check_sigterm()
    assert not marks.search(running.output)


@pytest.mark.parametrize(
    "name", ["MODEL_API_KEY", "HF_TOKEN", "APP_PASSWORD", "APP_USERS", "API_KEYS"]
)
def test_no_secret_is_in_the_error_of_a_start_that_fails(program, name):
    value = SECRETS.get(name, "MARKED-key")
    running = program(
        [*START, "--port", str(free_port())],
        TEMPERATURE="hot",
        MODEL_URL="MARKED-no-address",
        **{name: value.replace(":", "")},
    )
    assert running.process.wait(30) == 2
    assert MARK not in running.output.replace("MODEL_URL=MARKED-no-address", "")
