"""The pages to compare with, each as its author would write it: `python tests/benchmark/competitors.py NAME URL PORT`.

load_chat      Gradio's one-liner for an OpenAI-compatible server
generate_page  vLLM's small Gradio example: a text box over the completed text, streamed with requests
interface      gr.ChatInterface with the async openai client, the usual tutorial
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator

import gradio as gr

MODEL = "benchmark"


def load_chat(url: str) -> gr.Blocks:
    return gr.load_chat(f"{url}/v1", model=MODEL, token="none")


def generate_page(url: str) -> gr.Blocks:
    import json

    import requests

    def answer(message: str, history: list) -> Iterator[str]:
        body = {
            "model": MODEL,
            "messages": [*_plain(history), {"role": "user", "content": message}],
            "stream": True,
        }
        text = ""
        with requests.post(
            f"{url}/v1/chat/completions", json=body, stream=True, timeout=300
        ) as response:
            for line in response.iter_lines(chunk_size=8192, delimiter=b"\n\n"):
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content") or ""
                        yield text

    return gr.ChatInterface(answer)


def interface(url: str) -> gr.Blocks:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")

    async def answer(message: str, history: list) -> AsyncIterator[str]:
        messages = [*_plain(history), {"role": "user", "content": message}]
        text = ""
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        async for event in stream:
            if event.choices:
                text += event.choices[0].delta.content or ""
                yield text

    return gr.ChatInterface(answer)


def _plain(history: list) -> list[dict]:
    return [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in history]


if __name__ == "__main__":
    name, url, port = sys.argv[1:]
    demo = globals()[name](url)
    demo.queue(default_concurrency_limit=1000)
    demo.launch(server_port=int(port), ssr_mode=False, max_threads=400, quiet=True)
