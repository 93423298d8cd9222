"""What the owner of a newly duplicated Space sees first: it needs a GPU, and how to add one."""

from __future__ import annotations

import gradio as gr

from vllm_space.hardware import Space
from vllm_space.page.sign_out import add_button
from vllm_space.settings import Settings

TEXT = """
# {title}

## One step left: this Space needs a GPU

{reason}

1. Open the **[settings of this Space]({settings_url})**.
2. Under *Space hardware*, pick a GPU. Even the smallest can run the default model; the
   **[price list](https://huggingface.co/pricing#spaces)** says what each one costs. *Sleep time*,
   in the same settings, pauses billing while nobody is using the Space.
3. Confirm. The Space restarts, and this page becomes the chat.

**Don't want a GPU?** Set the variable `MODEL_URL` to the address of a model server that runs
elsewhere (any OpenAI-compatible server) and, if it needs a key, the secret `MODEL_API_KEY`. This
Space then serves only the page, and free hardware is enough.
"""
NO_GPU = "The current hardware has no GPU, and vLLM needs one."
ZERO_GPU = "ZeroGPU lends a GPU for seconds at a time, but vLLM needs one for as long as it runs."


def build(config: Settings, space: Space) -> gr.Blocks:
    """The page of a Space that has no usable GPU."""
    text = TEXT.format(
        title=config.app_title,
        reason=ZERO_GPU if space.zero_gpu else NO_GPU,
        settings_url=space.settings_url,
    )
    demo = gr.Blocks(title=config.app_title, analytics_enabled=False)
    with demo:
        add_button(demo, config)
        gr.Markdown(text)
    return demo
