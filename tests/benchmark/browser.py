"""A tab on a Gradio page, without the browser: from Enter to the last token.

A Visitor reads the page's /config and follows the chain of events that Enter starts. Events that
bypass the queue are plain calls; the others go through the queue, and their updates are applied
the way Gradio's frontend applies them. It works with any Gradio chat page.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

API = "/gradio_api"


@dataclass
class Answer:
    """An answer as it appeared on the page. Times are in seconds since Enter."""

    updates: list[float] = field(default_factory=list)  # each time the text grew
    text: str = ""
    done: float = 0.0


class Visitor:
    """One tab on the page at `url`. `config` is the page's /config; the tab changes it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, config: dict[str, Any]):
        self.http = http
        self.url = url
        self.session_hash = secrets.token_hex(5)
        components = config["components"]
        self.types = {component["id"]: component["type"] for component in components}
        self.values = {component["id"]: component["props"].get("value") for component in components}
        self.labels = {component["props"].get("label"): component["id"] for component in components}
        self.dependencies = config["dependencies"]
        self.enter = next(
            dependency
            for dependency in self.dependencies
            for target, event in dependency["targets"]
            if event == "submit" and self.types[target] in ("textbox", "multimodaltextbox")
        )
        self.textbox = next(target for target, event in self.enter["targets"] if event == "submit")
        self.chatbot = next(id for id, kind in self.types.items() if kind == "chatbot")
        self.running: dict[str, Any] | None = None  # the queued event that Stop cancels

    async def arrive(self) -> None:
        """Open the page: run its load events."""
        self._start_clock()
        for dependency in self.dependencies:
            if any(event == "load" for _, event in dependency["targets"]):
                await self._run(dependency)

    async def ask(self, message: str) -> Answer:
        """Type a message, press Enter, and wait until the chain of events has ended."""
        multimodal = self.types[self.textbox] == "multimodaltextbox"
        self.values[self.textbox] = {"text": message, "files": []} if multimodal else message
        self._start_clock()
        await self._run(self.enter)
        return self.answer

    async def stop(self) -> None:
        """Press Stop."""
        cancelled = {
            index
            for dependency in self.dependencies
            if [self.textbox, "stop"] in map(list, dependency["targets"])
            for index in dependency["cancels"]
        }
        if self.running and self.running["fn_index"] in cancelled:
            async with self.http.post(f"{self.url}{API}/cancel", json=self.running) as response:
                response.raise_for_status()

    def _start_clock(self) -> None:
        self.answer = Answer()
        self.began = time.perf_counter()

    async def _run(self, dependency: dict[str, Any]) -> None:
        if dependency["backend_fn"]:
            await self._call(dependency)
        elif dependency is self.enter:
            self._send()
        for following in self.dependencies:
            if following.get("trigger_after") != dependency["id"]:
                continue
            if not following.get("trigger_only_on_failure"):
                await self._run(following)

    def _send(self) -> None:
        """Do what `send` in our page.js does. Nothing else there changes what the server gets."""
        message = self.values[self.textbox]
        sent, chatbot, _ = self.enter["outputs"]
        text = {"type": "text", "text": message["text"]}
        question = {"role": "user", "content": [text], "metadata": None, "options": None}
        self.values[sent] = message
        self.values[chatbot] = [*(self.values[chatbot] or []), question]

    async def _call(self, dependency: dict[str, Any]) -> None:
        inputs = dependency["inputs"]
        body = {
            "data": [None if self.types[id] == "state" else self.values[id] for id in inputs],
            "fn_index": dependency["id"],
            "session_hash": self.session_hash,
            "trigger_id": self.textbox,
            "event_data": None,
        }
        if dependency["queue"] is False:
            async with self.http.post(f"{self.url}{API}/run/predict", json=body) as response:
                response.raise_for_status()
                self._show(dependency, (await response.json())["data"])
        else:
            await self._call_through_queue(dependency, body)

    async def _call_through_queue(self, dependency: dict[str, Any], body: dict[str, Any]) -> None:
        session = {"session_hash": self.session_hash}
        async with self.http.post(f"{self.url}{API}/queue/join", json=body) as response:
            response.raise_for_status()
            event_id = (await response.json())["event_id"]
        outputs: list[Any] | None = None
        async with self.http.get(f"{self.url}{API}/queue/data", params=session) as events:
            self.running = session | {"fn_index": dependency["id"], "event_id": event_id}
            async for line in events.content:
                if not line.startswith(b"data: "):
                    continue
                message = json.loads(line[6:])
                if message["msg"] in ("process_generating", "process_completed"):
                    data = message["output"].get("data")
                    if not message["success"]:
                        raise RuntimeError(str(message["output"]))
                    if message["msg"] == "process_completed" and outputs is not None:
                        data = None  # repeats what the updates already delivered
                    if data is not None:
                        if outputs is None:
                            outputs = data
                        else:
                            pairs = zip(outputs, data, strict=True)
                            outputs = [_apply(edits, value) for value, edits in pairs]
                        self._show(dependency, outputs)
                if message["msg"] == "close_stream":
                    break

    def _show(self, dependency: dict[str, Any], data: list[Any]) -> None:
        for id, value in zip(dependency["outputs"], data, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            self.values[id] = value
        text = self._last_answer()
        if len(text) > len(self.answer.text):
            self.answer.done = time.perf_counter() - self.began
            self.answer.updates.append(self.answer.done)
            self.answer.text = text

    def _last_answer(self) -> str:
        """The text of the last answer in the chatbot."""
        for turn in reversed(self.values.get(self.chatbot) or []):
            if turn["role"] == "assistant" and not (turn.get("metadata") or {}).get("title"):
                return turn["content"][0].get("text", "")  # our page shows figures after the text
            if turn["role"] == "user":
                break
        return ""


def _apply(edits: list[list[Any]], output: Any) -> Any:
    """Apply one of Gradio's diffs, a list of [action, path, value], in place where it can."""
    for action, path, value in edits:
        if not path:
            output = output + value if action == "append" else value
            continue
        parent = output
        for step in path[:-1]:
            parent = parent[step]
        last = path[-1]
        if action == "append":
            parent[last] += value
        elif action == "add" and isinstance(parent, list):
            parent.insert(int(last), value)
        elif action in ("add", "replace"):
            parent[last] = value
        elif action == "delete":
            del parent[last]
    return output
