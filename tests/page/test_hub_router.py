"""A page without a GPU: MODEL_URL, MODEL_API_KEY and MODEL_ID, and a model of the Hub's router."""

import gradio_client
import pytest
import requests
from playwright.sync_api import expect

from support.chromium import ANSWER, ask
from support.hub_router import NAMES, VISION, HubRouter
from support.programs import API_KEY, KEY


def test_any_model_of_the_router_chats(page, visit):
    first = f"{NAMES[99]}:fast"  # of a certain provider, which the list does not name
    with HubRouter("hf_marked").running() as router:
        url = page(router.url, MODEL_ID=first, MODEL_API_KEY="hf_marked", API_KEYS=API_KEY)
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        tab = visit(url)
        picker = tab.get_by_label("Model", exact=True)
        expect(picker).to_have_value(first)
        expect(tab.locator("#about")).not_to_contain_text("vLLM")
        expect(tab.locator("#banner")).to_be_hidden()
        ask(tab, "Hi")
        expect(tab.locator(ANSWER)).to_have_text("Hello")
        assert router.requests[-1]["model"] == first

        picker.click()
        tab.keyboard.press("Control+a")
        tab.keyboard.type("model-7")  # filters the list
        options = tab.get_by_role("option")
        expect(options).to_have_count(sum("model-7" in name for name in NAMES))
        tab.get_by_role("option", name=VISION, exact=True).click()
        ask(tab, "And you?")
        expect(tab.locator(ANSWER)).to_have_count(2)
        assert router.requests[-1]["model"] == VISION

        chat = gradio_client.Client(url, verbose=False)
        assert chat.predict("Hi", api_name="/chat") == "Hello"
        assert router.requests[-1]["model"] == first
        body = {"model": NAMES[3], "messages": [{"role": "user", "content": "Hi"}]}
        answer = requests.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=10)
        assert answer.ok
        assert router.requests[-1]["model"] == NAMES[3]


def test_rejected_token_is_explained(page):
    with HubRouter("hf_right").running() as router:
        url = page(router.url, MODEL_ID="maker/none", MODEL_API_KEY="hf_wrong")
        chat = gradio_client.Client(url, verbose=False)
        with pytest.raises(Exception, match=r"MODEL_API_KEY.*Invalid username or password"):
            chat.predict("Hi", api_name="/chat")
