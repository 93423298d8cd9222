"""The whole page: the header, the tabs, the controls next to them, and what keeps them current."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vllm_space import run_dir
from vllm_space.auth import SignIn
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
from vllm_space.page.sign_out import add_button
from vllm_space.page.status import StatusTab
from vllm_space.page.tab import Tab
from vllm_space.settings import DEMO_MODEL_NAME, Settings
from vllm_space.storage import Storage

# The tabs, from left to right. docs/changing-it.md shows how to add one.
TABS: tuple[type[Tab], ...] = (ChatTab, CompletionTab, CompareTab, StatusTab, ApiTab)

HOUR = 3600  # seconds
DEMO_NOTE = (
    "This is a **demo model** with 3 million parameters that runs on any CPU. It answers questions "
    "about this Space and knows nothing else. Set `MODEL_ID` to serve a real model."
)


def build(config: Settings, generation: Generation, sign_in: SignIn, storage: Storage) -> Blocks:
    """The whole page. No server is contacted until someone opens the page."""
    page = Page(config, generation, sign_in, storage)
    demo = Blocks(
        title=config.app_title,
        analytics_enabled=False,
        fill_height=True,
        fill_width=True,
        delete_cache=(HOUR, 24 * HOUR),
    )
    with demo:
        page.build(demo)
        page.wire(demo)
        add_endpoints(page.controls)
    return demo


class Page:
    """The header, the tabs and the controls."""

    def __init__(self, config: Settings, generation: Generation, sign_in: SignIn, storage: Storage):
        self.config = config
        self.catalog = generation.catalog
        self.controls = Controls(config, generation, sign_in, storage)
        self.tabs = [tab(self.controls) for tab in TABS]

    # -- what is on it -----------------------------------------------------------------------------

    def build(self, demo: gr.Blocks) -> None:
        for tab in self.tabs:
            tab.sidebar()
        self.header(demo)
        self.buttons: dict[Tab, gr.Tab] = {}
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320), gr.Tabs():
                for tab in self.tabs:
                    with gr.Tab(tab.title) as self.buttons[tab]:
                        tab.build()
            with gr.Column(scale=1, min_width=240) as self.column:
                self.controls.column()
        self.timers = {
            tab: gr.Timer(tab.refresh_every, active=False) for tab in self.tabs if tab.refresh_every
        }

    def header(self, demo: gr.Blocks) -> None:
        with gr.Row(equal_height=True):
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(f"# {self.config.app_title}")
                if self.config.app_description:
                    gr.Markdown(self.config.app_description)
                about = gr.Markdown(elem_id="about")
            with gr.Column(scale=1, min_width=240):
                add_button(demo, self.config)
                self.controls.header()
        self.banner = gr.Markdown(elem_id="banner", visible=False)
        self.controls.update_on_model(about, self.about)

    # -- what happens ------------------------------------------------------------------------------

    def wire(self, demo: gr.Blocks) -> None:
        for tab in self.tabs:
            tab.wire(demo)
            self.wire_selection(tab)

        controls, model = self.controls, self.controls.model
        on_load = [component for component, _ in controls.on_load]
        on_model = [component for component, _ in controls.on_model]
        state = [self.banner, controls.retry_timer, model, *controls.model_pickers, *on_model]
        # gradio 6.31: inputs are taken as the browser has them, since the server forgets the state
        # of a tab, including the models it offered, once many others have come (see web.py)
        raw = UNQUEUED | {"preprocess": False}
        demo.load(self.load, model, [*state, *on_load], **raw)
        controls.retry_timer.tick(self.refresh, model, state, **raw)
        model.input(self.select_model, model, on_model, **raw)

    def wire_selection(self, tab: Tab) -> None:
        """When a tab is opened: show or hide the controls, and run its `refresh` alone."""
        timers = list(self.timers.values())
        running = [owner is tab for owner in self.timers]
        select = call("selectTab", tab.shows_controls, running)
        self.buttons[tab].select(None, None, [self.column, *timers], js=select, **UNQUEUED)
        if not tab.refreshed:
            return
        events = [self.buttons[tab].select]
        if tab in self.timers:
            events.append(self.timers[tab].tick)
        for event in events:
            event(tab.refresh, self.controls.model, tab.refreshed, preprocess=False, **UNQUEUED)

    @handler
    def load(self, label: str | None) -> dict[Any, Any]:
        """Everything that depends on the servers, for a visitor who opens the page."""
        label = self.selected(label)
        values: dict[Any, Any] = self.refresh(label)
        return values | {component: value(label) for component, value in self.controls.on_load}

    @handler
    def refresh(self, label: str | None) -> dict[Any, Any]:
        """The current models and problems."""
        controls = self.controls
        labels, selected, problem = controls.labels(), self.selected(label), self.problem()
        banner = problem or _warning(self.catalog.missing())
        values: dict[Any, Any] = self.select_model(selected)
        pickers = {
            picker: gr.Dropdown(choices=labels, value=controls.initial_label(picker))
            for picker in controls.model_pickers
        }
        return {
            self.banner: gr.Markdown(banner, visible=bool(banner)),
            controls.retry_timer: gr.Timer(active=bool(problem)),
            controls.model: gr.Dropdown(choices=labels, value=selected, visible=len(labels) > 1),
            **pickers,
            **values,
        }

    @handler
    def select_model(self, label: str | None) -> dict[Any, Any]:
        """Everything that depends on the selected model."""
        return {component: value(label) for component, value in self.controls.on_model}

    def selected(self, label: str | None) -> str | None:
        """The model that stays selected if the browser has selected `label`."""
        labels = self.controls.labels()
        return label if label in labels else next(iter(labels), None)

    # -- what is said ------------------------------------------------------------------------------

    def about(self, label: str | None) -> str:
        """One line about a model; two if it is the demo model."""
        model = next((model for model in self.catalog.models() if model.label == label), None)
        if not model:
            return ""
        context = f" · {model.context_length:,} tokens of context" if model.context_length else ""
        server = "Served by vLLM" if model.is_vllm else "Model"
        line = f"{server}: **{model.label}**{context}"
        return f"{line}  \n{DEMO_NOTE}" if model.name == DEMO_MODEL_NAME else line

    def problem(self) -> str:
        """What is wrong with the engine, or with any of the servers; empty if nothing is."""
        status = run_dir.read_status(self.config.engine_run_dir)
        if status and status.state != "ready":
            why = f" Last failure: {status.reason}." if status.reason else ""
            return f"⏳ **{status.sentence}**{why} This page reconnects automatically."
        return "  \n".join(map(_warning, self.catalog.problems().values()))


def _warning(sentence: str) -> str:
    return f"⚠️ {sentence}" if sentence else ""
