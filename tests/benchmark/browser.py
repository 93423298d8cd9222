"""What the browser does with a Gradio page, without the browser: one visitor, from Enter to the last token.

Reads the page's own /config and follows the whole chain of events that Enter begins: those that bypass the queue as
plain calls, the others over the queue, with the updates applied as the page applies them. Any Gradio page will do.
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
class Seen:
    """What one visitor saw. Times in seconds since Enter."""

    updates: list[float] = field(default_factory=list)  # when the answer grew
    text: str = ""
    done: float = 0.0


class Visitor:
    """One tab on the page at `url`. `config` is what the page's /config says."""

    def __init__(self, http: aiohttp.ClientSession, url: str, config: dict[str, Any]):
        self.http = http
        self.url = url
        self.session_hash = secrets.token_hex(5)
        self.types = {component["id"]: component["type"] for component in config["components"]}
        self.values = {
            component["id"]: component["props"].get("value") for component in config["components"]
        }
        self.dependencies = config["dependencies"]
        self.enter = next(
            one
            for one in self.dependencies
            for target, event in one["targets"]
            if event == "submit" and self.types[target] in ("textbox", "multimodaltextbox")
        )
        self.textbox = next(target for target, event in self.enter["targets"] if event == "submit")
        self.chatbot = next(id for id, kind in self.types.items() if kind == "chatbot")
        self.labels = {
            component["props"].get("label"): component["id"] for component in config["components"]
        }
        self.running: dict[str, Any] | None = None  # what the page is asked to cancel by Stop

    async def arrive(self) -> None:
        """Load the page: the events that it runs before anything is typed."""
        self.seen = Seen()
        self.began = time.perf_counter()
        for one in self.dependencies:
            if any(event == "load" for _, event in one["targets"]):
                await self._run(one)

    async def ask(self, message: str) -> Seen:
        """Type a message, press Enter, and watch until the chain of events has ended."""
        self.seen = Seen()
        multimodal = self.types[self.textbox] == "multimodaltextbox"
        self.values[self.textbox] = {"text": message, "files": []} if multimodal else message
        self.began = time.perf_counter()
        await self._run(self.enter)
        return self.seen

    async def stop(self) -> None:
        """Press Stop."""
        stops = [
            one
            for one in self.dependencies
            if [self.textbox, "stop"] in [list(it) for it in one["targets"]]
        ]
        if self.running and any(self.running["fn_index"] in one["cancels"] for one in stops):
            async with self.http.post(f"{self.url}{API}/cancel", json=self.running) as answer:
                answer.raise_for_status()

    async def _run(self, dependency: dict[str, Any]) -> None:
        if dependency["backend_fn"]:
            await self._call(dependency)
        else:  # JavaScript of the page's own, which at most hands values on
            for source, target in zip(dependency["inputs"], dependency["outputs"], strict=False):
                self.values[target] = self.values[source]
        for one in self.dependencies:
            if one.get("trigger_after") == dependency["id"] and not one.get(
                "trigger_only_on_failure"
            ):
                await self._run(one)

    async def _call(self, dependency: dict[str, Any]) -> None:
        inputs = [
            None if self.types[id] == "state" else self.values[id] for id in dependency["inputs"]
        ]
        body = {
            "data": inputs,
            "fn_index": dependency["id"],
            "session_hash": self.session_hash,
            "trigger_id": self.textbox,
            "event_data": None,
        }
        if dependency["queue"] is False:
            async with self.http.post(f"{self.url}{API}/run/predict", json=body) as answer:
                answer.raise_for_status()
                self._show(dependency, (await answer.json())["data"])
        else:
            await self._queued(dependency, body)

    async def _queued(self, dependency: dict[str, Any], body: dict[str, Any]) -> None:
        async with self.http.post(f"{self.url}{API}/queue/join", json=body) as answer:
            answer.raise_for_status()
            event = (await answer.json())["event_id"]
        state: list[Any] | None = None
        async with self.http.get(
            f"{self.url}{API}/queue/data", params={"session_hash": self.session_hash}
        ) as events:
            self.running = {
                "session_hash": self.session_hash,
                "fn_index": dependency["id"],
                "event_id": event,
            }
            async for line in events.content:
                if not line.startswith(b"data: "):
                    continue
                message = json.loads(line[6:])
                if message["msg"] in ("process_generating", "process_completed"):
                    data = message["output"].get("data")
                    if not message["success"]:
                        raise RuntimeError(str(message["output"]))
                    if message["msg"] == "process_completed" and state is not None:
                        data = None  # the browser has it all from the updates
                    if data is not None:
                        state = (
                            data
                            if state is None
                            else [_patched(old, new) for old, new in zip(state, data, strict=True)]
                        )
                        self._show(dependency, state)
                if message["msg"] == "close_stream":
                    break

    def _show(self, dependency: dict[str, Any], data: list[Any]) -> None:
        for id, value in zip(dependency["outputs"], data, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            self.values[id] = value
        text = self._answer()
        if len(text) > len(self.seen.text):
            now = time.perf_counter() - self.began
            self.seen.updates.append(now)
            self.seen.done = now
            self.seen.text = text

    def _answer(self) -> str:
        """The text of the last answer on the page."""
        for turn in reversed(self.values.get(self.chatbot) or []):
            if turn["role"] == "assistant" and not (turn.get("metadata") or {}).get("title"):
                return turn["content"][0].get("text", "")  # what follows are the numbers beneath it
            if turn["role"] == "user":
                break
        return ""


def _patched(old: Any, edits: list[list[Any]]) -> Any:
    """One output after an update: Gradio's edits [action, path, value], in place."""
    for action, path, value in edits:
        if not path:
            old = old + value if action == "append" else value
            continue
        target = old
        for step in path[:-1]:
            target = target[step]
        last = path[-1]
        if action == "replace":
            target[last] = value
        elif action == "append":
            target[last] += value
        elif action == "add":
            target.insert(int(last), value) if isinstance(target, list) else target.__setitem__(
                last, value
            )
        elif action == "delete":
            del target[last]
    return old
