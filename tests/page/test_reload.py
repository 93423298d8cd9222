"""`gradio app.py`: the page follows every change of its files; without it, nothing is watched."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import requests

from support.programs import ROOT, free_port, wait_for
from support.scripted_engine import ScriptedEngine, chat_stream

RELOAD = "/gradio_api/dev/reload"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the product, to be changed."""
    for name in ("app.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "vllm_space", tmp_path / "vllm_space", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    time.sleep(
        1
    )  # gradio 6.31: after a reload it notes the files anew, and misses what changes in that moment
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    os.utime(
        file, (file.stat().st_atime, file.stat().st_mtime + 2)
    )  # file systems may count whole seconds


def test_a_change_reloads_the_page(program, copy):
    with ScriptedEngine(lambda path, body: chat_stream("Hello")).running() as engine:
        port = free_port()
        running = program(
            [str(Path(sys.executable).with_name("gradio")), "app.py"],
            cwd=copy,
            MODEL_URL=engine.url,
            GRADIO_SERVER_PORT=str(port),
        )
        url = f"http://127.0.0.1:{port}"
        running.wait_until_up(url, 60)

        def page() -> str:
            return requests.get(f"{url}/config", timeout=5).text

        wait_for(lambda: "Type a message and press Enter" in page(), 20, "the page")
        change(
            copy / "vllm_space" / "page" / "chat.py",
            "Type a message and press Enter",
            "Write something",
        )
        wait_for(lambda: "Write something" in page(), 30, f"the new words\n{running.output}")
        change(copy / "vllm_space" / "page" / "page.css", "max-width: 1280px", "max-width: 1234px")
        wait_for(lambda: "max-width: 1234px" in page(), 30, f"the new style\n{running.output}")
        change(copy / "vllm_space" / "page" / "layout.py", "class Page:", "class Page")
        wait_for(lambda: "SyntaxError" in running.output, 30, "the mistake")
        change(copy / "vllm_space" / "page" / "layout.py", "class Page\n", "class Page:\n")
        change(copy / "vllm_space" / "page" / "chat.py", "Write something", "Write again")
        wait_for(lambda: "Write again" in page(), 30, f"the mistake undone\n{running.output}")
        with requests.get(url + RELOAD, stream=True, timeout=5) as events:
            assert events.headers["Content-Type"].startswith("text/event-stream")
        assert requests.get(f"{url}/healthz", timeout=5).ok
        assert "cannot be used" not in running.output


def test_nothing_is_watched_otherwise(page):
    with ScriptedEngine().running() as engine:
        url = page(engine.url)
        for path in (RELOAD, f"{RELOAD}/"):
            assert requests.get(url + path, timeout=5).status_code == 404
