"""How the page looks: one of Gradio's themes with this page's adjustments, and page.css.

Text has a contrast of at least 4.5 (WCAG AA), which Gradio's own small print and primary buttons
do not reach.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

# The colour of buttons, accents, the sign-in page and plots, such as gr.themes.colors.teal.
# None: that of the theme.
COLOR: gr.themes.Color | None = None

STOP_COLOR = "#b91c1c"

THEMES = {
    "default": gr.themes.Default,
    "base": gr.themes.Base,
    "citrus": gr.themes.Citrus,
    "glass": gr.themes.Glass,
    "monochrome": gr.themes.Monochrome,
    "ocean": gr.themes.Ocean,
    "origin": gr.themes.Origin,
    "soft": gr.themes.Soft,
}  # by APP_THEME


def css() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@cache
def theme(name: str) -> gr.themes.Base:
    """One of Gradio's themes, in the visitor's system fonts: no fonts are downloaded."""
    options: dict[str, Any] = {"primary_hue": COLOR} if COLOR else {}
    return THEMES[name](
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
        **options,
    ).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        color_accent="*primary_700",
        button_cancel_background_fill=STOP_COLOR,
        button_cancel_background_fill_dark=STOP_COLOR,
        button_cancel_text_color="white",
    )


def button_color(name: str) -> str:
    """The colour of a theme's primary buttons, as CSS."""
    return str(theme(name).primary_700)


def plot_colors(name: str) -> tuple[str, str]:
    """The colours of a plot's first and second series, as CSS."""
    return str(theme(name).primary_600), str(theme(name).neutral_500)
