"""The page in a browser: where things are on it, and what visitors do."""

from __future__ import annotations

from playwright.sync_api import Page, expect

ANSWER = "#chatbot [data-testid=bot]:not(:has(small))"  # the small print beneath is the numbers
NUMBERS = "#chatbot small"


def ask(page: Page, text: str) -> None:
    """Send a message in the chat, once the answer before it is over: its numbers stand there some ms earlier."""
    page.get_by_placeholder("Type a message").fill(text)
    expect(page.locator("#message .stop-button")).to_have_count(0)
    page.keyboard.press("Enter")
