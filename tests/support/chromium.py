"""The page in Chromium: selectors, and what visitors do."""

from __future__ import annotations

from playwright.sync_api import Page, expect

ANSWER = "#chatbot [data-testid=bot]:not(:has(small))"  # <small> are the numbers
NUMBERS = "#chatbot small"


def ask(page: Page, text: str) -> None:
    """Send a chat message as soon as the previous answer has ended.

    The Stop button says so; the numbers below an answer appear a few milliseconds too early.
    """
    page.get_by_placeholder("Type a message").fill(text)
    expect(page.locator("#message .stop-button")).to_have_count(0)
    page.keyboard.press("Enter")
