"""LangChain."""

# packages: langchain-openai==1.7.4 langchain-anthropic==1.7.10
# variants: openai anthropic
# checks: chat stream tools wrong_key too_long
import os
import sys

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))
check, provider = sys.argv[1:]

# settings
if provider == "openai":
    model = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL)
else:
    model = ChatAnthropic(base_url=URL, api_key=KEY, model=MODEL, max_tokens=200)
# end


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


def chat() -> None:
    print(model.invoke(PROMPT).content)


def stream() -> None:
    for chunk in model.stream(PROMPT):
        print(chunk.text, end="")


def tools() -> None:
    call = model.bind_tools([weather]).invoke(PROMPT).tool_calls[0]
    print(weather(**call["args"]))


globals()[check]()
