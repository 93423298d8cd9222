"""The Compare tab: one prompt for several models, or for one model with several settings.

All columns are one event: the browser would send several events one after another. If one column
fails, the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vllm_space import errors
from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.conversation import History
from vllm_space.page.events import STREAM, UNQUEUED, handler
from vllm_space.page.tab import Tab
from vllm_space.streaming import Answer

COLUMNS = 4
VISIBLE_AT_FIRST = 2


@dataclass
class Column:
    """The components of one column."""

    container: gr.Column
    model: gr.Dropdown
    temperature: gr.Textbox
    system_prompt: gr.Textbox
    answer: gr.Chatbot


class CompareTab(Tab):
    title = "Compare"

    def build(self) -> None:
        self.visible = gr.Number(
            VISIBLE_AT_FIRST, precision=0, visible="hidden", label="Visible columns"
        )
        with gr.Row(equal_height=False):
            self.columns = [self.column(number) for number in range(1, COLUMNS + 1)]
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

    def column(self, number: int) -> Column:
        with gr.Column(visible=number <= VISIBLE_AT_FIRST, min_width=280) as container:
            model = self.controls.model_picker(f"Model {number}")
            with gr.Accordion("Column settings", open=False):
                temperature = self.controls.sampling_box("temperature")
                system_prompt = gr.Textbox(
                    self.config.system_prompt or None, label="System prompt", lines=2
                )
            answer = gr.Chatbot(
                label=f"Answer {number}",
                elem_classes="compared",
                show_label=False,
                buttons=["copy"],
                placeholder="The answer appears here.",
                height=380,
            )
        return Column(container, model, temperature, system_prompt, answer)

    def wire(self, demo: gr.Blocks) -> None:
        settings = [
            component
            for column in self.columns
            for component in (column.model, column.temperature, column.system_prompt)
        ]
        running = self.prompt.submit(
            self.compare,
            [self.prompt, self.visible, *settings, *self.controls.sampling],
            [column.answer for column in self.columns],
            **STREAM,
        )
        self.stop.click(None, cancels=[running], **UNQUEUED)
        containers = [column.container for column in self.columns]
        self.more.click(
            self.add_column, self.visible, [self.visible, *containers, self.more], **UNQUEUED
        )

    @handler
    def compare(
        self, request: gr.Request, prompt: str, visible: int, *values: Any
    ) -> Iterator[list[History]]:
        """Yield the conversations of all columns as their answers grow.

        `values` are the model, temperature and system prompt of each column, then the sampling
        parameters they share.
        """
        if not prompt.strip():
            raise errors.Rejected("Type a prompt first.")
        visible = max(1, min(visible, COLUMNS))
        history = [conversation.text_message("user", prompt)]
        messages = conversation.to_messages(history)
        sampling = self.controls.sampling_parameters(values[3 * COLUMNS :])
        requests = []
        for number, column in enumerate(self.columns[:visible]):
            model, temperature, system_prompt = values[3 * number : 3 * number + 3]
            # No model yet: Enter was pressed before the list of models arrived.
            model = model or self.controls.initial_label(column.model)
            parameters = sampling | {"temperature": temperature}
            requests.append(Request(messages, model, parameters, system_prompt or ""))
        for answers in self.controls.generation.answers(requests, self.controls.visitor(request)):
            conversations = [history + self.answer_messages(answer) for answer in answers]
            yield conversations + [[] for _ in range(COLUMNS - visible)]

    @staticmethod
    def answer_messages(answer: Answer) -> History:
        """An answer as the page shows it, without Continue."""
        messages = conversation.answer_messages(answer, answer.ended)
        return [message | {"options": None} for message in messages]

    @handler
    def add_column(self, visible: int) -> tuple[Any, ...]:
        visible = min(visible + 1, COLUMNS)
        return (
            visible,
            *(gr.Column(visible=number < visible) for number in range(COLUMNS)),
            gr.Button(interactive=visible < COLUMNS),
        )
