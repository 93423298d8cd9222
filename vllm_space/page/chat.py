"""The Chat tab, and the sidebar with the conversations stored in the visitor's browser."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_base64_to_cache

from vllm_space import errors
from vllm_space.generation import Request
from vllm_space.page import conversation
from vllm_space.page.conversation import History
from vllm_space.page.events import STREAM, UNQUEUED, UNQUEUED_RAW, event_value, handler
from vllm_space.page.javascript import call
from vllm_space.page.tab import Tab
from vllm_space.settings import DEMO_MODEL_NAME
from vllm_space.streaming import Answer

DEMO_EXAMPLES = (
    "What is this Space?",
    "How do I use another model?",
    "How do I put a password on this page?",
    "How do I call the API from Python?",
    "Explain step by step how to deploy this Space.",
)
EXAMPLES = (
    "Explain the difference between a process and a thread in three sentences.",
    "Write a Python function that checks whether a string is a palindrome.",
    "What should I cook with eggs, spinach and feta?",
    "Help me write a polite reminder about an unpaid invoice.",
)
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
TEXT_FILES = (
    ".txt .md .csv .json .jsonl .xml .yaml .yml .toml .ini .log .html .css .py .js .ts .sh .c .h "
    ".cpp .java .go .rs .sql .tex"
).split()
IMAGE_FILES = [".png", ".jpg", ".jpeg", ".webp", ".gif"]


class ChatTab(Tab):
    title = "Chat"

    # -- what is on it -----------------------------------------------------------------------------

    def sidebar(self) -> None:
        # The fixed secret lets a restarted Space read what the browser has stored.
        self.stored = gr.BrowserState(
            [], storage_key="vllm-space-conversations", secret="not-secret"
        )
        with gr.Sidebar(width=270, elem_id="sidebar"):
            self.new = gr.Button("New chat", variant="primary")
            self.conversations = gr.Radio(
                [],
                label="Conversations",
                info="Stored in this browser only",
                elem_id="conversations",
                visible=False,
            )
            self.delete = gr.Button("Delete this conversation", size="sm", interactive=False)
            with gr.Accordion("Export and import", open=False):
                self.as_markdown = gr.Button("Export as Markdown", size="sm")
                self.as_json = gr.Button("Export as JSON", size="sm")
                self.upload = gr.UploadButton("Import JSON", file_types=[".json"], size="sm")
            self.download = gr.DownloadButton("Download", elem_id="download", visible="hidden")

    def build(self) -> None:
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
        self.pending = gr.MultimodalTextbox(
            visible="hidden", label="Message being sent", file_count="multiple"
        )
        self.snapshot = gr.JSON(visible="hidden")  # the conversation on its way to `stored`

    def examples(self, label: str | None) -> gr.Chatbot:
        is_demo = any(model.name == DEMO_MODEL_NAME for model in self.controls.catalog.models())
        questions = self.config.app_examples or (DEMO_EXAMPLES if is_demo else EXAMPLES)
        return gr.Chatbot(examples=[{"text": question} for question in questions])

    def message_box(self, label: str | None) -> gr.MultimodalTextbox:
        """The message box for a model: images can be attached only if the model takes them."""
        images = IMAGE_FILES if self.takes_images(label) else []
        return gr.MultimodalTextbox(file_types=TEXT_FILES + images)

    def takes_images(self, label: str | None) -> bool:
        try:
            return self.controls.catalog.takes_images(self.controls.catalog.find(label))
        except errors.SpaceError:
            return False

    # -- what happens ------------------------------------------------------------------------------

    def wire(self, demo: gr.Blocks) -> None:
        self.controls.update_on_model(self.message, self.message_box)
        self.controls.update_on_load(self.chatbot, self.examples)
        answering = self.wire_answers()
        self.store_after(
            self.chatbot.undo(self.undo, self.chatbot, [self.chatbot, self.message], **UNQUEUED)
        )
        self.wire_sidebar(demo, answering)

    def wire_answers(self) -> list[Any]:
        """Attach everything that starts an answer, and Stop. Returns the events that answer."""
        controls = [self.controls.system_prompt, self.controls.model, *self.controls.sampling]
        submit = self.message.submit(
            None,
            [self.message, self.chatbot],
            [self.pending, self.chatbot, self.message],
            js=call("send"),
            **UNQUEUED,
        )
        submitted = submit.success(
            self.submit, [self.pending, self.chatbot, *controls], self.chatbot, **STREAM
        )
        submitted.failure(
            None,
            [self.pending, self.chatbot],
            [self.chatbot, self.message],
            js=call("takeBack"),
            **UNQUEUED,
        )
        # What else starts an answer, and its handler. A button is one more line here:
        # (self.button.click, self.its_handler). docs/changing-it.md shows it.
        triggers = [
            (self.chatbot.retry, self.retry),
            (self.chatbot.edit, self.edit),
            (self.chatbot.example_select, self.ask_example),
            (self.chatbot.option_select, self.continue_answer),
        ]
        answering = [submitted]
        for trigger, function in triggers:
            trigger(None, None, self.message, js=call("showStop"), **UNQUEUED)
            event = trigger(function, [self.chatbot, *controls], self.chatbot, **STREAM)
            # gradio 6.31: then() is not run after a failure, whatever its docstring says (as in
            # gradio#4113)
            event.failure(None, None, self.message, js=call("showSubmit"), **UNQUEUED)
            answering.append(event)
        self.message.stop(None, cancels=answering, **UNQUEUED)  # which counts as a failure
        for event in answering:
            self.store_after(
                event.then(None, None, self.message, js=call("showSubmit"), **UNQUEUED)
            )
        return answering

    def wire_sidebar(self, demo: gr.Blocks, answering: list[Any]) -> None:
        """Attach the list of stored conversations. Leaving a conversation ends its answer."""
        controls = self.controls
        demo.load(None, self.stored, [self.conversations, self.delete], js=call("list"), **UNQUEUED)
        selected = [self.stored, self.conversations]
        gr.on(
            [self.new.click, self.chatbot.clear],
            None,
            None,
            [self.chatbot, self.conversations, self.delete],
            cancels=answering,
            js=call("startNew"),
            **UNQUEUED,
        )
        self.conversations.input(
            self.open,
            selected,
            [self.chatbot, controls.system_prompt, self.delete],
            cancels=answering,
            js=call("open"),
            **UNQUEUED_RAW,
        )
        self.delete.click(
            None,
            selected,
            [self.stored, self.chatbot, self.conversations, self.delete],
            cancels=answering,
            js=call("remove"),
            **UNQUEUED,
        )
        whole = [self.chatbot, controls.system_prompt]
        for button, export in (
            (self.as_markdown, self.export_markdown),
            (self.as_json, self.export_json),
        ):
            exported = button.click(export, whole, self.download, **UNQUEUED)
            exported.success(None, js=call("clickDownload"), **UNQUEUED)
        self.store_after(
            self.upload.upload(
                self.import_file,
                self.upload,
                [*whole, self.conversations],
                cancels=answering,
                **UNQUEUED,
            )
        )

    def store_after(self, event: Any) -> None:
        """Have the browser store the conversation once `event` has succeeded or was stopped.

        Only then, so that nothing delays an answer's first token.
        """
        snapshot = event.then(
            self.take_snapshot,
            [self.chatbot, self.controls.system_prompt, self.conversations],
            self.snapshot,
            **UNQUEUED_RAW,
        )
        snapshot.success(
            None,
            [self.snapshot, self.stored],
            [self.stored, self.conversations, self.delete, self.controls.retry_timer],
            js=call("store"),
            **UNQUEUED,
        )

    # -- answers -----------------------------------------------------------------------------------
    # Each handler gets the conversation, then the values of the controls: system prompt, model,
    # sampling parameters.

    @handler
    def submit(
        self, request: gr.Request, value: dict[str, Any], history: History, *controls: Any
    ) -> Iterator[History]:
        """Answer what was typed and attached; the browser already shows it as the last message."""
        files = [file["path"] for file in value["files"]]
        question = conversation.question(value["text"], files, self.takes_images(controls[1]))
        yield from self.answer(request, [*history[:-1], question], *controls)

    @handler
    def retry(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        turn = conversation.turn(history, event_value(data, "index"))
        yield from self.ask(request, history[turn], history[:turn], *controls)

    @handler
    def edit(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        turn = conversation.turn(history, event_value(data, "index"))
        question = conversation.edited(history[turn], event_value(data, "value"))
        yield from self.ask(request, question, history[:turn], *controls)

    @handler
    def ask_example(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        question = conversation.example(event_value(data, "value"))
        yield from self.ask(request, conversation.text_message("user", question), [], *controls)

    @handler
    def continue_answer(
        self, data: gr.EventData, request: gr.Request, history: History, *controls: Any
    ) -> Iterator[History]:
        """Continue the last answer, which stopped at max tokens, in place."""
        *history, last = conversation.with_answer(history)
        start = conversation.text(last)
        yield [*history, conversation.text_message("assistant", start)]
        answer = Answer()
        for answer in self.generate(request, [*history, last], *controls):
            yield history + conversation.answer_messages(answer, start=start)
        yield history + conversation.answer_messages(answer, ended=True, start=start)

    def ask(
        self, request: gr.Request, question: dict[str, Any], history: History, *controls: Any
    ) -> Iterator[History]:
        """Add a message to the conversation and answer it."""
        history = [*history, question]
        yield history
        yield from self.answer(request, history, *controls)

    def answer(self, request: gr.Request, history: History, *controls: Any) -> Iterator[History]:
        """Yield the conversation as the answer to its last message grows."""
        answer = Answer()
        for answer in self.generate(request, history, *controls):
            yield history + conversation.answer_messages(answer)
        yield history + conversation.answer_messages(answer, ended=True)

    def generate(
        self,
        request: gr.Request,
        history: History,
        system_prompt: str | None,
        model: str | None,
        *sampling: Any,
    ) -> Iterator[Answer]:
        messages = conversation.to_messages(history)
        parameters = self.controls.sampling_parameters(sampling)
        generation = Request(messages, model, parameters, system_prompt or "")
        yield from self.controls.generation.answer(generation, self.controls.visitor(request))

    # -- conversations -----------------------------------------------------------------------------

    @handler
    def undo(self, data: gr.EventData, history: History) -> tuple[History, dict[str, Any]]:
        """Take back the last turn; its message returns to the message box, ready to be changed."""
        turn = conversation.turn(history, event_value(data, "index"))
        question = history[turn]
        files = conversation.image_paths(question)
        return history[:turn], {"text": conversation.text(question), "files": files}

    @handler
    def take_snapshot(
        self, history: History, system_prompt: str, id: str | None
    ) -> dict[str, Any] | None:
        """The conversation as the browser stores it; None if there is no answer to store."""
        if not history or history[-1]["role"] == "user":
            return None
        failed = conversation.is_failure(history[-1])
        if failed:  # the engine may be down: the page keeps asking until it is back
            self.controls.catalog.expire()
        snapshot = conversation.to_stored(history, system_prompt, id or secrets.token_hex(8))
        return snapshot | {"failed": failed}

    @handler
    def open(self, request: gr.Request, messages: Any, id: Any) -> tuple[Any, ...]:
        history, system_prompt = conversation.from_json(messages, self.save_image(request))
        return history, system_prompt, gr.Button(interactive=True)

    @handler
    def import_file(self, request: gr.Request, path: str) -> tuple[History, str, None]:
        return *conversation.read_file(path, self.save_image(request)), None

    def save_image(self, request: gr.Request) -> Callable[[str], str]:
        """A function that saves an image, given as a data URL, to a file and returns its path."""

        def save(url: str) -> str:
            self.controls.storage.reserve(self.controls.visitor(request), len(url))
            return save_base64_to_cache(url, self.chatbot.GRADIO_CACHE)

        return save

    @handler
    def export_markdown(self, request: gr.Request, history: History, system_prompt: str) -> str:
        text = conversation.to_markdown(history, system_prompt)
        return self.export(request, history, "md", text)

    @handler
    def export_json(self, request: gr.Request, history: History, system_prompt: str) -> str:
        messages = conversation.to_json(history, system_prompt)
        text = json.dumps({"messages": messages}, indent=2, ensure_ascii=False)
        return self.export(request, history, "json", text)

    def export(self, request: gr.Request, history: History, suffix: str, text: str) -> str:
        """Path of a file to download, named after the conversation's title."""
        if not history:
            raise errors.Rejected("There is nothing to export yet.")
        data = text.encode()
        self.controls.storage.reserve(self.controls.visitor(request), len(data))
        name = re.sub(r"\W+", "-", conversation.title(history)).strip("-") or "conversation"
        path = Path(tempfile.mkdtemp(dir=Path(self.chatbot.GRADIO_CACHE)), f"{name}.{suffix}")
        path.write_bytes(data)
        return str(path)
