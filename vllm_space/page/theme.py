"""How the page looks: one of Gradio's themes with this page's colours, and page.css.

Text has a contrast of at least 4.5 (WCAG AA), which Gradio's own small print and primary buttons lack.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

PRIMARY = "*primary_700"  # buttons and accents; white text stands on it
PRIMARY_HOVER = "*primary_800"
STOP = "#b91c1c"
PLOT_COLORS = ("#ea580c", "#2563eb")  # first and second series of a plot

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


def theme(name: str) -> gr.themes.Base:
    """One of Gradio's themes, in the fonts of the visitor's system: no request leaves for a font server."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
    return THEMES[name](font=fonts, font_mono=mono).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill=PRIMARY,
        button_primary_background_fill_dark=PRIMARY,
        button_primary_background_fill_hover=PRIMARY_HOVER,
        button_primary_background_fill_hover_dark=PRIMARY_HOVER,
        button_primary_text_color="white",
        color_accent=PRIMARY,
        button_cancel_background_fill=STOP,
        button_cancel_background_fill_dark=STOP,
        button_cancel_text_color="white",
    )
