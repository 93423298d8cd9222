"""Inputs that people bring: each file in tests/cases, through the page, /chat, /v1 and /healthz.

tests/cases/right.yaml says what is right. All servers are scripted (support/case_server.py). The
Spaces that the tests need are started in the background, a few at a time.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import gradio_client
import pytest
import requests
import yaml
from benchmark.browser import Visitor
from playwright.sync_api import expect

from support import coroutines
from support.case_server import ANSWER, CASES, CaseServer, data, load
from support.certificates import self_signed
from support.chromium import ANSWER as ANSWER_SELECTOR
from support.chromium import ask
from support.product import copy_product
from support.programs import API_KEY, CLEAN, KEY, ROOT, Program, free_port, wait_for
from support.scripted_hub import hub, model

RIGHT = yaml.safe_load((CASES / "right.yaml").read_text(encoding="utf-8"))
MANY = "all servers of answers and second_questions"  # one Space for all of them, with MODELS
START_WORKERS = 3  # Spaces that start at the same time
TIMEOUT = 20  # seconds

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


# -- Spaces ----------------------------------------------------------------------------------------


@dataclass
class Started:
    """A program that runs, or has ended, and the model server in front of which it is."""

    program: Program
    address: str
    server: CaseServer | None = None
    servers: dict[str, CaseServer] | None = None

    @property
    def exit_code(self) -> int | None:
        return self.program.process.poll()

    @property
    def url(self) -> str:
        """Its address, if it runs."""
        assert self.exit_code is None, self.program.output[-2000:]
        return self.address


class Spaces:
    """Starts a Space for each of `names` in the background: files in tests/cases, or MANY."""

    def __init__(self, names: list[str], folder: Path):
        self.folder = folder
        self.stack = ExitStack()
        self.certificate, self.tls = self_signed(folder, "127.0.0.2", "127.0.0.1")
        self.pool = ThreadPoolExecutor(START_WORKERS)
        self.starting: dict[str, Future[Started]] = {
            name: self.pool.submit(self._start, name) for name in names
        }

    def __getitem__(self, name: str) -> Started:
        if name not in self.starting:
            self.starting[name] = self.pool.submit(self._start, name)
        return self.starting[name].result(120)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        for start in self.starting.values():
            if start.done() and not start.cancelled() and not start.exception():
                start.result().program.stop()
        self.stack.close()

    def _start(self, name: str) -> Started:
        if name == MANY:
            return self._start_many()
        if name.endswith(".env"):
            return self._start_with_dotenv(name)
        case = load(name)
        server = CaseServer(case)
        if "server" in case:  # it redirects to another one
            server.redirects_to = self.stack.enter_context(CaseServer({}).running()).url
        self.stack.enter_context(server.running(self.tls if "certificate" in case else None))
        env = {"MODEL_URL": server.model_url, "API_KEYS": API_KEY} | case.get("variables", {})
        if name in RIGHT["images"]:
            env["MODEL_IMAGES"] = RIGHT["images"][name]["MODEL_IMAGES"]
        env = {key: value.replace("CERT", str(self.certificate)) for key, value in env.items()}
        started = self._run(name, env, case.get("arguments", []), case.get("reach", "127.0.0.1"))
        started.server = server
        return started

    def _start_many(self) -> Started:
        files = [*RIGHT["answers"], *RIGHT["second_questions"]]
        servers = {file: CaseServer(load(file), model=Path(file).stem) for file in files}
        for server in servers.values():
            self.stack.enter_context(server.running())
        models = {Path(file).stem: server.model_url for file, server in servers.items()}
        started = self._run("many", {"MODELS": json.dumps(models), "API_KEYS": API_KEY})
        started.servers = servers
        return started

    def _start_with_dotenv(self, name: str) -> Started:
        """./start.sh with the file as its .env. Its RUN_DIR is below self.folder / name."""
        product = self.folder / f"product-{name}"
        product.mkdir()
        copy_product(product)
        (product / ".env").write_bytes(data(name))
        (self.folder / name).mkdir()
        env = {"TMPDIR": str(self.folder / name)}
        return self._run(name, env, command=["bash", str(product / "start.sh")], cwd=product)

    def _run(
        self,
        name: str,
        env: dict[str, str],
        arguments: Any = (),
        reach: str = "127.0.0.1",
        command: Any = (sys.executable, "app.py"),
        cwd: Path = ROOT,
    ) -> Started:
        port = free_port()
        line = [*command, "--port", str(port), *arguments]
        program = Program(line, self.folder / f"{name}.log", env, cwd)
        started = Started(program, f"http://{f'[{reach}]' if ':' in reach else reach}:{port}")

        def is_up_or_ended() -> bool:
            if started.exit_code is not None:
                return True
            answer = requests.get(f"{started.address}/healthz", timeout=TIMEOUT)
            return answer.status_code in (200, 503)

        wait_for(is_up_or_ended, 90, name)
        return started


@pytest.fixture(scope="module")
def spaces(request, tmp_path_factory) -> Iterator[Spaces]:
    """The Spaces of the tests that were selected, in the order of the tests."""
    names: dict[str, None] = {}
    for item in request.session.items:
        if item.path == request.path and (callspec := getattr(item, "callspec", None)):
            names |= dict.fromkeys(callspec.params.get("needs", ()))
    spaces = Spaces(list(names), tmp_path_factory.mktemp("cases"))
    yield spaces
    spaces.close()


def cases(group: str, *needs: str) -> pytest.MarkDecorator:
    """Run a test with each file of a group; a Space of its own is started for it, or `needs`."""
    params = [pytest.param(file, needs or (file,), id=Path(file).stem) for file in RIGHT[group]]
    return pytest.mark.parametrize(("file", "needs"), params)


# -- ways to ask -----------------------------------------------------------------------------------


@dataclass
class Page:
    """What the page shows: its banner, the line about the model, and below the last question."""

    banner: str
    about: str
    answer: dict[str, str]


def look(url: str, *questions: str, label: str | None = None) -> Page:
    """Open the page as a browser does, choose a model, and ask in the Chat tab."""

    async def run() -> Page:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            async with http.get(f"{url}/config") as answer:
                config = json.loads(await answer.text())
            ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
            visitor = Visitor(http, url, config)
            visitor.values[visitor.labels["Model"]] = label
            await visitor.arrive()
            for question in questions:
                await visitor.ask(question)
            about, banner = (visitor.values[ids[name]] or "" for name in ("about", "banner"))
            return Page(banner, about, below_question(visitor.values[visitor.chatbot] or []))

    return coroutines.run(run())


def below_question(history: list[dict[str, Any]]) -> dict[str, str]:
    """{"text": ..., "reasoning": ..., "error": ...} of the last answer, as far as it has them."""
    kinds = {"Thought": "reasoning", "⚠️ No answer": "error", "⚠️ The answer is incomplete": "error"}
    shown = {}
    for message in history:
        if message["role"] == "user":
            shown = {}
        else:
            title = (message["metadata"] or {}).get("title")
            shown[kinds.get(title, title) if title else "text"] = message["content"][0]["text"]
    return shown


def call_chat(client: gradio_client.Client, label: str = "", **fields: Any) -> dict[str, str]:
    """{"text": ..., "error": ...} of /chat, as far as it has them."""
    job = client.submit("Hi", model=label, api_name="/chat", **fields)
    error = job.exception(TIMEOUT)
    texts = job.outputs()
    return ({"text": texts[-1]} if texts else {}) | ({"error": str(error)} if error else {})


def call_api(url: str, name: str, **headers: str) -> requests.Response:
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    path = f"{url}/v1/chat/completions"
    return requests.post(path, json=body, headers=KEY | headers, timeout=TIMEOUT)


def assert_right(shown: dict[str, str], right: dict[str, str]) -> None:
    """Check that exactly this is shown. An empty answer may have a note that says so."""
    shown = {kind: text for kind, text in shown.items() if text and kind != "Empty answer"}
    assert shown.keys() == right.keys(), shown
    for kind, text in right.items():
        if kind == "error":
            assert text in shown[kind]
        else:
            assert shown[kind].strip() == text.strip()


def assert_clean(started: Started) -> None:
    assert "Traceback" not in started.program.output
    assert "Something went wrong" not in started.program.output


# -- one Space with many servers -------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(spaces: Spaces) -> Started:
    return spaces[MANY]


@pytest.fixture(scope="module")
def many_client(many: Started) -> gradio_client.Client:
    return gradio_client.Client(many.url, verbose=False)


@cases("answers", MANY)
def test_answer_of_the_server_is_shown(many, many_client, file, needs):
    server, right = many.servers[file], dict(RIGHT["answers"][file])
    api = right.pop("api", None)
    name = server.list_models()
    name = (name["data"] if isinstance(name, dict) else name)[0]["id"]
    label = f"{name} ({Path(file).stem})"
    assert_right(look(many.url, "Hi", label=label).answer, right)

    asked = len(server.requests)
    shown = call_chat(many_client, label)
    assert_right(shown, {kind: text for kind, text in right.items() if kind != "reasoning"})
    assert len(server.requests) == asked + 1  # what the server refuses is not sent again

    response = call_api(many.url, name)
    if api == "stream":
        assert json.dumps(right["text"]).encode() in response.content
        assert response.content.endswith(b"\n\ndata: [DONE]\n\n")
    elif api:
        assert response.status_code == api
        assert right["error"] in response.json()["error"]["message"]
    else:
        assert response.content == server.answers[-1]
        refusal = server.case.get("refuse_all", {})
        assert response.status_code == refusal.get("status", 200)
    assert_clean(many)


@cases("second_questions", MANY)
def test_second_question_is_answered(many, many_client, file, needs):
    server = many.servers[file]
    label = f"{server.model} ({Path(file).stem})"
    assert look(many.url, "first", "second", label=label).answer == {"text": ANSWER}
    history = [{"role": "user", "content": "first"}]
    assert call_chat(many_client, label, history=history) == {"text": ANSWER}
    assert "second" in json.dumps(server.requests[1])


def test_many_good_servers_need_no_banner(many):
    page = look(many.url)
    assert page.banner == ""
    assert requests.get(f"{many.url}/healthz", timeout=TIMEOUT).json() == {"status": "ok"}


# -- Spaces in front of one server -----------------------------------------------------------------


@cases("spaces")
def test_space_works_or_names_the_reason(spaces, file, needs):
    started, right = spaces[file], RIGHT["spaces"][file]
    name = right.get("model", "scripted")
    page = look(started.url, "Hi")
    answer = call_chat(gradio_client.Client(started.url, verbose=False))
    response = call_api(started.url, name)
    health = requests.get(f"{started.url}/healthz", timeout=TIMEOUT)
    if words := right.get("says"):
        assert words in page.banner
        assert words in page.answer["error"]
        assert words in answer["error"]
        if right.get("api") != 200:
            assert response.status_code in (502, 503, 504)
            assert words in response.json()["error"]["message"]
        assert (health.status_code, words in health.json()["reason"]) == (503, True)
    else:
        assert (page.banner, page.answer, answer) == ("", {"text": ANSWER}, {"text": ANSWER})
        assert f"**{name}**" in page.about
        assert response.ok
        assert health.json() == {"status": "ok"}
    assert_clean(started)


def test_redirect_names_the_new_address(spaces):
    started = spaces["r30-a.json"]
    assert started.server.redirects_to in look(started.url).banner


@cases("slow")
def test_slow_list_is_said_to_be_slow(spaces, file, needs):
    started = spaces[file]
    wait_for(lambda: RIGHT["slow"][file] in started.program.output, TIMEOUT, "the warning")
    wait_for(lambda: look(started.url, "Hi").answer == {"text": ANSWER}, TIMEOUT, "an answer")
    assert_clean(started)


@cases("refused")
def test_start_names_variable_and_reason(spaces, file, needs):
    started, right = spaces[file], RIGHT["refused"][file]
    assert started.exit_code == 2
    (line,) = started.program.output.splitlines()
    assert line.startswith(f"ERROR: {right}")
    assert_no_value(started, file)


def assert_no_value(started: Started, file: str) -> None:
    for value in load(file)["variables"].values():
        assert len(value) < 8 or value.strip('"\n’') not in started.program.output


@cases("logins")
def test_password_is_what_people_type(spaces, file, needs):
    started = spaces[file]
    name, password = load(file)["types"]
    with requests.Session() as visitor:
        form = {"username": name, "password": password}
        assert visitor.post(f"{started.url}/login", data=form, timeout=TIMEOUT).ok
        assert visitor.get(f"{started.url}/gradio_api/user", timeout=TIMEOUT).json() == name
    assert "WARNING: APP_PASSWORD" in started.program.output
    assert password not in started.program.output


@cases("api_keys")
def test_api_key_loses_its_quotes(spaces, file, needs):
    started, key = spaces[file], load(file)["bearer"]
    assert call_api(started.url, "scripted", Authorization=f"Bearer {key}").ok
    assert "WARNING: API_KEYS" in started.program.output
    assert key not in started.program.output


@cases("dotenv")
def test_dotenv_is_read_the_same_everywhere(spaces, file, needs):
    started = spaces[file]
    config = requests.get(f"{started.url}/config", timeout=TIMEOUT).json()
    assert config["title"] == RIGHT["dotenv"][file]
    # start.sh has chosen the packages of the page alone, and so has not started vLLM.
    assert list((spaces.folder / file).glob("vllm-space.*/requirements-page.txt"))


@cases("paths", MANY, "r16-a.json")
def test_unknown_path_names_the_base_address(spaces, file, needs):
    for started in map(spaces.__getitem__, needs):  # without and with sign-in
        for line in load(file)["requests"]:
            method, path = line.split()
            connection = http.client.HTTPConnection(urlsplit(started.url).netloc, timeout=TIMEOUT)
            body = json.dumps({"model": "x", "messages": []})
            connection.request(method, path, body, KEY | {"Content-Type": "application/json"})
            response = connection.getresponse()
            error = json.loads(response.read())["error"]
            connection.close()
            assert (response.status, error["code"]) == (404, "not_found"), line
            assert re.search(rf"{re.escape(started.url)}/v1(?![/\w])", error["message"]), line


# -- in a browser ----------------------------------------------------------------------------------


@cases("images")
def test_images_can_be_attached_if_taken(spaces, visit, file, needs):
    started, offered = spaces[file], RIGHT["images"][file]["offered"]
    tab = visit(started.url)
    expect(tab.locator("#about")).to_contain_text("scripted")
    chooser = tab.locator("#message input[type=file]")
    accepted = re.compile(r"\.txt.*\.png" if offered else r"\.txt((?!\.png).)*$")
    expect(chooser).to_have_attribute("accept", accepted)
    if offered:
        image = {"name": "dot.png", "mimeType": "image/png", "buffer": PNG}
        chooser.set_input_files(image)
        expect(tab.locator("#message img")).to_be_visible()
        ask(tab, "What is this?")
        expect(tab.locator(ANSWER_SELECTOR)).to_have_text(ANSWER)
        assert "image_url" in json.dumps(started.server.requests[-1])


def test_picker_begins_with_the_owners_model(spaces, visit):
    tab = visit(spaces["r06-a.json"].url)
    expect(tab.get_by_label("Model", exact=True)).to_have_value("main-chat")
    ask(tab, "Hi")
    expect(tab.locator(ANSWER_SELECTOR)).to_have_text(ANSWER)


def test_banner_has_the_servers_own_words(spaces, visit):
    tab = visit(spaces["r20-c.json"].url)
    expect(tab.locator("#banner")).to_contain_text(RIGHT["spaces"]["r20-c.json"]["says"])


# -- MODEL_ID, which vLLM loads --------------------------------------------------------------------

CHECK_MODEL = """
from vllm_space import settings
from vllm_space.engine import command, model_check
config = settings.load([])
model = command.model_id(config, [])
model_check.check(config, model, [])
line = command.command_line(config, [])
print(*(line[line.index(flag) + 1] for flag in ("--model", "--served-model-name")), sep="\\n")
"""


@pytest.mark.parametrize("file", RIGHT["models"])
def test_model_reaches_vllm(tmp_path, file):
    case = load(file)
    models = [model(name, **fields) for name, fields in case["hub"]]
    (tmp_path / "token").write_text(case.get("token_file", ""))
    with hub(*models) as url:
        env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", CHECK_MODEL]
        env = CLEAN | env | case["variables"]
        result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines() == RIGHT["models"][file], result.stderr[-500:]
