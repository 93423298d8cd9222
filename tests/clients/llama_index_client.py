"""LlamaIndex."""

# packages: llama-index-llms-openai-like==0.8.1
# checks: chat stream tools wrong_key too_long
import os
import sys

from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))

# settings
model = OpenAILike(
    api_base=f"{URL}/v1",
    api_key=KEY,
    model=MODEL,
    is_chat_model=True,
    is_function_calling_model=True,
)
# end


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


def chat() -> None:
    print(model.complete(PROMPT))


def stream() -> None:
    for chunk in model.stream_complete(PROMPT):
        print(chunk.delta, end="")


def tools() -> None:
    print(model.predict_and_call([FunctionTool.from_defaults(weather)], PROMPT))


globals()[sys.argv[1]]()
