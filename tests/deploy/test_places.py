"""./start.sh in other places, with a scripted engine: a read-only checkout of another user, a path
with spaces, a privileged port, and a reverse proxy that serves it under a path.
"""

import shutil
from pathlib import Path

import gradio_client
import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask, message_box, open_tab, sign_in
from support.programs import ROOT, STAND_IN_ENGINE, free_port
from support.scripted_platform import platform
from support.unprivileged import as_user

pytestmark = [
    pytest.mark.vllm,  # start.sh requires it to be installed
    # The certificate is self-signed.
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]


@pytest.fixture(scope="module")
def checkout(computer) -> Path:
    """A checkout that the user can read and run, but not write to."""
    folder = computer / "somebody's own space"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".env"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() or path.name == "start.sh" else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@pytest.fixture
def start(program, user_env, checkout):
    """start(PORT, NAME="value") -> Program: ./start.sh as the unprivileged user."""

    def run(port: int, **owner: str):
        env = user_env | STAND_IN_ENGINE | {"PYTHONPATH": str(checkout / "tests")} | owner
        env["ENGINE_PORT"] = str(free_port())
        return program(as_user(env, "./start.sh", "--port", str(port)), cwd=checkout)

    return run


def test_read_only_checkout_with_spaces(start, checkout):
    before = sorted(checkout.rglob("*"))
    port = free_port()
    running = start(port)
    url = f"http://127.0.0.1:{port}"
    running.wait_until_up(url, 90)
    assert gradio_client.Client(url, verbose=False).predict("Hi", api_name="/chat") == "Hello"
    running.check_sigterm()
    assert sorted(checkout.rglob("*")) == before


def test_privileged_port_is_rejected(start):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("on this machine every user may open port 80")
    running = start(80)
    assert running.process.wait(30) == 1
    error = "ERROR: Port 80 needs root privileges: set --port"
    assert error in running.output
    assert "Traceback" not in running.output


def test_proxy_serves_it_under_a_path(start, tmp_path, chromium):
    port = free_port()
    login = {"APP_USERNAME": "alice", "APP_PASSWORD": "right"}
    running = start(
        port,
        GRADIO_ROOT_PATH="/tools/chat",
        FORWARDED_ALLOW_IPS="127.0.0.1",
        API_KEYS="key",
        **login,
    )
    running.wait_until_up(f"http://127.0.0.1:{port}", 90)
    with platform(tmp_path, port, prefix="/tools/chat") as site:
        url = f"{site.url}/tools/chat"

        def get(path: str) -> dict:
            key = {"x-api-key": "key"}
            return requests.get(url + path, headers=key, verify=False, timeout=10).json()

        assert get("/healthz") == {"status": "ok"}
        assert get("/v1/models")["data"]
        client = gradio_client.Client(
            f"{url}/", auth=("alice", "right"), ssl_verify=False, verbose=False
        )
        assert client.predict("Hi", api_name="/chat") == "Hello"

        with chromium.new_context(ignore_https_errors=True) as context:
            page = context.new_page()
            outside = []  # requests that are not under the path
            page.on("response", lambda answer: answer.status == 418 and outside.append(answer.url))
            page.goto(f"{url}/")
            for password in ("wrong", "right"):
                sign_in(page, "alice", password)
            expect(message_box(page)).to_be_visible(timeout=30_000)
            ask(page, "Hi")
            expect(page.locator(ANSWER).last).to_have_text("Hello")
            open_tab(page, "API")
            expect(page.get_by_text(f"{url}/v1").first).to_be_visible()
            paths = {cookie["path"] for cookie in context.cookies()}
            assert paths == {"/tools/chat/", "/tools/chat/login"}
            page.get_by_role("button", name="Sign out (alice)").click()
            expect(page.get_by_label("Password")).to_be_visible()
            assert outside == []
