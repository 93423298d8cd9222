"""How page.js and storage.js reach the browser, and how events call their functions.

When the server updates a component, even by gr.skip(), Gradio rebuilds it for that visitor: 6 ms of
its only event loop, which with 64 streams was most of the page's CPU time. So everything that can
be changed in the browser is changed there.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def scripts() -> str:
    """The <script> elements for the page's head.

    storage.js comes first: it has to run before Gradio touches localStorage.
    """
    files = ("storage.js", "page.js")
    return "\n".join(
        f"<script>\n{(FOLDER / name).read_text(encoding='utf-8')}</script>" for name in files
    )


def call(function: str, *arguments: object) -> str:
    """The `js` of a Gradio event: call a function of page.js.

    It gets `arguments` (anything JSON can express) and then the values of the event's inputs.
    """
    fixed = "".join(f"{json.dumps(argument)}, " for argument in arguments)
    return f"(...values) => vllmSpace.{function}({fixed}...values)"
