"""What every tab of the page has in common. layout.py lists the tabs and runs them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vllm_space.page.controls import Controls


class Tab:
    """One tab. A subclass says what is on it (`build`) and what its components do (`wire`)."""

    title = ""
    shows_controls = True  # whether the system prompt and sampling parameters appear next to it
    refresh_every: float | None = None  # seconds between calls of `refresh` while the tab is open

    def __init__(self, controls: Controls):
        self.controls = controls
        self.config = controls.config
        self.refreshed: list[gr.blocks.Block] = []  # components that `refresh` updates

    def sidebar(self) -> None:
        """Create the tab's part of the sidebar, if it has one."""

    def build(self) -> None:
        """Create the tab's components."""

    def wire(self, demo: gr.Blocks) -> None:
        """Attach the events of these components. Every component of the page exists by then."""

    def refresh(self, label: str | None, request: gr.Request) -> Any:
        """Values for the `refreshed` components, given the label of the selected model.

        Runs when the tab is opened, and every `refresh_every` seconds for as long as it is open.
        Only called if there are `refreshed` components; must be a `handler`.
        """
        raise NotImplementedError
