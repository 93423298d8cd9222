"""Colours of the page: readable in every theme, and the same everywhere."""

import pytest
from starlette.requests import Request

from vllm_space.page import theme
from vllm_space.settings import Settings
from vllm_space.web import Web

VISIT = Request({"type": "http", "method": "GET", "path": "/login", "headers": []})


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    channels = [value / 255 for value in bytes.fromhex(color[1:])]
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", theme.THEMES)
def test_buttons_are_readable(name):
    assert 1.05 / (luminance(theme.button_color(name)) + 0.05) >= 4.5  # white text


@pytest.mark.parametrize("name", theme.THEMES)
def test_plots_stand_out(name):
    first, second = (luminance(color) for color in theme.plot_colors(name))
    for series in (first, second):
        assert 1.05 / (series + 0.05) >= 3  # on white, as WCAG asks of graphics
    assert theme.plot_colors(name)[0] != theme.plot_colors(name)[1]


def test_the_sign_in_page_follows_the_theme():
    for name in ("ocean", "soft"):
        config = Settings(app_theme=name, app_username="alice", app_password="secret-word")
        page = Web(config, without_gpu=False).sign_in.page(VISIT)
        assert f"background: {theme.button_color(name)};" in page.body.decode()
