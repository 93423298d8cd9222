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

from vllm_space import errors
from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.controls import Controls
from vllm_space.page.conversation import History
from vllm_space.page.events import STREAM, UNQUEUED, UNQUEUED_RAW, event_value, handler
from vllm_space.page.javascript import call
from vllm_space.streaming import Answer

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
TEXT_FILES = [
    ".txt",
    ".md",
    ".csv",
    ".json",
    ".jsonl",
    ".xml",
    ".yaml",
    ".yml",
    ".toml",
    ".ini",
    ".log",
    ".html",
    ".css",
    ".py",
    ".js",
    ".ts",
    ".sh",
    ".c",
    ".h",
    ".cpp",
    ".java",
    ".go",
    ".rs",
    ".sql",
    ".tex",
]
IMAGE_FILES = [".png", ".jpg", ".jpeg", ".webp", ".gif"]


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
                [],
                label="Conversations",
                info="Kept in this browser only",
                elem_id="conversations",
                visible=False,
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
        self.sent = gr.MultimodalTextbox(
            visible="hidden", label="Sent message", file_count="multiple"
        )
        self.now = gr.JSON(
            visible="hidden"
        )  # the conversation on its way to what the browser keeps

    # -- what happens ----------------------------------------------------------------------------------------

    def wire(self) -> None:
        inputs = [self.controls.system_prompt, self.controls.model, *self.controls.sampling]
        begin = [
            self.chatbot.retry,
            self.chatbot.edit,
            self.chatbot.example_select,
            self.chatbot.option_select,
        ]
        gr.on(begin, None, None, self.message, js=call("answering"), **UNQUEUED)
        sent = self.message.submit(
            None,
            [self.message, self.chatbot],
            [self.sent, self.chatbot, self.message],
            js=call("send"),
            **UNQUEUED,
        )
        answer = sent.success(
            self.submit, [self.sent, self.chatbot, *inputs], self.chatbot, **STREAM
        )
        back = [self.chatbot, self.message]
        answer.failure(None, [self.sent, self.chatbot], back, js=call("takeBack"), **UNQUEUED)
        running = [
            answer,
            self.chatbot.retry(self.retry, [self.chatbot, *inputs], self.chatbot, **STREAM),
            self.chatbot.edit(self.edit, [self.chatbot, *inputs], self.chatbot, **STREAM),
            self.chatbot.example_select(self.example, inputs, self.chatbot, **STREAM),
            self.chatbot.option_select(self.go_on, [self.chatbot, *inputs], self.chatbot, **STREAM),
        ]
        self.message.stop(None, cancels=running, **UNQUEUED)  # which is a failure as well
        for event in running[1:]:
            # gradio 6.31: then() is not run after a failure, whatever its docstring says (as in gradio#4113)
            event.failure(None, None, self.message, js=call("ready"), **UNQUEUED)
        for event in running:
            # Kept when the answer is there, so that nothing stands before its first token.
            self.keep_after(event.then(None, None, self.message, js=call("ready"), **UNQUEUED))
        self.keep_after(
            self.chatbot.undo(
                self.undo_turn, self.chatbot, [self.chatbot, self.message], **UNQUEUED
            )
        )

        place = [self.kept, self.conversations]
        gr.on(
            [self.new.click, self.chatbot.clear],
            None,
            None,
            [self.chatbot, self.conversations, self.delete],
            cancels=running,
            js=call("startNew"),
            **UNQUEUED,
        )
        self.conversations.input(
            self.open,
            place,
            [self.chatbot, self.controls.system_prompt, self.delete],
            cancels=running,
            js=call("open"),
            **UNQUEUED_RAW,
        )
        self.delete.click(
            None,
            place,
            [self.kept, self.chatbot, self.conversations, self.delete],
            cancels=running,
            js=call("remove"),
            **UNQUEUED,
        )
        whole = [self.chatbot, self.controls.system_prompt]
        for button, write in (
            (self.as_markdown, self.write_markdown),
            (self.as_json, self.write_json),
        ):
            button.click(write, whole, self.download, **UNQUEUED).success(
                None, js=call("clickDownload"), **UNQUEUED
            )
        imported = self.upload.upload(
            self.import_file, self.upload, [*whole, self.conversations], cancels=running, **UNQUEUED
        )
        self.keep_after(imported)

    def keep_after(self, event: Any) -> None:
        """Let the browser keep the conversation when `event` has succeeded, or was ended by Stop."""
        written = event.then(
            self.written,
            [self.chatbot, self.controls.system_prompt, self.conversations],
            self.now,
            **UNQUEUED_RAW,
        )
        place = [self.kept, self.conversations, self.delete, self.controls.again]
        written.success(None, [self.now, self.kept], place, js=call("store"), **UNQUEUED)

    @handler
    def submit(
        self, request: gr.Request, value: dict[str, Any], history: History, *controls: Any
    ) -> Iterator[History]:
        """Answer what was typed and attached; the browser has shown it at the end of the conversation already."""
        files = [one["path"] for one in value["files"]]
        said = conversation.question(value["text"], files, self.takes_images(controls[1]))
        yield from self.answered(request, [*history[:-1], said], *controls)

    def send(
        self, request: gr.Request, said: dict[str, Any], history: History, *controls: Any
    ) -> Iterator[History]:
        """Add a message to the conversation and answer it."""
        history = [*history, said]
        yield history
        yield from self.answered(request, history, *controls)

    def answered(self, request: gr.Request, history: History, *controls: Any) -> Iterator[History]:
        """The conversation while the answer to its last message arrives."""
        answer = Answer()
        for answer in self._answer(request, history, *controls):
            yield history + conversation.shown(answer)
        yield history + conversation.shown(answer, ended=True)

    @handler
    def go_on(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        """Continue the last answer, which stopped at max tokens, in place."""
        *history, last = conversation.unfinished(history)
        before = conversation.text(last)
        yield [*history, conversation.message("assistant", before)]
        answer = Answer()
        for answer in self._answer(request, [*history, last], *controls):
            yield history + conversation.shown(answer, before=before)
        yield history + conversation.shown(answer, ended=True, before=before)

    @handler
    def retry(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        turn = conversation.turn(history, event_value(data, "index"))
        yield from self.send(request, history[turn], history[:turn], *controls)

    @handler
    def edit(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        turn = conversation.turn(history, event_value(data, "index"))
        yield from self.send(
            request,
            conversation.edited(history[turn], event_value(data, "value")),
            history[:turn],
            *controls,
        )

    @handler
    def example(self, data: gr.EventData, request: gr.Request, *controls: Any) -> Iterator[History]:
        yield from self.send(
            request,
            conversation.message("user", conversation.example(event_value(data, "value"))),
            [],
            *controls,
        )

    @handler
    def undo_turn(self, data: gr.EventData, history: History) -> tuple[History, dict[str, Any]]:
        """Take the last turn back; its message returns to the text box, ready to be changed."""
        turn = conversation.turn(history, event_value(data, "index"))
        files = [
            part["file"]["path"] for part in history[turn]["content"] if part["type"] == "file"
        ]
        return history[:turn], {"text": conversation.text(history[turn]), "files": files}

    def _answer(
        self,
        request: gr.Request,
        history: History,
        system_prompt: str | None,
        model: str | None,
        *values: Any,
    ) -> Iterator[Answer]:
        sampling = self.controls.sampling_of(values)
        asked = Request(conversation.to_messages(history), model, sampling, system_prompt or "")
        yield from self.controls.generation.answer(asked, self.controls.visitor(request))

    def takes_images(self, model: str | None) -> bool:
        try:
            return self.controls.catalog.takes_images(self.controls.catalog.find(model))
        except errors.SpaceError:
            return False

    def accepted(self, model: str | None) -> gr.MultimodalTextbox:
        """The message box for a model: it offers pictures only to one that takes them."""
        return gr.MultimodalTextbox(
            file_types=TEXT_FILES + (IMAGE_FILES if self.takes_images(model) else [])
        )

    # -- conversations -----------------------------------------------------------------------------------------

    @handler
    def written(
        self, history: History, system_prompt: str, ident: str | None
    ) -> dict[str, Any] | None:
        """The conversation as the browser keeps it, new or known; None where there is nothing to keep."""
        if not history or history[-1]["role"] == "user":
            return None
        failed = conversation.is_failure(
            history[-1]
        )  # the engine may be down: the page looks until it is back
        if failed:
            self.controls.catalog.expire()
        return conversation.written(history, system_prompt, ident or secrets.token_hex(8)) | {
            "failed": failed
        }

    @handler
    def open(self, messages: Any, ident: Any) -> tuple[Any, ...]:
        history, system_prompt = conversation.from_json(messages, self.chatbot.GRADIO_CACHE)
        return history, system_prompt, gr.Button(interactive=True)

    @handler
    def import_file(self, path: str) -> tuple[History, str, None]:
        return *conversation.read_file(path, self.chatbot.GRADIO_CACHE), None

    @handler
    def write_markdown(self, history: History, system_prompt: str) -> str:
        return self._write(history, "md", conversation.to_markdown(history, system_prompt))

    @handler
    def write_json(self, history: History, system_prompt: str) -> str:
        messages = conversation.to_json(history, system_prompt)
        return self._write(
            history, "json", json.dumps({"messages": messages}, indent=2, ensure_ascii=False)
        )

    def _write(self, history: History, ending: str, content: str) -> str:
        if not history:
            raise errors.Rejected("There is nothing to export yet.")
        name = re.sub(r"\W+", "-", conversation.title(history)).strip("-") or "conversation"
        path = Path(tempfile.mkdtemp(dir=Path(self.chatbot.GRADIO_CACHE)), f"{name}.{ending}")
        path.write_text(content, encoding="utf-8")
        return str(path)
