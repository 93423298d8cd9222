"""Pydantic AI."""

# packages: pydantic-ai-slim[openai,anthropic]==2.68.0
# variants: openai anthropic
# checks: chat stream tools wrong_key too_long
import os
import sys

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))
check, provider = sys.argv[1:]

# settings
if provider == "openai":
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
else:
    model = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY))
# end


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


def chat() -> None:
    print(Agent(model).run_sync(PROMPT).output)


def stream() -> None:
    for text in Agent(model).run_stream_sync(PROMPT).stream_text(delta=True):
        print(text, end="")


def tools() -> None:
    print(Agent(model, tools=[weather]).run_sync(PROMPT).output)


globals()[check]()
