"""The page in Chromium: selectors, and what visitors do."""

from __future__ import annotations

from playwright.sync_api import FrameLocator, Locator, Page, expect

QUESTION = "#chatbot [data-testid=user]"
ANSWER = "#chatbot [data-testid=bot]:not(:has(small))"  # <small> are the numbers
NUMBERS = "#chatbot small"
STOP = "#message .stop-button"


def message_box(page: Page | FrameLocator) -> Locator:
    return page.get_by_placeholder("Type a message")


def ask(page: Page, text: str) -> None:
    """Send a chat message as soon as the previous answer has ended.

    The Stop button says so; the numbers below an answer appear a few milliseconds too early.
    """
    message_box(page).fill(text)
    expect(page.locator(STOP)).to_have_count(0)
    page.keyboard.press("Enter")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def sign_in(page: Page | FrameLocator, name: str, password: str) -> None:
    """Fill in the login page."""
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in", exact=True).click()


def pass_time(page: Page, seconds: float) -> None:
    """Advance the page's clock, `page.clock.install()`, so that its timers fire.

    The requests that they make are sent when this returns.
    """
    page.clock.run_for(int(seconds * 1000))
    page.evaluate("fetch('healthz')")
