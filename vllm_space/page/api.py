"""The API tab: programs to copy, with this Space's own address."""

from __future__ import annotations

import gradio as gr

from vllm_space import errors
from vllm_space.page import snippets
from vllm_space.page.events import handler, http
from vllm_space.page.tab import Tab

API_OFF = (
    "⚠️ **`/v1` is off**: the owner of this Space has not set `API_KEYS`. The first three programs "
    "work once that secret is set and one of its keys is in your environment variable `API_KEY`."
)
API_ON = "`/v1` is on. Put one of this Space's keys into your environment variable `API_KEY`."
SIGN_IN = (
    "This page requires sign-in: `gradio_client` needs a user name and password; MCP clients "
    "cannot sign in."
)


class ApiTab(Tab):
    title = "API"
    shows_controls = False

    def build(self) -> None:
        gr.Markdown(API_ON if self.config.api_keys else API_OFF)
        if self.controls.sign_in.required:
            gr.Markdown(SIGN_IN)
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
                    self.refreshed.append(program)
        gr.Markdown(
            "Each program asks the model one question. *Use via API*, at the bottom of the page, "
            "lists the page's own endpoints."
        )

    @handler
    def refresh(self, label: str | None, request: gr.Request) -> list[str]:
        """The programs, for the address the visitor uses and the selected model."""
        catalog = self.controls.catalog
        try:
            model = catalog.find(label)
            name = model.label if len(catalog.servers) > 1 else model.name
        except errors.SpaceError:
            name = "model"
        sign_in = self.controls.sign_in
        return list(snippets.write(self.address(request), name, sign_in.required).values())

    def address(self, request: gr.Request) -> str:
        """The page's address, as the visitor's browser knows it."""
        space = self.controls.sign_in.space
        if space and space.url:
            return space.url
        url = http(request).url
        origin = request.headers.get("origin", f"{url.scheme}://{url.netloc}")
        root_path = http(request).scope.get("root_path", "")
        return f"{origin}{root_path}".rstrip("/")
