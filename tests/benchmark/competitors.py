"""The pages we compare with, each written the way its author would write it.

    python tests/benchmark/competitors.py NAME URL PORT

load_chat      Gradio's one-liner for an OpenAI-compatible server
generate_page  vLLM's small Gradio example, streaming with requests
interface      gr.ChatInterface with the async openai client, as in most tutorials

Each imports its client library itself, so that the memory of one page holds nothing of another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator

import gradio as gr

MODEL = "benchmark"


def load_chat(url: str) -> gr.Blocks:
    return gr.load_chat(f"{url}/v1", model=MODEL, token="none")


def generate_page(url: str) -> gr.Blocks:
    import requests

    url = f"{url}/v1/chat/completions"

    def answer(message: str, history: list) -> Iterator[str]:
        body = {"model": MODEL, "messages": messages(history, message), "stream": True}
        text = ""
        with requests.post(url, json=body, stream=True, timeout=300) as response:
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
        text = ""
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages(history, message), stream=True
        )
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                yield text

    return gr.ChatInterface(answer)


def messages(history: list, message: str) -> list[dict]:
    """The conversation in OpenAI's form: text only, without Gradio's metadata."""
    turns = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in history]
    return [*turns, {"role": "user", "content": message}]


if __name__ == "__main__":
    name, url, port = sys.argv[1:]
    demo = globals()[name](url)
    demo.queue(default_concurrency_limit=1000)
    demo.launch(server_port=int(port), ssr_mode=False, max_threads=400, quiet=True)
