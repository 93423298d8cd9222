"""`gradio app.py` reloads the page when a file changes. Without it, no file is watched."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import requests

from support.product import copy_product
from support.programs import free_port, wait_for
from support.scripted_engine import ScriptedEngine

RELOAD = "/gradio_api/dev/reload"
PLACEHOLDER = "Type a message and press Enter"


def write(file: Path, text: str, effect: Callable[[], bool]) -> None:
    """Write a file, and wait for the effect of its reload."""
    file.write_text(text)
    modified = file.stat().st_mtime

    def reloaded() -> bool:
        # gradio 6.31: a change is missed if it happens just after a reload, so touch the file again
        nonlocal modified
        modified += 2  # some file systems count in seconds
        os.utime(file, (modified, modified))
        return effect()

    wait_for(reloaded, 30, file.name)


def test_changed_files_reload_the_page(program, tmp_path):
    folder = copy_product(tmp_path)
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def config() -> str:
        return requests.get(f"{url}/config", timeout=5).text

    with ScriptedEngine().running() as engine:
        running = program(
            [str(Path(sys.executable).with_name("gradio")), "app.py"],
            cwd=folder,
            MODEL_URL=engine.url,
            GRADIO_SERVER_PORT=str(port),
        )
        running.wait_until_up(url, 60)
        assert PLACEHOLDER in config()

        chat = folder / "vllm_space/page/chat.py"
        code = chat.read_text()
        assert PLACEHOLDER in code
        write(chat, code.replace(PLACEHOLDER, "Say something"), lambda: "Say something" in config())

        css = folder / "vllm_space/page/page.css"
        write(css, css.read_text() + "\n.marked {}", lambda: ".marked {}" in config())

        write(chat, "def", lambda: "SyntaxError" in running.output)
        write(chat, code.replace(PLACEHOLDER, "Say more"), lambda: "Say more" in config())

        with requests.get(url + RELOAD, stream=True, timeout=5) as events:
            assert events.headers["Content-Type"].startswith("text/event-stream")
        assert requests.get(f"{url}/healthz", timeout=5).ok
        assert "cannot be used" not in running.output


def test_no_file_is_watched_otherwise(url):
    for path in (RELOAD, f"{RELOAD}/"):
        assert requests.get(url + path, timeout=5).status_code == 404
