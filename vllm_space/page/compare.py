"""The Compare tab: one prompt to several models, or to one model under several settings, side by side.

All columns are one event: the browser would send several one after the other. One that fails leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vllm_space import errors
from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.controls import Controls
from vllm_space.page.conversation import History
from vllm_space.page.events import STREAM, UNQUEUED, handler
from vllm_space.streaming import Answer

COLUMNS = 4
SHOWN_AT_FIRST = 2


class CompareTab:
    def __init__(self, controls: Controls):
        self.controls = controls

    def tab(self) -> None:
        self.columns = []
        self.shown = gr.Number(SHOWN_AT_FIRST, precision=0, visible="hidden", label="Columns")
        with gr.Row(equal_height=False):
            for number in range(1, COLUMNS + 1):
                with gr.Column(visible=number <= SHOWN_AT_FIRST, min_width=280) as column:
                    model = gr.Dropdown(label=f"Model {number}", choices=[], interactive=True)
                    with gr.Accordion("Settings of this column", open=False):
                        temperature = self.controls.control("temperature")
                        system_prompt = gr.Textbox(
                            self.controls.config.system_prompt or None,
                            label="System prompt",
                            lines=2,
                        )
                    answer = gr.Chatbot(
                        label=f"Answer {number}",
                        elem_classes="compared",
                        show_label=False,
                        buttons=["copy"],
                        placeholder="The answer appears here.",
                        height=380,
                    )
                self.columns.append((column, model, temperature, system_prompt, answer))
        self.prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            placeholder="One prompt for all columns",
            submit_btn="Compare",
            max_lines=8,
        )
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", elem_classes="stop-button", size="sm")
            self.more = gr.Button("Add a column", size="sm")

    @property
    def models(self) -> list[gr.Dropdown]:
        return [model for _, model, *_ in self.columns]

    def wire(self) -> None:
        # For each column its model, its temperature and its system prompt.
        own = [
            one
            for _, model, temperature, system_prompt, _ in self.columns
            for one in (model, temperature, system_prompt)
        ]
        answers = [answer for *_, answer in self.columns]
        inputs = [self.prompt, self.shown, *own, *self.controls.sampling]
        running = self.prompt.submit(self.answer, inputs, answers, **STREAM)
        self.stop.click(None, cancels=[running], **UNQUEUED)
        columns = [column for column, *_ in self.columns]
        self.more.click(self.add, self.shown, [self.shown, *columns, self.more], **UNQUEUED)

    @handler
    def answer(
        self, request: gr.Request, prompt: str, shown: int, *values: Any
    ) -> Iterator[list[History]]:
        """The answers of all columns to the prompt, as they grow."""
        if not prompt.strip():
            raise errors.Rejected("Type a prompt first.")
        history = [conversation.message("user", prompt)]
        shown = max(1, min(shown, COLUMNS))
        *columns, common = self._by_column(shown, values)
        requests = [
            Request(
                conversation.to_messages(history),
                model or offered,  # asked before the page has heard which models there are
                self.controls.sampling_of(common) | {"temperature": temperature},
                system_prompt or "",
            )
            for (model, temperature, system_prompt), offered in zip(
                columns, self.each(self._labels()), strict=False
            )
        ]
        for answers in self.controls.generation.answers(requests, self.controls.visitor(request)):
            conversations = [history + self._shown(answer) for answer in answers]
            yield conversations + [[] for _ in range(COLUMNS - shown)]

    @staticmethod
    def _by_column(shown: int, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The values of each column that is shown (model, temperature, system prompt); last, the common ones."""
        return [
            *(values[3 * number : 3 * number + 3] for number in range(shown)),
            values[3 * COLUMNS :],
        ]

    def _labels(self) -> list[str]:
        return [model.label for model in self.controls.catalog.models()]

    @staticmethod
    def _shown(answer: Answer) -> History:
        # Nothing is continued here.
        return [{**one, "options": None} for one in conversation.shown(answer, answer.ended)]

    @handler
    def add(self, shown: int) -> tuple[Any, ...]:
        shown = min(shown + 1, COLUMNS)
        return (
            shown,
            *(gr.Column(visible=n < shown) for n in range(COLUMNS)),
            gr.Button(interactive=shown < COLUMNS),
        )

    def each(self, labels: list[str]) -> list[str | None]:
        """A model for each column, another one where there are as many."""
        return [labels[min(n, len(labels) - 1)] if labels else None for n in range(COLUMNS)]

    def offered(self, labels: list[str]) -> list[gr.Dropdown]:
        """The pickers."""
        return [gr.Dropdown(choices=labels, value=label) for label in self.each(labels)]
