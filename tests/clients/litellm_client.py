"""LiteLLM."""

# packages: litellm==1.110.2
# variants: openai hosted_vllm anthropic
# checks: chat stream tools wrong_key too_long
import os
import sys

import litellm

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))
check, provider = sys.argv[1:]

# settings
server = {"model": f"{provider}/{MODEL}", "api_key": KEY}
server["api_base"] = URL if provider == "anthropic" else f"{URL}/v1"
# end
MESSAGES = [{"role": "user", "content": PROMPT}]
WEATHER = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def chat() -> None:
    print(litellm.completion(**server, messages=MESSAGES).choices[0].message.content)


def stream() -> None:
    for chunk in litellm.completion(**server, messages=MESSAGES, stream=True):
        print(chunk.choices[0].delta.content or "", end="")


def tools() -> None:
    weather = {"type": "function", "function": WEATHER}
    answer = litellm.completion(**server, messages=MESSAGES, tools=[weather])
    print(answer.choices[0].message.tool_calls[0].function)


globals()[check]()
