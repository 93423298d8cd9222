"""page.js in Node.js, without the page."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from vllm_space.page import javascript

SOURCE = (javascript.FOLDER / "page.js").read_text()
# Reads lines of [call, arguments] and writes what each call returns. No answer is running, and the
# server cannot be reached.
NODE = """
globalThis.document = {querySelector: () => null};
globalThis.gradio_config = {root: "http://127.0.0.1/a/path"};
globalThis.fetch = async () => new Response("", {status: 502});
require("readline").createInterface({input: process.stdin}).on("line", async (line) => {
  const [call, values] = JSON.parse(line);
  console.log(JSON.stringify(await eval(`(${call})`)(...values)));
});
"""
MAX_STORED = int(re.search(r"MAX_STORED = (\d+)", SOURCE)[1])
HALF_OF_THE_ROOM = "x" * 2**20


@pytest.fixture
def call() -> Iterator[Callable]:
    """Call a function of page.js: call(name, value, ...) -> what it returns."""
    command = ["node", "-e", SOURCE + NODE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:

        def call(name: str, *values: object) -> list:
            print(json.dumps([javascript.call(name), values]), file=node.stdin, flush=True)
            return json.loads(node.stdout.readline())

        yield call
        node.stdin.close()


def conversation(id: int, text: str = "Hi") -> dict:
    messages = [{"role": "user", "content": text}]
    return {"id": id, "title": f"Question {id}", "messages": messages}


def snapshot(id: int, text: str = "Hi", failed: bool = False) -> dict:
    return conversation(id, text) | {"failed": failed}


def test_the_newest_conversations_are_stored(call):
    stored = []
    for id in range(MAX_STORED + 5):
        stored, listed, delete, _ = call("store", snapshot(id), stored)
    assert [item["id"] for item in stored] == list(range(MAX_STORED + 4, 4, -1))
    assert listed["value"] == stored[0]["id"]
    assert delete["interactive"]


def test_large_conversations_evict_old_ones(call):
    stored = []
    for id in (1, 2):
        stored = call("store", snapshot(id, HALF_OF_THE_ROOM), stored)[0]
    assert [item["id"] for item in stored] == [2]


def test_storing_again_replaces_the_old_one(call):
    stored = [conversation(2), conversation(1)]
    stored, *_, retry_timer = call("store", snapshot(1, "More", failed=True), stored)
    assert stored == [conversation(1, "More"), conversation(2)]
    assert retry_timer["active"]  # the page asks until the engine that failed is back
    assert call("remove", stored, 1)[0] == [conversation(2)]


def test_an_unanswered_message_is_given_back(call):
    history = [{"role": "user", "content": []}, {"role": "assistant", "content": []}]
    pending, sent, box = call("send", {"text": "Hello", "files": []}, history)
    assert (len(sent), box["value"]["text"]) == (3, "")
    assert call("takeBack", pending, sent)[0] == history
    assert call("takeBack", pending, sent)[1]["value"] == pending
    answered = [*sent, {"role": "assistant", "content": []}]
    assert call("takeBack", pending, answered)[0] == answered
    assert "value" not in call("takeBack", pending, answered)[1]


def test_failed_sign_out_is_shown(call):
    assert call("signOut")["value"] == "Sign-out failed. Try again."
