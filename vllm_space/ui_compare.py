"""The Compare tab: one prompt to several models, or to one model under several settings, side by side.

Each column is one event of its own: they stream at the same time, and one that fails leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vllm_space import conversation
from vllm_space.conversation import History
from vllm_space.streaming import Answer
from vllm_space.ui_controls import AT_ONCE, STREAM, Controls

COLUMNS = 4
SHOWN_AT_FIRST = 2


class CompareTab:
    def __init__(self, controls: Controls):
        self.controls = controls

    def tab(self) -> None:
        self.columns = []
        self.shown = gr.State(SHOWN_AT_FIRST)
        with gr.Row(equal_height=False):
            for number in range(1, COLUMNS + 1):
                with gr.Column(visible=number <= SHOWN_AT_FIRST, min_width=280) as column:
                    model = gr.Dropdown(label=f"Model {number}", choices=[], interactive=True)
                    with gr.Accordion("Settings of this column", open=False):
                        temperature = self.controls.control("temperature")
                        system_prompt = gr.Textbox(self.controls.config.system_prompt, label="System prompt", lines=2)
                    answer = gr.Chatbot(
                        label=f"Answer {number}", elem_classes="compared", show_label=False, buttons=["copy"],
                        placeholder="The answer appears here.", height=380,
                    )  # fmt: skip
                self.columns.append((column, model, temperature, system_prompt, answer))
        self.prompt = gr.Textbox(
            label="Prompt", show_label=False, placeholder="One prompt for all columns", submit_btn=True, max_lines=8
        )
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", elem_classes="stop-button", size="sm")
            self.more = gr.Button("Add a column", size="sm")

    @property
    def models(self) -> list[gr.Dropdown]:
        return [model for _, model, *_ in self.columns]

    def wire(self) -> None:
        running = []
        for number, (_, model, temperature, system_prompt, answer) in enumerate(self.columns):
            own = [self.prompt, self.shown, gr.State(number), model, temperature, system_prompt]
            running.append(self.prompt.submit(self.answer, [*own, *self.controls.sampling], answer, **STREAM))
        self.stop.click(None, cancels=running, **AT_ONCE)
        columns = [column for column, *_ in self.columns]
        self.more.click(self.add, self.shown, [self.shown, *columns, self.more], **AT_ONCE)

    def answer(
        self,
        prompt: str,
        shown: int,
        number: int,
        model: str | None,
        temperature: str,
        system_prompt: str,
        *values: Any,
    ) -> Iterator[History]:
        """The answer of one column to the prompt."""
        if number >= shown or not prompt.strip():
            return
        history = [conversation.message("user", prompt)]
        messages = conversation.to_messages(history, system_prompt)
        answer = Answer()
        for answer in self.controls.answer(messages, model, values, temperature=temperature):
            yield history + conversation.shown(answer)
        final = conversation.shown(answer, ended=True)
        yield history + [{**one, "options": None} for one in final]  # nothing is continued here

    def add(self, shown: int) -> tuple:
        shown = min(shown + 1, COLUMNS)
        return shown, *(gr.Column(visible=n < shown) for n in range(COLUMNS)), gr.Button(interactive=shown < COLUMNS)

    def offered(self, labels: list[str]) -> list[gr.Dropdown]:
        """The pickers, each on another model where there are as many."""
        return [
            gr.Dropdown(choices=labels, value=labels[min(n, len(labels) - 1)] if labels else None)
            for n in range(COLUMNS)
        ]
