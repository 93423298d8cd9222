"""The Chat tab, and the sidebar with the conversations that the visitor's browser keeps."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from vllm_space import conversation, errors
from vllm_space.conversation import History
from vllm_space.streaming import Answer
from vllm_space.ui_controls import AT_ONCE, STREAM, Controls

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
TEXT_FILES = [
    ".txt", ".md", ".csv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".log", ".html", ".css",
    ".py", ".js", ".ts", ".sh", ".c", ".h", ".cpp", ".java", ".go", ".rs", ".sql", ".tex",
]  # fmt: skip
IMAGE_FILES = [".png", ".jpg", ".jpeg", ".webp", ".gif"]

CLICK_DOWNLOAD = "() => document.querySelector('#download').click()"


class ChatTab:
    def __init__(self, controls: Controls):
        self.controls = controls

    # -- what is on it -------------------------------------------------------------------------------------

    def sidebar(self) -> None:
        # The browser keeps them under a key of its own; the fixed secret lets a restarted Space read them again.
        self.kept = gr.BrowserState([], storage_key="vllm-space-conversations", secret="not-secret")
        with gr.Sidebar(width=270, elem_id="sidebar"):
            self.new = gr.Button("New chat", variant="primary")
            self.conversations = gr.Radio(
                [], label="Conversations", info="Kept in this browser only", elem_id="conversations", visible=False
            )
            self.delete = gr.Button("Delete this conversation", size="sm", interactive=False)
            with gr.Accordion("Export and import", open=False):
                self.as_markdown = gr.Button("Export as Markdown", size="sm")
                self.as_json = gr.Button("Export as JSON", size="sm")
                self.upload = gr.UploadButton("Import JSON", file_types=[".json"], size="sm")
            self.download = gr.DownloadButton("Download", elem_id="download", visible="hidden")

    def tab(self) -> None:
        self.chatbot = gr.Chatbot(
            elem_id="chatbot",
            label="Conversation",
            show_label=False,
            editable="user",
            buttons=["copy", "copy_all"],
            latex_delimiters=LATEX,
            placeholder="Ask something.",
            layout="bubble",
        )
        self.message = gr.MultimodalTextbox(
            elem_id="message",
            label="Your message",
            show_label=False,
            placeholder="Type a message and press Enter",
            file_types=TEXT_FILES,
            file_count="multiple",
            max_lines=12,
            autofocus=True,
            interactive=True,
        )

    # -- what happens ----------------------------------------------------------------------------------------

    def wire(self) -> None:
        inputs = [self.controls.system_prompt, self.controls.model, *self.controls.sampling]
        outputs = [self.chatbot, self.message]
        running = [
            self.message.submit(self.submit, [self.message, self.chatbot, *inputs], outputs, **STREAM),
            self.chatbot.retry(self.retry, [self.chatbot, *inputs], outputs, **STREAM),
            self.chatbot.edit(self.edit, [self.chatbot, *inputs], outputs, **STREAM),
            self.chatbot.example_select(self.example, inputs, outputs, **STREAM),
            self.chatbot.option_select(self.go_on, [self.chatbot, *inputs], outputs, **STREAM),
        ]
        # Saved when the answer is there, so that nothing stands before its first token.
        place = [self.kept, self.conversations]
        keeping = [self.chatbot, self.controls.system_prompt, *place], [*place, self.delete, self.controls.again]
        for event in running:
            event.then(self.keep, *keeping, **AT_ONCE)
        stop = self.message.stop(self.ready_to_send, None, self.message, cancels=running, **AT_ONCE)
        stop.then(self.keep, *keeping, **AT_ONCE)
        undo = self.chatbot.undo(self.undo_turn, self.chatbot, outputs, **AT_ONCE)
        undo.then(self.keep, *keeping, **AT_ONCE)

        page = [self.chatbot, self.message, self.conversations, self.delete]
        gr.on([self.new.click, self.chatbot.clear], self.start_anew, None, page, cancels=running, **AT_ONCE)
        self.conversations.input(
            self.open, place, [self.chatbot, self.message, self.delete, self.controls.system_prompt],
            cancels=running, **AT_ONCE,
        )  # fmt: skip
        self.delete.click(self.forget, place, [self.kept, *page], cancels=running, **AT_ONCE)
        whole = [self.chatbot, self.controls.system_prompt]
        for button, write in ((self.as_markdown, self.write_markdown), (self.as_json, self.write_json)):
            button.click(write, whole, self.download, **AT_ONCE).success(None, js=CLICK_DOWNLOAD)
        self.upload.upload(self.import_file, self.upload, [*whole, self.conversations], cancels=running, **AT_ONCE
        ).success(self.keep, *keeping, **AT_ONCE)  # fmt: skip

    def submit(self, value: dict[str, Any], history: History, *controls: Any) -> Iterator[tuple]:
        """Answer what was typed and attached."""
        if not value["text"].strip() and not value["files"]:
            yield gr.skip(), gr.skip()
            return
        try:
            said = conversation.question(value["text"], value["files"], self.takes_images(controls[1]))
        except errors.Refused as error:
            gr.Warning(str(error))
            yield gr.skip(), gr.skip()
            return
        yield from self.send(said, history, *controls)

    def send(self, said: dict[str, Any], history: History, *controls: Any) -> Iterator[tuple]:
        """Answer a message: the conversation grows while the answer arrives."""
        history = [*history, said]
        empty = {"text": "", "files": []}
        yield history, gr.MultimodalTextbox(empty, submit_btn=False, stop_btn=True)
        answer = Answer()
        for answer in self._answer(history, *controls):
            yield history + conversation.shown(answer), gr.skip()
        yield history + conversation.shown(answer, ended=True), self.ready_to_send()

    def go_on(self, data: gr.SelectData, history: History, *controls: Any) -> Iterator[tuple]:
        """Continue the last answer, which stopped at max tokens, in place."""
        *history, last = history
        before = conversation.text(last)
        yield (
            [*history, conversation.message("assistant", before)],
            gr.MultimodalTextbox(submit_btn=False, stop_btn=True),
        )
        answer = Answer()
        for answer in self._answer([*history, last], *controls):
            yield history + conversation.shown(answer, before=before), gr.skip()
        yield history + conversation.shown(answer, ended=True, before=before), self.ready_to_send()

    def retry(self, data: gr.RetryData, history: History, *controls: Any) -> Iterator[tuple]:
        turn = conversation.turn(history, data.index)
        yield from self.send(history[turn], history[:turn], *controls)

    def edit(self, data: gr.EditData, history: History, *controls: Any) -> Iterator[tuple]:
        turn = conversation.turn(history, data.index)
        yield from self.send(conversation.edited(history[turn], data.value), history[:turn], *controls)

    def example(self, data: gr.SelectData, *controls: Any) -> Iterator[tuple]:
        yield from self.send(conversation.message("user", data.value["text"]), [], *controls)

    def undo_turn(self, data: gr.UndoData, history: History) -> tuple[History, dict]:
        """Take the last turn back; its message returns to the text box, ready to be changed."""
        turn = conversation.turn(history, data.index)
        files = [part["file"]["path"] for part in history[turn]["content"] if part["type"] == "file"]
        return history[:turn], {"text": conversation.text(history[turn]), "files": files}

    def ready_to_send(self) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def _answer(self, history: History, system_prompt: str, model: str | None, *values: Any) -> Iterator[Answer]:
        yield from self.controls.answer(conversation.to_messages(history, system_prompt), model, values)

    def takes_images(self, model: str | None) -> bool:
        try:
            return self.controls.catalog.takes_images(self.controls.catalog.find(model))
        except errors.SpaceError:
            return False

    def accepted(self, model: str | None) -> gr.MultimodalTextbox:
        """The message box for a model: it offers pictures only to one that takes them."""
        return gr.MultimodalTextbox(file_types=TEXT_FILES + (IMAGE_FILES if self.takes_images(model) else []))

    # -- conversations -----------------------------------------------------------------------------------------

    def keep(self, history: History, system_prompt: str, kept: list[dict], ident: str | None) -> tuple:
        """Keep the conversation on the page, new or known."""
        if not history:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        failed = conversation.is_failure(history[-1])  # the engine may be down: the page looks until it is back
        ident = ident or secrets.token_hex(8)
        kept = conversation.keep(kept, ident, history, system_prompt)
        again = gr.Timer(active=True) if failed else gr.skip()
        return kept, self.listed(kept, ident), gr.Button(interactive=True), again

    def listed(self, kept: list[dict], ident: str | None = None) -> gr.Radio:
        choices = [(one["title"], one["id"]) for one in kept]
        return gr.Radio(choices=choices, value=ident, visible=bool(choices))

    def start_anew(self) -> tuple:
        return [], self.ready_to_send(), None, gr.Button(interactive=False)

    def open(self, kept: list[dict], ident: str) -> tuple:
        messages = next((one["messages"] for one in kept if one["id"] == ident), [])
        history, system_prompt = self._read(conversation.from_json, messages)
        return history, self.ready_to_send(), gr.Button(interactive=True), system_prompt

    def forget(self, kept: list[dict], ident: str | None) -> tuple:
        kept = [one for one in kept if one["id"] != ident]
        history, message, _, delete = self.start_anew()
        return kept, history, message, self.listed(kept), delete

    def import_file(self, path: str) -> tuple[History, str, None]:
        return *self._read(conversation.read_file, path), None

    def _read(self, how: Any, what: Any) -> tuple[History, str]:
        try:
            return how(what, self.chatbot.GRADIO_CACHE)
        except errors.Refused as error:
            raise gr.Error(str(error), print_exception=False) from None

    def write_markdown(self, history: History, system_prompt: str) -> str:
        return self._write(history, "md", conversation.to_markdown(history, system_prompt))

    def write_json(self, history: History, system_prompt: str) -> str:
        messages = conversation.to_json(history, system_prompt)
        return self._write(history, "json", json.dumps({"messages": messages}, indent=2, ensure_ascii=False))

    def _write(self, history: History, ending: str, content: str) -> str:
        if not history:
            raise gr.Error("There is nothing to export yet.", print_exception=False)
        name = re.sub(r"\W+", "-", conversation.title(history)).strip("-") or "conversation"
        path = Path(tempfile.mkdtemp(dir=Path(self.chatbot.GRADIO_CACHE)), f"{name}.{ending}")
        path.write_text(content, encoding="utf-8")
        return str(path)
