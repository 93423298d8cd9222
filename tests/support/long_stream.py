"""Reads a long answer from /v1 in a thread."""

from __future__ import annotations

import json
import threading

import requests

from support.programs import KEY, MODEL


class LongStream(threading.Thread):
    """A streaming request that starts immediately.

    `text` is what has arrived so far. At the end either `complete` is true, or `error` is the API's
    message or the name of the connection's exception.
    """

    def __init__(self, url: str, question: str):
        super().__init__()
        self.url, self.question = url, question
        self.text, self.complete, self.error = "", False, ""
        self.start()

    def run(self) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": self.question}],
            "stream": True,
            "max_tokens": 1900,
            "ignore_eos": True,
        }
        url = f"{self.url}/v1/chat/completions"
        try:
            with requests.post(url, json=body, headers=KEY, stream=True, timeout=60) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    self.complete |= line == b"data: [DONE]"
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        self.error = event.get("error", {}).get("message", "")
                        for choice in event.get("choices", []):
                            self.text += choice["delta"].get("content") or ""
        except requests.RequestException as error:
            self.error = type(error).__name__
