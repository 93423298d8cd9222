"""The whole page: the header, the tabs, the controls beside them, and what keeps them up to date."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vllm_space import run_dir
from vllm_space.auth import SignIn
from vllm_space.client import Model
from vllm_space.generation import Generation
from vllm_space.page.api import ApiTab
from vllm_space.page.blocks import Blocks
from vllm_space.page.chat import ChatTab
from vllm_space.page.compare import CompareTab
from vllm_space.page.completion import CompletionTab
from vllm_space.page.controls import Controls
from vllm_space.page.endpoints import add_endpoints
from vllm_space.page.events import UNQUEUED, handler
from vllm_space.page.javascript import call
from vllm_space.page.status import StatusTab
from vllm_space.settings import DEMO_MODEL_NAME, Settings

DAY = 24 * 3600  # seconds

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
    "Help me word a polite reminder about an unpaid invoice.",
)
DEMO_NOTE = (
    "This is a **demo model** of 3 million parameters that runs on any CPU. It answers questions about this "
    "Space and knows nothing else. Set `MODEL_ID` to serve a real one."
)


def build(config: Settings, generation: Generation, sign_in: SignIn) -> Blocks:
    """The whole page. Nothing is asked of a server until a visitor comes."""
    page = Page(config, generation, sign_in)
    demo = Blocks(
        title=config.app_title,
        analytics_enabled=False,
        fill_height=True,
        fill_width=True,
        delete_cache=(3600, DAY),
    )
    with demo:
        page.chat.sidebar()
        page.header()
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320), gr.Tabs():
                with gr.Tab("Chat") as chat:
                    page.chat.tab()
                with gr.Tab("Completion") as completion:
                    page.completion.tab()
                with gr.Tab("Compare") as compare:
                    page.compare.tab()
                with gr.Tab("Status") as status:
                    page.status.tab()
                with gr.Tab("API") as api:
                    page.api.tab()
            with gr.Column(scale=1, min_width=240) as controls:
                page.controls.column()
        page.chat.wire()
        page.completion.wire()
        page.compare.wire()
        page.status.wire(status, [chat, completion, compare, api])
        page.api.wire(api)
        add_endpoints(page.controls)
        page.wire(demo)
        for tab in (chat, completion, compare, status, api):
            js = call("hide" if tab in (status, api) else "show")
            tab.select(None, None, controls, js=js, **UNQUEUED)
    return demo


class Page:
    """The tabs, and what stands above them."""

    def __init__(self, config: Settings, generation: Generation, sign_in: SignIn):
        self.config = config
        self.catalog = generation.catalog
        self.controls = Controls(config, generation, sign_in)
        self.chat = ChatTab(self.controls)
        self.completion = CompletionTab(self.controls)
        self.compare = CompareTab(self.controls)
        self.status = StatusTab(self.controls, sign_in)
        self.api = ApiTab(self.controls, sign_in)

    def header(self) -> None:
        with gr.Row(equal_height=True):
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(f"# {self.config.app_title}")
                if self.config.app_description:
                    gr.Markdown(self.config.app_description)
                self.about = gr.Markdown(elem_id="about")
            with gr.Column(scale=1, min_width=240):
                self.controls.picker()
                if self.config.oauth_allowed:
                    gr.LoginButton()
        self.banner = gr.Markdown(elem_id="banner", visible=False)

    def wire(self, demo: gr.Blocks) -> None:
        model = self.controls.model
        state = [self.about, self.banner, self.controls.again, model, *self.compare.models]
        demo.load(
            None,
            self.chat.kept,
            [self.chat.conversations, self.chat.delete],
            js=call("list"),
            **UNQUEUED,
        )
        # gradio 6.31: as the browser has it, since the state of a tab, the models it knows of included, is evicted when
        # many others have come (see web.py)
        asked = UNQUEUED | {"preprocess": False}
        demo.load(self.greet, model, [*state, self.chat.chatbot, self.chat.message], **asked)
        self.controls.again.tick(self.look, model, [*state, self.chat.message], **asked)
        model.input(self.pick, model, [self.about, self.chat.message], **asked)

    @handler
    def greet(self, label: str | None) -> tuple[Any, ...]:
        """What depends on the servers, asked anew for each visitor."""
        *state, message = self.look(label)
        demo = any(model.name == DEMO_MODEL_NAME for model in self.catalog.models())
        examples = self.config.app_examples or (DEMO_EXAMPLES if demo else EXAMPLES)
        chatbot = gr.Chatbot(examples=[{"text": text} for text in examples])
        return *state, chatbot, message

    @handler
    def look(self, label: str | None) -> tuple[Any, ...]:
        """The models and what is wrong, as they are now."""
        found = self.catalog.models()
        trouble = self.trouble()
        labels = [model.label for model in found]
        chosen = label if label in labels else (labels[0] if labels else None)
        about, message = self.pick(chosen)
        return (
            about,
            gr.Markdown(trouble, visible=bool(trouble)),
            gr.Timer(active=bool(trouble)),
            gr.Dropdown(choices=labels, value=chosen, visible=len(labels) > 1),
            *self.compare.offered(labels),
            message,
        )

    @handler
    def pick(self, label: str | None) -> tuple[str, gr.MultimodalTextbox]:
        """What is said of a model, and the message box that suits it."""
        model = next((model for model in self.catalog.models() if model.label == label), None)
        return _about(model) if model else "", self.chat.accepted(label)

    def trouble(self) -> str:
        """What is wrong with the engine or with any of the servers; empty where nothing is."""
        status = run_dir.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            why = f" It ended because {status.reason}." if status.reason else ""
            return f"⏳ **{status.sentence}**{why} This page goes on by itself when it is back."
        return "  \n".join(f"⚠️ {sentence}" for sentence in self.catalog.problems().values())


def _about(model: Model) -> str:
    context = f" · context of {model.context_length:,} tokens" if model.context_length else ""
    said = f"Served by vLLM: **{model.label}**{context}"
    return f"{said}  \n{DEMO_NOTE}" if model.name == DEMO_MODEL_NAME else said
