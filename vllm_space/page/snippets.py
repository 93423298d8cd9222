"""Programs that use this Space, ready to copy. They read the API key from the variable API_KEY.

Knows nothing of the page; a test runs every program.
"""

from __future__ import annotations

from string import Template
from typing import Literal

QUESTION = "What is this Space?"

OPENAI_PYTHON = Template("""# pip install openai
import os

from openai import OpenAI

client = OpenAI(base_url="$url/v1", api_key=os.environ["API_KEY"])
stream = client.chat.completions.create(
    model="$model",
    messages=[{"role": "user", "content": "$question"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
""")

OPENAI_JAVASCRIPT = Template("""// npm install openai
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "$url/v1", apiKey: process.env.API_KEY });
const stream = await client.chat.completions.create({
  model: "$model",
  messages: [{ role: "user", content: "$question" }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
console.log();
""")

CURL = Template("""curl -sN $url/v1/chat/completions \\
  -H "Authorization: Bearer $$API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "$model", "messages": [{"role": "user", "content": "$question"}]}'
""")

GRADIO_CLIENT = Template("""# pip install gradio_client
from gradio_client import Client

client = Client("$url"$login)
print(client.predict("$question", api_name="/chat"))
""")

MCP = Template("""# pip install mcp
import asyncio

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main():
    async with (
        streamablehttp_client("$url/gradio_api/mcp/") as (reader, writer, _),
        ClientSession(reader, writer) as session,
    ):
        await session.initialize()
        tools = await session.list_tools()
        name = next(tool.name for tool in tools.tools if tool.name.endswith("chat"))
        result = await session.call_tool(name, {"message": "$question"})
        print(result.content[0].text)


asyncio.run(main())
""")

Language = Literal["python", "javascript", "shell"]  # for syntax highlighting

ALL: dict[str, tuple[Language, Template]] = {
    "Python": ("python", OPENAI_PYTHON),
    "JavaScript": ("javascript", OPENAI_JAVASCRIPT),
    "curl": ("shell", CURL),
    "gradio_client": ("python", GRADIO_CLIENT),
    "MCP": ("python", MCP),
}


def write(url: str, model: str, sign_in: bool = False) -> dict[str, str]:
    """Title -> program, for the Space at `url` (without a trailing slash) and one of its models.

    `sign_in` says whether the page requires sign-in, for which gradio_client needs a password.
    """
    values = {
        "url": url,
        "model": model,
        "question": QUESTION,
        "login": ', auth=("name", "password")' if sign_in else "",
    }
    return {title: program.substitute(values) for title, (_, program) in ALL.items()}
