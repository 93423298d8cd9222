"""vLLM killed with SIGKILL during its answers: it is restarted, and the answers keep their text.

tests/deploy/test_start.py restarts a scripted engine.
"""

import time

import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.long_stream import LongStream
from support.programs import KEY, MODEL, wait_for
from support.visitors import ENDLESS

QUESTION = "Tell me everything about this Space."
STREAMS = 8  # at the same time, so that none of them ends before the kill


@pytest.mark.parametrize(
    "process",
    [
        "VLLM::EngineCore",
        pytest.param("vllm.entrypoints", marks=pytest.mark.release),  # the API server
        pytest.param("VLLM::Worker", marks=pytest.mark.release),
    ],
)
def test_killed_vllm_is_restarted(space, visit, process):
    def health() -> requests.Response:
        return requests.get(f"{space.url}/healthz", timeout=10)

    tab = visit(space.url)
    tab.get_by_role("button", name="More").click()
    for label, value in ENDLESS.items():
        tab.get_by_label(label).locator("visible=true").first.fill(value)
    ask(tab, QUESTION)
    streams = [LongStream(space.url, QUESTION) for _ in range(STREAMS)]
    expect(tab.locator(ANSWER)).to_have_count(1)
    wait_for(lambda: all(stream.text for stream in streams), 60, "all streams")
    space.program.part(process).kill()
    killed = time.monotonic()

    # The page and the API end the running answers with an error, and keep their text.
    note = tab.locator("#chatbot").get_by_text("⚠️ The answer is incomplete")
    expect(note).to_have_count(1, timeout=30_000)
    assert tab.locator(ANSWER).first.inner_text().strip()
    for stream in streams:
        stream.join(60)
        assert stream.text
        assert stream.error.endswith(".")
    wait_for(lambda: health().status_code == 503, 60, "503")
    expect(tab.locator("#banner")).to_contain_text("The engine is restarting", timeout=30_000)

    wait_for(lambda: health().ok, 300, "the restart")
    print(f"{process}: restarted after {time.monotonic() - killed:.1f} s")
    expect(tab.locator("#banner")).to_be_hidden(timeout=30_000)  # without a reload
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 5}
    url = f"{space.url}/v1/chat/completions"
    answer = requests.post(url, json=body, headers=KEY, timeout=60).json()
    assert answer["choices"][0]["message"]["content"]
