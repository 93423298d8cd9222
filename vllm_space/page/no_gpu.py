"""What the owner of a fresh duplicate sees first: this Space has no GPU yet, and how to give it one."""

from __future__ import annotations

import gradio as gr

from vllm_space.hardware import Space
from vllm_space.settings import Settings

TEXT = """
## One step left: this Space needs a GPU

{kind}, and vLLM needs one for as long as it serves.

1. Open the **[settings of this Space]({settings})**.
2. Under *Space hardware* choose a GPU. The smallest fits the default model; the
   **[price list](https://huggingface.co/pricing#spaces)** says what each costs, and *Sleep time* in the same settings
   stops the cost when nobody comes.
3. Confirm. The Space restarts by itself, and this page becomes the chat.

**No GPU wanted?** Set the variable `MODEL_URL` to a model server that runs elsewhere (any OpenAI-compatible address),
and its key as the secret `MODEL_API_KEY`: then this Space is the page and runs on free hardware.
"""


def build(config: Settings, space: Space) -> gr.Blocks:
    """The page of a Space without a usable GPU."""
    kind = "ZeroGPU lends a GPU for seconds only" if space.zero_gpu else "This hardware has no GPU"
    demo = gr.Blocks(title=config.app_title, analytics_enabled=False)
    with demo:
        if config.oauth_allowed:
            gr.LoginButton()  # gradio 6.31: its sign-in routes exist only if a page has this button
        gr.Markdown(
            f"# {config.app_title}\n\n" + TEXT.format(kind=kind, settings=space.settings_url)
        )
    return demo
