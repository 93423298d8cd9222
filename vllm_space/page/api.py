"""The API tab: programs to paste, with this Space's own address."""

from __future__ import annotations

import gradio as gr

from vllm_space import errors
from vllm_space.auth import SignIn
from vllm_space.page import snippets
from vllm_space.page.controls import Controls
from vllm_space.page.events import UNQUEUED, handler, http

CLOSED = (
    "⚠️ **`/v1` is closed**: the owner of this Space has set no `API_KEYS`. The first three programs work once that "
    "secret is set and its key is in your variable `API_KEY`."
)
OPEN = "`/v1` is open to those who hold a key of this Space: put it into the variable `API_KEY`."
LOGIN = "The page asks for a login: `gradio_client` needs a name and a password of it, and MCP clients cannot pass it."


class ApiTab:
    def __init__(self, controls: Controls, sign_in: SignIn):
        self.controls = controls
        self.config = controls.config
        self.sign_in = sign_in

    def tab(self) -> None:
        gr.Markdown(
            "\n\n".join(
                [
                    OPEN if self.config.api_keys else CLOSED,
                    *([LOGIN] if self.sign_in.required else []),
                ]
            )
        )
        self.programs = []
        with gr.Tabs():
            for title, (language, _) in snippets.ALL.items():
                with gr.Tab(title):
                    program = gr.Code(
                        label=title,
                        language=language,
                        interactive=False,
                        show_label=False,
                        show_line_numbers=False,
                        buttons=["copy"],
                        elem_classes="snippet",
                    )
                    self.programs.append(program)
        gr.Markdown(
            "Every program asks the model one question. The page's own endpoints are listed under *Use via API*."
        )

    def wire(self, tab: gr.Tab) -> None:
        tab.select(self.fill, self.controls.model, self.programs, **UNQUEUED)

    @handler
    def fill(self, label: str | None, request: gr.Request) -> list[str]:
        """The programs for the address that the visitor came by, and the model that is picked."""
        several = len(self.controls.catalog.servers) > 1
        try:
            model = self.controls.catalog.find(label)
            name = model.label if several else model.name
        except errors.SpaceError:
            name = "model"
        return list(snippets.write(self._address(request), name, self.sign_in.required).values())

    def _address(self, request: gr.Request) -> str:
        if self.sign_in.space and self.sign_in.space.url:
            return self.sign_in.space.url
        scheme = request.headers.get("x-forwarded-proto", http(request).url.scheme)
        return f"{scheme}://{request.headers['host']}{http(request).scope.get('root_path', '')}".rstrip(
            "/"
        )
