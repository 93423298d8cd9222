"""Anthropic's client for Python."""

# packages: anthropic==2.14.0
# checks: list chat stream tools wrong_key too_long
import os
import sys

from anthropic import Anthropic

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))

# settings
client = Anthropic(base_url=URL, api_key=KEY)
# end
REQUEST = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": PROMPT}]}
WEATHER = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def list() -> None:
    print(client.models.list().data[0].id)


def chat() -> None:
    print(client.messages.create(**REQUEST).content[0].text)


def stream() -> None:
    with client.messages.stream(**REQUEST) as answer:
        for text in answer.text_stream:
            print(text, end="")


def tools() -> None:
    print(client.messages.create(**REQUEST, tools=[WEATHER]).content[0])


globals()[sys.argv[1]]()
