"""The Completion tab: the model continues a text in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.events import STREAM, UNQUEUED, handler
from vllm_space.page.javascript import call
from vllm_space.page.tab import Tab
from vllm_space.streaming import Answer


class CompletionTab(Tab):
    title = "Completion"

    def build(self) -> None:
        self.text = gr.Textbox(
            elem_id="text",
            label="Text",
            info="The model continues this text in place.",
            lines=18,
            max_lines=18,
            buttons=["copy"],
        )
        self.previous = gr.Textbox(visible="hidden", label="Text before the last completion")
        with gr.Row():
            self.complete = gr.Button("Complete", variant="primary")
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, elem_classes="stop-button"
            )
            self.undo = gr.Button("Undo", interactive=False)
        self.stats = gr.Markdown(elem_classes="stats")

    def wire(self, demo: gr.Blocks) -> None:
        buttons = [self.complete, self.stop, self.undo]
        self.complete.click(None, None, buttons, js=call("completing"), **UNQUEUED)
        running = self.complete.click(
            self.generate,
            [self.text, self.controls.model, *self.controls.sampling],
            [self.text, self.previous, self.stats],
            **STREAM,
        )
        for ended in (running.then, running.failure):
            ended(None, None, buttons, js=call("completed"), **UNQUEUED)
        self.stop.click(None, cancels=[running])
        self.undo.click(self.take_back, self.previous, [self.text, self.undo], **UNQUEUED)

    @handler
    def generate(
        self, request: gr.Request, text: str, model: str | None, *sampling: Any
    ) -> Iterator[tuple[str, str, str]]:
        """Yield the text as it grows, the text as it was, and the statistics at the end."""
        answer = Answer()
        generation = Request(text, model, self.controls.sampling_parameters(sampling))
        for answer in self.controls.generation.answer(generation, self.controls.visitor(request)):
            yield text + answer.text, text, ""
        note = f"⚠️ {answer.error}" if answer.error else conversation.stats(answer)
        if answer.finish_reason == "length":
            note += " · stopped at max tokens"
        yield text + answer.text, text, note

    @handler
    def take_back(self, previous: str) -> tuple[str, gr.Button]:
        return previous, gr.Button(interactive=False)
