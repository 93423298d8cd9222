"""A long answer through /v1, read in a thread of its own while other things happen."""

from __future__ import annotations

import json
import threading

import requests

from support.programs import KEY, MODEL


class LongStream(threading.Thread):
    """It begins at once. `text` is what has arrived, `whole` is whether it came to its end, and `error` is the one
    it ended with: the message of the API, or the kind of failure of the connection."""

    def __init__(self, url: str, question: str):
        super().__init__()
        self.url, self.question = url, question
        self.text, self.whole, self.error = "", False, ""
        self.start()

    def run(self) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": self.question}],
            "stream": True,
            "max_tokens": 1900,
            "ignore_eos": True,  # long enough to be cut off
        }
        url = f"{self.url}/v1/chat/completions"
        try:
            with requests.post(url, json=body, headers=KEY, stream=True, timeout=60) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    self.whole |= line == b"data: [DONE]"
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        self.error = event.get("error", {}).get("message", "")
                        self.text += "".join(
                            one["delta"].get("content") or "" for one in event.get("choices", [])
                        )
        except requests.RequestException as error:
            self.error = type(error).__name__
