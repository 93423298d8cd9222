"""The Completion tab: the model continues a text in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.controls import Controls
from vllm_space.page.events import STREAM, UNQUEUED, handler
from vllm_space.page.javascript import call
from vllm_space.streaming import Answer


class CompletionTab:
    def __init__(self, controls: Controls):
        self.controls = controls

    def tab(self) -> None:
        self.text = gr.Textbox(
            elem_id="text",
            label="Text",
            info="The model continues this text in place.",
            lines=18,
            max_lines=18,
            buttons=["copy"],
        )
        self.before = gr.Textbox(visible="hidden", label="Before the last completion")  # for Undo
        with gr.Row():
            self.complete = gr.Button("Complete", variant="primary")
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, elem_classes="stop-button"
            )
            self.undo = gr.Button("Undo", interactive=False)
        self.numbers = gr.Markdown(elem_classes="numbers")

    def wire(self) -> None:
        buttons = [self.complete, self.stop, self.undo]
        self.complete.click(None, None, buttons, js=call("completing"), **UNQUEUED)
        running = self.complete.click(
            self.go_on,
            [self.text, self.controls.model, *self.controls.sampling],
            [self.text, self.before, self.numbers],
            **STREAM,
        )
        for ended in (running.then, running.failure):
            ended(None, None, buttons, js=call("completed"), **UNQUEUED)
        self.stop.click(None, cancels=[running])
        self.undo.click(self.take_back, self.before, [self.text, self.undo], **UNQUEUED)

    @handler
    def go_on(
        self, request: gr.Request, text: str, model: str | None, *values: Any
    ) -> Iterator[tuple[str, str, str]]:
        """Continue a text in place."""
        answer = Answer()
        asked = Request(text, model, self.controls.sampling_of(values))
        for answer in self.controls.generation.answer(asked, self.controls.visitor(request)):
            yield text + answer.text, text, ""
        note = f"⚠️ {answer.error}" if answer.error else conversation.numbers(answer)
        if answer.finish_reason == "length":
            note += " · stopped at max tokens"
        yield text + answer.text, text, note

    @handler
    def take_back(self, before: str) -> tuple[str, gr.Button]:
        return before, gr.Button(interactive=False)
