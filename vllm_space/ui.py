"""The page: Gradio only. It knows no sockets, no processes and no environment.

One visitor's action is one event: a chain of small events before the first token would cost more than the
answer (DESIGN section 5). The streaming handlers are plain generators; Gradio closes them when the visitor
presses Stop or leaves, and that closes the connection to the engine. Each tab is a module of its own, ui_*.py.
"""

from __future__ import annotations

import gradio as gr

from vllm_space import auth, engine, ui_browser
from vllm_space.client import Catalog, Model
from vllm_space.hardware import Space
from vllm_space.settings import DEMO_MODEL_NAME, Settings
from vllm_space.ui_api import ApiTab
from vllm_space.ui_chat import ChatTab
from vllm_space.ui_compare import CompareTab
from vllm_space.ui_completion import CompletionTab
from vllm_space.ui_controls import AT_ONCE, Controls
from vllm_space.ui_status import StatusTab

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

NO_GPU = """
## One step left: this Space needs a GPU

{kind}, and vLLM needs one for as long as it serves.

1. Open the **[settings of this Space]({settings})**.
2. Under *Space hardware* choose a GPU. The smallest fits the default model; the
   **[price list](https://huggingface.co/pricing#spaces)** says what each costs, and *Sleep time* in the same settings
   stops the cost when nobody comes.
3. Confirm. The Space restarts by itself, and this page becomes the chat.

**No GPU wanted?** Set the variable `MODEL_URL` to a model server that runs elsewhere (any OpenAI-compatible address),
and its key as the secret `MODEL_API_KEY`: then this Space is the page and runs on free hardware.
"""

CSS = """
.dark { --color-accent: var(--primary-500); }
.gradio-container > .main { max-width: 1280px; width: 100%; margin: 0 auto; }
#chatbot { height: calc(100dvh - 20rem) !important; min-height: 22rem; }
#chatbot small, .compared small, .numbers { font-size: var(--text-xs); color: var(--body-text-color-subdued); }
#chatbot .user pre { max-height: 12rem; overflow: auto; }
#about { font-size: var(--text-sm); }
#banner { padding: var(--spacing-md) var(--spacing-lg); border-left: 4px solid #d97706; }
[data-testid=status-tracker]:has(.error) { display: none !important; } /* the notice beside the page tells it */
#text textarea { font-family: var(--font-mono); }
#conversations label { width: 100%; }
#conversations label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""


def theme(name: str) -> gr.themes.Base:
    """One of Gradio's themes, in the fonts of the visitor's system: no request leaves for a font server."""
    return {
        "default": gr.themes.Default,
        "base": gr.themes.Base,
        "citrus": gr.themes.Citrus,
        "glass": gr.themes.Glass,
        "monochrome": gr.themes.Monochrome,
        "ocean": gr.themes.Ocean,
        "origin": gr.themes.Origin,
        "soft": gr.themes.Soft,
    }[name](font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]).set(
        # Contrast of 4.5 (WCAG AA), which Gradio's own small print and primary buttons lack.
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_600", block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white", color_accent="*primary_700", button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c", button_cancel_text_color="white",
    )  # fmt: skip


def build(config: Settings, catalog: Catalog, guard: auth.Guard) -> gr.Blocks:
    """The whole page. Nothing is asked of a server until a visitor comes."""
    page = Page(config, catalog, guard)
    with gr.Blocks(
        title=config.app_title, analytics_enabled=False, fill_height=True, fill_width=True, delete_cache=(3600, DAY)
    ) as demo:
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
        page.api.endpoints()
        page.wire(demo)
        for tab in (chat, completion, compare, status, api):
            js = ui_browser.HIDE if tab in (status, api) else ui_browser.SHOW
            tab.select(None, None, controls, js=js, **AT_ONCE)
    return demo


def build_without_gpu(config: Settings, space: Space) -> gr.Blocks:
    """What the owner of a fresh duplicate sees first: the Space has no GPU, and how to give it one."""
    kind = "ZeroGPU lends a GPU for seconds only" if space.zero_gpu else "This hardware has no GPU"
    with gr.Blocks(title=config.app_title, analytics_enabled=False) as demo:
        if config.oauth_allowed:
            gr.LoginButton()  # without one, Gradio has no sign-in
        gr.Markdown(f"# {config.app_title}\n\n" + NO_GPU.format(kind=kind, settings=space.settings_url))
    return demo


class Page:
    """The tabs, and what stands above them."""

    def __init__(self, config: Settings, catalog: Catalog, guard: auth.Guard):
        self.config = config
        self.catalog = catalog
        self.controls = Controls(config, catalog, guard)
        self.chat = ChatTab(self.controls)
        self.completion = CompletionTab(self.controls)
        self.compare = CompareTab(self.controls)
        self.status = StatusTab(self.controls, guard)
        self.api = ApiTab(self.controls, guard)

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
        demo.load(None, self.chat.kept, [self.chat.conversations, self.chat.delete], js=ui_browser.LIST, **AT_ONCE)
        # As the browser has it: Gradio may have forgotten which models it told this tab of: see server.py.
        asked = AT_ONCE | {"preprocess": False}
        demo.load(self.greet, model, [*state, self.chat.chatbot, self.chat.message], **asked)
        self.controls.again.tick(self.look, model, [*state, self.chat.message], **asked)
        model.input(self.pick, model, [self.about, self.chat.message], **asked)

    def greet(self, label: str | None) -> tuple:
        """What depends on the servers, asked anew for each visitor."""
        *state, message = self.look(label)
        demo = any(model.name == DEMO_MODEL_NAME for model in self.catalog.models())
        examples = self.config.app_examples or (DEMO_EXAMPLES if demo else EXAMPLES)
        chatbot = gr.Chatbot(examples=[{"text": text} for text in examples])
        return *state, chatbot, message

    def look(self, label: str | None) -> tuple:
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

    def pick(self, label: str | None) -> tuple[str, gr.MultimodalTextbox]:
        """What is said of a model, and the message box that suits it."""
        model = next((model for model in self.catalog.models() if model.label == label), None)
        return _about(model) if model else "", self.chat.accepted(label)

    def trouble(self) -> str:
        """What is wrong with the engine or with any of the servers; empty where nothing is."""
        status = engine.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            doing = f"The engine is {status.state}" + (f": {status.phase}." if status.phase else ".")
            why = f" It ended because {status.reason}." if status.reason else ""
            return f"⏳ **{doing}**{why} This page goes on by itself when it is back."
        return "  \n".join(f"⚠️ {sentence}" for sentence in self.catalog.problems().values())


def _about(model: Model) -> str:
    context = f" · context of {model.context_length:,} tokens" if model.context_length else ""
    said = f"Served by vLLM: **{model.label}**{context}"
    return f"{said}  \n{DEMO_NOTE}" if model.name == DEMO_MODEL_NAME else said
