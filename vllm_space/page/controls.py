"""What all tabs share: the model picker, the system prompt and the sampling controls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vllm_space import sampling
from vllm_space.auth import SignIn
from vllm_space.generation import Generation
from vllm_space.page.events import http
from vllm_space.settings import Settings

# Labels and explanations of the sampling parameters, in the visitor's words.
CONTROLS = {
    "max_tokens": ("Max tokens", "Longest answer"),
    "temperature": ("Temperature", "0 is the same answer every time, higher is more varied"),
    "top_p": ("Top-p", "Sample from the likeliest tokens that make up this share"),
    "top_k": ("Top-k", "Sample from this many of the likeliest tokens"),
    "min_p": ("Min-p", "Leave out tokens less likely than this, relative to the likeliest"),
    "repetition_penalty": ("Repetition penalty", "Above 1 discourages repetition"),
    "presence_penalty": ("Presence penalty", "Above 0 discourages tokens that were used"),
    "frequency_penalty": (
        "Frequency penalty",
        "Above 0 discourages tokens the more they were used",
    ),
    "seed": ("Seed", "The same seed repeats the same sample"),
    "stop": ("Stop sequences", "The answer ends before any of these; one a line"),
}
ALWAYS_SHOWN = ("max_tokens", "temperature", "top_p")
ORDER = (*ALWAYS_SHOWN, *(name for name in sampling.NAMES if name not in ALWAYS_SHOWN))
LOOK_AGAIN = 3  # seconds between two looks at an engine that does not answer


class Controls:
    """The controls beside the tabs."""

    def __init__(self, config: Settings, generation: Generation, sign_in: SignIn):
        self.config = config
        self.generation = generation
        self.catalog = generation.catalog
        self.sign_in = sign_in

    def picker(self) -> None:
        self.model = gr.Dropdown(label="Model", choices=[], visible=False, interactive=True)
        # Runs while something is wrong: the page mends itself, without a reload.
        self.again = gr.Timer(LOOK_AGAIN, active=False)

    def column(self) -> None:
        self.system_prompt = gr.Textbox(
            self.config.system_prompt,
            label="System prompt",
            info="Instruction before the conversation",
            lines=2,
        )
        self.sampling = [self.control(name) for name in ALWAYS_SHOWN]
        with gr.Accordion("More", open=False):
            self.sampling += [self.control(name) for name in ORDER if name not in ALWAYS_SHOWN]

    def control(self, name: str) -> gr.Textbox:
        # Empty leaves a parameter to the model. gradio 6.31: text, since gr.Number shows an initial None as 0
        # (gradio#6728); None, not "", since a value is set once more a frame after its accordion was opened, over what
        # was typed (gradio#12906).
        label, info = CONTROLS[name]
        value = sampling.defaults(self.config)[name]
        return gr.Textbox(
            None if value is None else str(value),
            label=label,
            info=info,
            lines=2 if name == "stop" else 1,
            max_lines=4 if name == "stop" else 1,
            placeholder="none" if name == "stop" else "model default",
        )

    def visitor(self, request: gr.Request) -> str:
        """Who an event is from."""
        return self.sign_in.visitor(http(request))

    def sampling_of(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Sampling parameters by name, from the values of `self.sampling`."""
        return dict(zip(ORDER, values, strict=True))
