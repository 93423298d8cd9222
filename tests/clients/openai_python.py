"""OpenAI's client for Python."""

# packages: openai==3.57.0
# checks: list chat stream tools responses wrong_key too_long
import os
import sys

from openai import OpenAI

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))

# settings
client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
# end
MESSAGES = [{"role": "user", "content": PROMPT}]
WEATHER = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def list() -> None:
    print(client.models.list().data[0].id)


def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    print(answer.choices[0].message.content)


def stream() -> None:
    for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
        print(chunk.choices[0].delta.content or "", end="")


def tools() -> None:
    weather = {"type": "function", "function": WEATHER}
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[weather])
    print(answer.choices[0].message.tool_calls[0].function)


def responses() -> None:
    print(client.responses.create(model=MODEL, input=PROMPT).output_text)


globals()[sys.argv[1]]()
