"""./start.sh where people put it: another user's read-only checkout, a path with spaces, a port it may not have, and a
proxy that serves it under a path. Around a stand-in for the engine.
"""

import shutil
from pathlib import Path

import gradio_client
import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.programs import ROOT, STAND_IN_ENGINE, free_port
from support.scripted_platform import platform
from support.unprivileged import as_user, give

pytestmark = [
    pytest.mark.vllm,  # start.sh looks for it
    pytest.mark.filterwarnings(
        "ignore::urllib3.exceptions.InsecureRequestWarning"
    ),  # nobody's certificate
]


@pytest.fixture(scope="module")
def checkout(computer) -> Path:
    """A checkout that the user may read and run, and not write to."""
    folder = computer / "somebody's own space"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".env"))
    for one in (folder, *folder.rglob("*")):
        one.chmod(0o555 if one.is_dir() or one.name == "start.sh" else 0o444)
    yield folder
    for one in (folder, *folder.rglob("*")):
        one.chmod(0o755)


@pytest.fixture
def start(program, computer, user_python, checkout):
    """start(flags, NAME="value") -> Program: ./start.sh under the unprivileged user."""
    home = computer / "home of start"
    home.mkdir(exist_ok=True)
    give(home)

    def run(*flags: str, **owner: str):
        env = {
            "HOME": str(home),
            "USER": "user",
            "PATH": f"{user_python.parent}:/usr/local/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(computer / "env" / "base" / "lib"),  # see unprivileged.py
            "HF_HUB_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "ENGINE_PORT": str(free_port()),
        }
        env = STAND_IN_ENGINE | {"PYTHONPATH": str(checkout / "tests")} | env | owner
        return program(as_user(env, "./start.sh", *flags), cwd=checkout)

    return run


def test_another_users_read_only_checkout_in_a_path_with_spaces(start, checkout):
    before = sorted(checkout.rglob("*"))
    port = free_port()
    running = start("--port", str(port))
    url = f"http://127.0.0.1:{port}"
    running.wait_until_up(url, 90)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"
    running.check_sigterm()
    assert sorted(checkout.rglob("*")) == before


def test_a_port_that_only_root_may_open_is_a_sentence(start):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("here everyone may open port 80")
    running = start("--port", "80")
    assert running.process.wait(30) == 1
    assert (
        "ERROR: Port 80 on 127.0.0.1 cannot be used (Permission denied): set --port"
        in running.output
    )
    assert "Traceback" not in running.output


def test_behind_a_proxy_that_serves_it_under_a_path(start, tmp_path, chromium):
    port = free_port()
    running = start(
        "--port",
        str(port),
        GRADIO_ROOT_PATH="/tools/chat",
        APP_USERNAME="alice",
        APP_PASSWORD="right",
        API_KEYS="key",
    )
    running.wait_until_up(f"http://127.0.0.1:{port}", 90)
    with platform(tmp_path, port, prefix="/tools/chat") as site:
        url = f"{site.url}/tools/chat"
        assert requests.get(f"{url}/healthz", verify=False, timeout=10).json() == {"status": "ok"}
        assert requests.get(
            f"{url}/v1/models", headers={"x-api-key": "key"}, verify=False, timeout=10
        ).json()["data"]
        client = gradio_client.Client(
            f"{url}/", auth=("alice", "right"), ssl_verify=False, verbose=False
        )
        assert client.predict("Hi", api_name="/chat") == "Hello"

        context = chromium.new_context(ignore_https_errors=True)
        page = context.new_page()
        outside = []
        page.on(
            "response", lambda answer: outside.append(answer.url) if answer.status == 418 else None
        )
        page.goto(f"{url}/")
        for password in ("wrong", "right"):
            page.get_by_label("User name").fill("alice")
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Sign in", exact=True).click()
        expect(page.get_by_placeholder("Type a message")).to_be_visible(timeout=30_000)
        ask(page, "Hi")
        expect(page.locator(ANSWER).last).to_have_text("Hello")
        page.get_by_role("tab", name="API").click()
        expect(page.get_by_text(f"{url}/v1").first).to_be_visible()
        assert [cookie["path"] for cookie in context.cookies()] == ["/tools/chat/"]
        assert outside == []  # everything is asked for under the path
        context.close()
