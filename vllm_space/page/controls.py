"""What the tabs share: the selected model, the system prompt and the sampling parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from vllm_space import sampling
from vllm_space.auth import SignIn
from vllm_space.generation import Generation
from vllm_space.page.events import http
from vllm_space.settings import Settings
from vllm_space.storage import Storage

# Label and explanation of each sampling parameter, in the visitor's words.
TEXTS = {
    "max_tokens": ("Max tokens", "Maximum length of the answer"),
    "temperature": ("Temperature", "0 always gives the same answer; higher values vary more"),
    "top_p": ("Top-p", "Sample from the most likely tokens that together have this probability"),
    "top_k": ("Top-k", "Sample from this many of the most likely tokens"),
    "min_p": ("Min-p", "Drop tokens less likely than this, relative to the most likely one"),
    "repetition_penalty": ("Repetition penalty", "Above 1 discourages repetition"),
    "presence_penalty": ("Presence penalty", "Above 0 discourages tokens already used"),
    "frequency_penalty": (
        "Frequency penalty",
        "Above 0 discourages tokens the more often they occur",
    ),
    "seed": ("Seed", "Set a seed for reproducible answers"),
    "stop": ("Stop sequences", "The answer ends before any of these; one per line"),
}
VISIBLE = 3  # sampling parameters that are always visible; the others are under "More"
RETRY_EVERY = 3  # seconds between two attempts to reach an engine that does not answer

ModelCallback = Callable[[str | None], Any]  # label of the selected model -> value of a component


class Controls:
    """The controls next to the tabs, and what a tab needs to answer a visitor."""

    def __init__(self, config: Settings, generation: Generation, sign_in: SignIn, storage: Storage):
        self.config = config
        self.generation = generation
        self.catalog = generation.catalog
        self.sign_in = sign_in
        self.storage = storage
        self.model_pickers: list[gr.Dropdown] = []
        self.on_model: list[tuple[gr.blocks.Block, ModelCallback]] = []
        self.on_load: list[tuple[gr.blocks.Block, ModelCallback]] = []

    # -- components --------------------------------------------------------------------------------

    def header(self) -> None:
        self.model = gr.Dropdown(label="Model", choices=[], visible=False, interactive=True)
        # Runs while something is wrong, so that the page recovers without a reload.
        self.retry_timer = gr.Timer(RETRY_EVERY, active=False)

    def column(self) -> None:
        self.system_prompt = gr.Textbox(
            self.config.system_prompt,
            label="System prompt",
            info="Instructions for the model",
            lines=2,
        )
        self.sampling = [self.sampling_box(name) for name in sampling.NAMES[:VISIBLE]]
        with gr.Accordion("More", open=False):
            self.sampling += [self.sampling_box(name) for name in sampling.NAMES[VISIBLE:]]

    def sampling_box(self, name: str) -> gr.Textbox:
        """A box for one sampling parameter; left empty, the model's own default applies."""
        # gradio 6.31: a text box, since gr.Number shows an initial None as 0 (gradio#6728). Its
        # initial value is None, not "", since the value is set once more a frame after its
        # accordion is opened, over whatever has been typed (gradio#12906).
        label, info = TEXTS[name]
        value = sampling.defaults(self.config)[name]
        return gr.Textbox(
            None if value is None else str(value),
            label=label,
            info=info,
            lines=2 if name == "stop" else 1,
            max_lines=4 if name == "stop" else 1,
            placeholder="none" if name == "stop" else "model default",
        )

    def model_picker(self, label: str) -> gr.Dropdown:
        """A further choice of model; the n-th of them starts with the n-th model."""
        self.model_pickers.append(gr.Dropdown(label=label, choices=[], interactive=True))
        return self.model_pickers[-1]

    # -- what depends on the models ----------------------------------------------------------------

    def update_on_model(self, component: gr.blocks.Block, value: ModelCallback) -> None:
        """Set `component` to `value(label)` when the page opens or another model is selected."""
        self.on_model.append((component, value))

    def update_on_load(self, component: gr.blocks.Block, value: ModelCallback) -> None:
        """Set `component` to `value(label)` when the page opens."""
        self.on_load.append((component, value))

    def labels(self) -> list[str]:
        """Labels of the models, as the pickers offer them."""
        return [model.label for model in self.catalog.chat_models()]

    def initial_label(self, picker: gr.Dropdown) -> str | None:
        """The model that one of `model_pickers` starts with; None if there is no model."""
        labels = self.labels()
        number = self.model_pickers.index(picker)
        return labels[min(number, len(labels) - 1)] if labels else None

    # -- what an event needs -----------------------------------------------------------------------

    def visitor(self, request: gr.Request) -> str:
        """Identifies who sent an event."""
        return self.sign_in.visitor(http(request))

    def sampling_parameters(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Sampling parameters by name, given the values of `self.sampling`."""
        return dict(zip(sampling.NAMES, values, strict=True))
