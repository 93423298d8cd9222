"""kill -9 of each of vLLM's processes under running answers, on the real engine: it comes back, and nothing is lost."""

import re
import time

import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.long_stream import LongStream
from support.programs import API_KEY, KEY, START, Program, free_port, wait_for

pytestmark = pytest.mark.vllm

LONG = "Tell me everything about this Space."
STREAMS = 8  # so many that each lasts long enough to be killed in

# The processes of vLLM, by what their command lines say, in the order in which they are killed.
PARTS = {
    "API server": "vllm.entrypoints",
    "engine core": "VLLM::EngineCore",
    "worker": "VLLM::Worker",
}


class Boot:
    """One start of the whole, and how long it took to its first answer."""

    def __init__(self, log):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        env = {"ENGINE_PORT": str(free_port()), "API_KEYS": API_KEY}
        began = time.monotonic()
        self.program = Program([*START, "--port", str(port)], log, env)
        try:
            self.program.wait_until_up(self.url)
        except BaseException:
            self.program.stop()
            raise
        self.took = time.monotonic() - began

    def part(self, name: str):
        """The process of vLLM that PARTS names."""
        return next(
            one
            for one in self.program.family()
            if any(PARTS[name] in word for word in one.cmdline())
        )


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    boot = Boot(tmp_path_factory.mktemp("recovery") / "start.log")
    yield boot
    boot.program.check_clean_end()


def health(url: str) -> requests.Response:
    return requests.get(f"{url}/healthz", timeout=10)


def test_every_process_of_vllm_may_be_killed_in_mid_answer(boot, visit):
    tab = visit(boot.url)
    tab.get_by_role("button", name="More").click()
    # Nothing may end the answer before the kill does: words become likelier with each use, so it turns in circles.
    for label, value in {
        "Temperature": "0",
        "Frequency penalty": "-2",
        "Max tokens": "1900",
    }.items():
        tab.get_by_label(label).locator("visible=true").first.fill(value)

    for name in PARTS:
        tab.get_by_role("button", name="New chat").click()
        expect(tab.locator("[data-testid=user]")).to_have_count(0)
        ask(tab, LONG)
        streams = [LongStream(boot.url, LONG) for _ in range(STREAMS)]
        expect(tab.locator(ANSWER)).to_have_count(1)
        wait_for(lambda streams=streams: all(one.text for one in streams), 60, "all streams")
        boot.part(name).kill()
        killed = time.monotonic()

        # The running answers end with a note and keep their text, and the page says what is going on.
        failed = tab.locator("#chatbot").get_by_text("⚠️ The answer is incomplete")
        expect(failed).to_have_count(1)
        assert tab.locator(ANSWER).first.inner_text().strip()
        for stream in streams:
            stream.join(30)
            assert stream.text
            assert stream.error.endswith("."), name
        wait_for(lambda: health(boot.url).status_code == 503, 20, "503")
        expect(tab.locator("#banner")).to_contain_text("The engine is restarting", timeout=10_000)

        wait_for(lambda: health(boot.url).ok, 300, f"recovery after the death of the {name}")
        took = time.monotonic() - killed
        pause = int(re.findall(r"Restart \d of 3 in (\d+) s", boot.program.output)[-1])
        print(
            f"{name}: back after {took:.1f} s, the pause of {pause} s included; the fresh start took {boot.took:.1f} s"
        )
        assert took - pause < 1.5 * boot.took + 5, (
            boot.program.output
        )  # half of it again for what else the cores do
        expect(tab.locator("#banner")).to_be_hidden(timeout=10_000)  # with no reload
        answer = requests.post(
            f"{boot.url}/v1/chat/completions",
            headers=KEY,
            timeout=60,
            json={
                "model": "vllm-space-demo",
                "messages": [{"role": "user", "content": LONG}],
                "max_tokens": 5,
            },
        )
        assert answer.json()["choices"][0]["message"]["content"]
