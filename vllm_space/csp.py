"""The content security policies: what the browser may load and run (https://www.w3.org/TR/CSP3).

An image URL in an answer could leak the conversation to any server, so the page can load only from
its own address. A form in an answer could lead the visitor away, so the page cannot submit any.
"""

from __future__ import annotations

from vllm_space.hardware import Space
from vllm_space.settings import Settings

OWN_DATA = "'self' data: blob:"
GRADIO_CDN = "https://gradio.s3-us-west-2.amazonaws.com"  # serves the assets of gradio.live pages
HUB = "https://huggingface.co https://*.hf.space"  # shows a Space in a frame

# For files that visitors uploaded: whatever they contain, nothing in them runs.
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


def page_policy(config: Settings, space: Space | None, requires_sign_in: bool) -> str:
    """The policy of the page."""
    own = f"'self' {GRADIO_CDN}" if config.gradio_share else "'self'"
    images = " ".join([OWN_DATA, *config.app_image_origins])
    directives = [
        f"default-src {own} data: blob:",
        # Gradio's HTML contains inline scripts and styles; its plots compile code at run time.
        f"script-src {own} 'unsafe-inline' 'unsafe-eval'",
        f"style-src {own} 'unsafe-inline'",
        f"img-src {images}",
        f"media-src {images}",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
    ]
    if requires_sign_in:
        directives.append(_frame_ancestors(space))
    return "; ".join(directives)


def login_policy(space: Space | None) -> str:
    """The policy of the login page."""
    return (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'self'; form-action 'self'; "
        + _frame_ancestors(space)
    )


def _frame_ancestors(space: Space | None) -> str:
    """Which sites may show the page in a frame, where a visitor could be tricked into clicking."""
    return f"frame-ancestors 'self' {HUB}" if space else "frame-ancestors 'self'"
