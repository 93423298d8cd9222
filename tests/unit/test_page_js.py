"""page.js in Node.js, without the page."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from vllm_space.page import javascript

SOURCE = (javascript.FOLDER / "page.js").read_text()
# Reads lines of [function, arguments], and writes what each call returns. No answer is running on the page.
NODE = """
globalThis.document = {querySelector: () => null};
require("readline").createInterface({input: process.stdin}).on("line", (line) => {
  const [call, given] = JSON.parse(line);
  console.log(JSON.stringify(eval(`(${call})`)(...given)));
});
"""
MOST = int(re.search(r"MOST_STORED = (\d+)", SOURCE)[1])
HALF_OF_ALL = "x" * 2**20


@pytest.fixture
def call() -> Iterator[Callable]:
    """Call a function of page.js: call(name, argument, ...) -> what it returns."""
    command = ["node", "-e", SOURCE + NODE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:

        def call(name: str, *arguments: object) -> list:
            print(json.dumps([javascript.call(name), arguments]), file=node.stdin, flush=True)
            return json.loads(node.stdout.readline())

        yield call
        node.stdin.close()


def conversation(ident: int, text: str = "Hi") -> dict:
    return {
        "id": ident,
        "title": f"Question {ident}",
        "messages": [{"role": "user", "content": text}],
    }


def test_the_browser_keeps_the_newest_within_its_bounds(call):
    kept = []
    for ident in range(MOST + 5):
        kept, listed, delete, _ = call("store", conversation(ident) | {"failed": False}, kept)
    assert [one["id"] for one in kept] == list(range(MOST + 4, 4, -1))
    assert listed["value"] == kept[0]["id"]
    assert delete["interactive"]
    half = HALF_OF_ALL
    for ident in (101, 102):
        kept = call("store", conversation(ident, half) | {"failed": False}, kept)[0]
    assert [one["id"] for one in kept] == [102]


def test_a_kept_conversation_is_replaced_and_comes_to_the_top(call):
    kept = [conversation(2), conversation(1)]
    kept, *_, again = call("store", conversation(1, "More") | {"failed": True}, kept)
    assert kept == [conversation(1, "More"), conversation(2)]
    assert again["active"]  # the page looks until the engine that failed is back
    assert call("remove", kept, 1)[0] == [conversation(2)]


def test_a_message_goes_back_into_the_box_only_where_it_did_not_arrive(call):
    before = [{"role": "user", "content": []}, {"role": "assistant", "content": []}]
    sent, shown, box = call("send", {"text": "Hello", "files": []}, before)
    assert (len(shown), box["value"]["text"]) == (3, "")
    assert call("takeBack", sent, shown)[0] == before
    assert call("takeBack", sent, shown)[1]["value"] == sent
    answered = [*shown, {"role": "assistant", "content": []}]
    assert call("takeBack", sent, answered)[0] == answered
    assert "value" not in call("takeBack", sent, answered)[1]
