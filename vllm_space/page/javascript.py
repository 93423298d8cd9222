"""How the page's JavaScript gets to the browser: page.js and storage.js as scripts, and calls of their functions.

A component that the server updates, even by gr.skip(), it builds anew for that visitor: 6 ms of its one event loop,
which at 64 streams was most of what the page cost. So what can be changed in the browser is changed there.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def scripts() -> str:
    """The <script> elements for the page's head. storage.js comes before anything of Gradio's touches localStorage."""
    files = ("storage.js", "page.js")
    return "\n".join(
        f"<script>\n{(FOLDER / name).read_text(encoding='utf-8')}</script>" for name in files
    )


def call(function: str) -> str:
    """The `js` of a Gradio event that calls a function of page.js with the values of its inputs."""
    return f"(...values) => vllmSpace.{function}(...values)"
