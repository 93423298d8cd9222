"""The button that ends the visitor's session, however it began."""

from __future__ import annotations

import gradio as gr

from vllm_space.auth import is_required
from vllm_space.page.events import UNQUEUED
from vllm_space.page.javascript import call
from vllm_space.settings import Settings


def add_button(demo: gr.Blocks, config: Settings) -> None:
    """Add the button to the page being built, if it requires sign-in."""
    if config.oauth_allowed:
        # gradio 6.31: its routes for the sign-in exist only if a page has this button
        gr.LoginButton(visible=False)
    if is_required(config):
        button = gr.Button("Sign out", size="sm", elem_id="sign-out")
        button.click(None, None, button, js=call("signOut"), **UNQUEUED)
        demo.load(None, None, button, js=call("nameVisitor"), **UNQUEUED)
