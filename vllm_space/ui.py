"""The page: Gradio only. It knows no sockets, no processes and no environment.

One visitor's action is one event: a chain of small events before the first token would cost more than the
answer (DESIGN section 5). The streaming handlers are plain generators; Gradio closes them when the visitor
presses Stop or leaves, and that closes the connection to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from vllm_space import client, errors, sampling
from vllm_space.client import Catalog, Message
from vllm_space.hardware import Space
from vllm_space.settings import DEMO_MODEL_NAME, Settings
from vllm_space.streaming import Answer, Streams

History = list[dict[str, Any]]  # what gr.Chatbot holds: {"role", "content": [{"type": "text", "text"}], "metadata"}

GENERATION = "generation"  # every event that makes the engine work shares one concurrency limit

# Labels and explanations of the sampling parameters, in the visitor's words.
CONTROLS = {
    "max_tokens": ("Max tokens", "Longest answer"),
    "temperature": ("Temperature", "0 is the same answer every time, higher is more varied"),
    "top_p": ("Top-p", "Sample from the likeliest tokens that make up this share"),
    "top_k": ("Top-k", "Sample from this many of the likeliest tokens"),
    "min_p": ("Min-p", "Leave out tokens less likely than this, relative to the likeliest"),
    "repetition_penalty": ("Repetition penalty", "Above 1 discourages repetition"),
    "presence_penalty": ("Presence penalty", "Above 0 discourages tokens that were used"),
    "frequency_penalty": ("Frequency penalty", "Above 0 discourages tokens the more they were used"),
    "seed": ("Seed", "The same seed repeats the same sample"),
    "stop": ("Stop sequences", "The answer ends before any of these; one a line"),
}
ALWAYS_SHOWN = ("max_tokens", "temperature", "top_p")

DEMO_EXAMPLES = (
    "What is this Space?",
    "How do I use another model?",
    "How do I put a password on this page?",
    "How do I call the API from Python?",
    "Explain step by step how to deploy this Space.",
)
EXAMPLES = (
    "Explain the difference between a process and a thread in three sentences.",
    "Write a Python function that checks whether a string is a palindrome.",
    "What should I cook with eggs, spinach and feta?",
    "Help me word a polite reminder about an unpaid invoice.",
)
DEMO_NOTE = (
    "This is a **demo model** of 3 million parameters that runs on any CPU. It answers questions about this "
    "Space and knows nothing else. Set `MODEL_ID` to serve a real one."
)

NO_GPU = """
## One step left: this Space needs a GPU

{kind}, and vLLM needs one for as long as it serves.

1. Open the **[settings of this Space]({settings})**.
2. Under *Space hardware* choose a GPU. The smallest fits the default model; the
   **[price list](https://huggingface.co/pricing#spaces)** says what each costs, and *Sleep time* in the same settings
   stops the cost when nobody comes.
3. Confirm. The Space restarts by itself, and this page becomes the chat.

**No GPU wanted?** Set the variable `MODEL_URL` to a model server that runs elsewhere (any OpenAI-compatible address),
and its key as the secret `MODEL_API_KEY`: then this Space is the page and runs on free hardware.
"""

CSS = """
.gradio-container > .main { max-width: 1280px; width: 100%; margin: 0 auto; }
#chatbot { height: calc(100dvh - 21rem) !important; min-height: 22rem; }
#about, #numbers { font-size: var(--text-sm); }
#numbers { min-height: 1.25rem; color: var(--body-text-color-subdued); }
#text textarea { font-family: var(--font-mono); }
"""


LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

PRIVATE = {"api_visibility": "private"}  # for the page alone; programs have /chat and /complete
STREAM = {"show_progress": "hidden", "concurrency_id": GENERATION, **PRIVATE}


def theme(name: str) -> gr.themes.Base:
    """One of Gradio's themes, in the fonts of the visitor's system: no request leaves for a font server."""
    return {
        "default": gr.themes.Default,
        "base": gr.themes.Base,
        "citrus": gr.themes.Citrus,
        "glass": gr.themes.Glass,
        "monochrome": gr.themes.Monochrome,
        "ocean": gr.themes.Ocean,
        "origin": gr.themes.Origin,
        "soft": gr.themes.Soft,
    }[name](font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"])


def build(config: Settings, catalog: Catalog) -> gr.Blocks:
    """The whole page. Nothing is asked of a server until a visitor comes."""
    page = Page(config, catalog)
    with gr.Blocks(title=config.app_title, analytics_enabled=False, fill_height=True, fill_width=True) as demo:
        page.header()
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320), gr.Tabs():
                with gr.Tab("Chat"):
                    page.chat_tab()
                with gr.Tab("Completion"):
                    page.completion_tab()
            with gr.Column(scale=1, min_width=260):
                page.controls_column()
        page.wire_chat()
        page.wire_completion()
        page.wire_api()
        demo.load(page.greet, None, [page.about, page.model, page.chatbot], show_progress="hidden", **PRIVATE)
    return demo


def build_without_gpu(config: Settings, space: Space) -> gr.Blocks:
    """What the owner of a fresh duplicate sees first: the Space has no GPU, and how to give it one."""
    kind = "ZeroGPU lends a GPU for seconds only" if space.zero_gpu else "This hardware has no GPU"
    with gr.Blocks(title=config.app_title, analytics_enabled=False) as demo:
        gr.Markdown(f"# {config.app_title}\n\n" + NO_GPU.format(kind=kind, settings=space.settings_url))
    return demo


class Page:
    """The page's components and handlers, with what they share: settings, models, and the streams that run."""

    def __init__(self, config: Settings, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.streams = Streams()

    # -- what is on it -------------------------------------------------------------------------------------

    def header(self) -> None:
        with gr.Row(equal_height=True):
            with gr.Column(scale=4, min_width=320):
                gr.Markdown(f"# {self.config.app_title}")
                if self.config.app_description:
                    gr.Markdown(self.config.app_description)
                self.about = gr.Markdown(elem_id="about")
            with gr.Column(scale=1, min_width=260):
                self.model = gr.Dropdown(label="Model", choices=[], visible=False, interactive=True)
                if self.config.oauth_allowed:
                    gr.LoginButton()

    def chat_tab(self) -> None:
        self.chatbot = gr.Chatbot(
            elem_id="chatbot",
            label="Conversation",
            show_label=False,
            editable="user",
            buttons=["copy", "copy_all"],
            latex_delimiters=LATEX,
            placeholder="Ask something.",
            layout="bubble",
        )
        self.message = gr.Textbox(
            label="Your message",
            show_label=False,
            placeholder="Type a message and press Enter",
            submit_btn=True,
            max_lines=12,
            autofocus=True,
        )
        self.numbers = gr.Markdown(elem_id="numbers")

    def completion_tab(self) -> None:
        self.text = gr.Textbox(
            elem_id="text",
            label="Text",
            info="The model continues this text in place.",
            lines=18,
            max_lines=18,
            buttons=["copy"],
        )
        self.before = gr.State("")  # the text before the last completion, for Undo
        with gr.Row():
            self.complete = gr.Button("Complete", variant="primary")
            self.stop = gr.Button("Stop", variant="stop", interactive=False)
            self.undo = gr.Button("Undo", interactive=False)
        self.text_numbers = gr.Markdown()

    def controls_column(self) -> None:
        self.system_prompt = gr.Textbox(
            self.config.system_prompt, label="System prompt", info="Instruction before the conversation", lines=2
        )
        self.controls = [self._control(name) for name in ALWAYS_SHOWN]
        with gr.Accordion("More", open=False):
            self.controls += [self._control(name) for name in sampling.NAMES if name not in ALWAYS_SHOWN]

    def _control(self, name: str) -> gr.Textbox:
        # Text, not gr.Number: a number cannot be empty there, and empty is what leaves a parameter to the model.
        label, info = CONTROLS[name]
        value = sampling.defaults(self.config)[name]
        return gr.Textbox(
            "" if value is None else str(value),
            label=label,
            info=info,
            lines=2 if name == "stop" else 1,
            max_lines=4 if name == "stop" else 1,
            placeholder="none" if name == "stop" else "model default",
        )

    # -- what happens ----------------------------------------------------------------------------------------

    def wire_chat(self) -> None:
        controls = [self.system_prompt, self.model, *self.controls]
        outputs = [self.chatbot, self.message, self.numbers]
        running = [
            self.message.submit(self.send, [self.message, self.chatbot, *controls], outputs, **STREAM),
            self.chatbot.retry(self.retry, [self.chatbot, *controls], outputs, **STREAM),
            self.chatbot.edit(self.edit, [self.chatbot, *controls], outputs, **STREAM),
            self.chatbot.example_select(self.example, controls, outputs, **STREAM),
        ]
        self.message.stop(self.ready_to_send, None, self.message, cancels=running, queue=False, **PRIVATE)
        self.chatbot.undo(self.undo_turn, self.chatbot, [self.chatbot, self.message], queue=False, **PRIVATE)

    def wire_completion(self) -> None:
        buttons = [self.complete, self.stop, self.undo]
        running = self.complete.click(
            self.continue_text,
            [self.text, self.model, *self.controls],
            [self.text, self.before, *buttons, self.text_numbers],
            **STREAM,
        )
        self.stop.click(self.completion_buttons, None, buttons, cancels=[running], queue=False, **PRIVATE)
        self.undo.click(lambda before: (before, gr.Button(interactive=False)), self.before, [self.text, self.undo],
                        queue=False, **PRIVATE)  # fmt: skip

    def greet(self) -> tuple[str, gr.Dropdown, gr.Chatbot]:
        """What depends on the servers, asked anew for each visitor."""
        found = self.catalog.models()
        problems = list(self.catalog.problems().values())
        lines = [f"Served by vLLM: **{model.label}**{_context(model)}" for model in found[:1]] + problems
        demo = any(model.name == DEMO_MODEL_NAME for model in found)
        if demo:
            lines.append(DEMO_NOTE)
        examples = self.config.app_examples or (DEMO_EXAMPLES if demo else EXAMPLES)
        labels = [model.label for model in found]
        return (
            "  \n".join(lines),
            gr.Dropdown(choices=labels, value=labels[0] if labels else None, visible=len(labels) > 1),
            gr.Chatbot(examples=[{"text": text} for text in examples]),
        )

    def send(self, text: str, history: History, *controls: Any) -> Iterator[tuple]:
        """Answer a message: the conversation grows while the answer arrives."""
        if not text.strip():
            yield history, gr.skip(), gr.skip()
            return
        history = [*history, _message("user", text)]
        yield history, gr.Textbox("", submit_btn=False, stop_btn=True), ""
        answer = Answer()
        for answer in self._answer(history, *controls):
            yield history + _shown(answer), gr.skip(), gr.skip()
        yield history + _shown(answer, ended=True), self.ready_to_send(), _numbers(answer)

    def retry(self, data: gr.RetryData, history: History, *controls: Any) -> Iterator[tuple]:
        turn = _turn(history, data.index)
        yield from self.send(_text(history[turn]), history[:turn], *controls)

    def edit(self, data: gr.EditData, history: History, *controls: Any) -> Iterator[tuple]:
        turn = _turn(history, data.index)
        yield from self.send(data.value, history[:turn], *controls)

    def example(self, data: gr.SelectData, *controls: Any) -> Iterator[tuple]:
        yield from self.send(data.value["text"], [], *controls)

    def undo_turn(self, data: gr.UndoData, history: History) -> tuple[History, str]:
        """Take the last turn back; its message returns to the text box, ready to be changed."""
        turn = _turn(history, data.index)
        return history[:turn], _text(history[turn])

    def ready_to_send(self) -> gr.Textbox:
        return gr.Textbox(submit_btn=True, stop_btn=False)

    def _answer(self, history: History, system_prompt: str, model: str | None, *values: Any) -> Iterator[Answer]:
        """The growing answer to a conversation; whatever goes wrong becomes its error."""
        messages = _to_messages(history, system_prompt)
        try:
            pieces = client.chat(self.catalog.find(model), messages, self._fields(values))
        except errors.SpaceError as error:
            yield Answer(error=str(error))
        else:
            yield from self.streams.follow(pieces)

    def _fields(self, values: tuple) -> dict[str, Any]:
        names = [*ALWAYS_SHOWN, *(name for name in sampling.NAMES if name not in ALWAYS_SHOWN)]
        return sampling.request_fields(dict(zip(names, values, strict=True)), self.config.max_tokens_limit)

    def continue_text(self, text: str, model: str | None, *values: Any) -> Iterator[tuple]:
        """Continue a text in place."""
        buttons = gr.Button(interactive=False), gr.Button(interactive=True), gr.Button(interactive=False)
        yield gr.skip(), text, *buttons, ""
        skip = [gr.skip()] * 4
        answer = Answer()
        try:
            pieces = client.complete(self.catalog.find(model), text, self._fields(values))
        except errors.SpaceError as error:
            answer.error = str(error)
        else:
            for answer in self.streams.follow(pieces):
                yield text + answer.text, *skip, gr.skip()
        note = f"⚠️ {answer.error}" if answer.error else _numbers(answer)
        yield text + answer.text, gr.skip(), *self.completion_buttons(), note

    def completion_buttons(self) -> tuple[gr.Button, gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False), gr.Button(interactive=True)

    # -- the same for programs: Gradio API endpoints, which are MCP tools too ------------------------------------

    def wire_api(self) -> None:
        defaults = sampling.defaults(self.config)
        owner_system_prompt = self.config.system_prompt

        def chat(
            message: str,
            history: list[dict] | None = None,
            system_prompt: str = owner_system_prompt,
            model: str = "",
            max_tokens: float | None = defaults["max_tokens"],
            temperature: float | None = defaults["temperature"],
            top_p: float | None = defaults["top_p"],
            stop: str | None = defaults["stop"],
            seed: float | None = defaults["seed"],
        ) -> Iterator[str]:
            """
            Answer a message with the language model of this Space.

            Parameters:
                message: what to ask
                history: earlier messages, each {"role": "user" or "assistant", "content": text}
                system_prompt: instruction before the conversation
                model: name of the model; empty for the first
                max_tokens: the most tokens the answer may have
                temperature: 0 is the same answer every time, higher is more varied; null for the model's own
                top_p: share of the likeliest tokens to sample from; null for the model's own
                stop: the answer ends before any of these, one a line
                seed: the same seed repeats the same sample
            Returns:
                the answer so far, growing until it is complete
            """
            values = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop, "seed": seed}
            with _sentences():
                messages = _checked_messages(history or [], system_prompt, message)
                fields = sampling.request_fields(defaults | values, self.config.max_tokens_limit)
                yield from self._texts(client.chat(self.catalog.find(model), messages, fields))

        def complete(
            prompt: str,
            model: str = "",
            max_tokens: float | None = defaults["max_tokens"],
            temperature: float | None = defaults["temperature"],
            top_p: float | None = defaults["top_p"],
            stop: str | None = defaults["stop"],
            seed: float | None = defaults["seed"],
        ) -> Iterator[str]:
            """
            Continue a text with the language model of this Space.

            Parameters:
                prompt: the text to continue
                model: name of the model; empty for the first
                max_tokens: the most tokens the continuation may have
                temperature: 0 is the same text every time, higher is more varied; null for the model's own
                top_p: share of the likeliest tokens to sample from; null for the model's own
                stop: the text ends before any of these, one a line
                seed: the same seed repeats the same sample
            Returns:
                the continuation so far, without the prompt, growing until it is complete
            """
            values = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop, "seed": seed}
            with _sentences():
                fields = sampling.request_fields(defaults | values, self.config.max_tokens_limit)
                yield from self._texts(client.complete(self.catalog.find(model), prompt, fields))

        for endpoint in (chat, complete):
            gr.api(endpoint, concurrency_limit=self.config.max_concurrency, concurrency_id=GENERATION)

    def _texts(self, pieces: Iterator[client.Piece]) -> Iterator[str]:
        answer = Answer()
        for answer in self.streams.follow(pieces):
            yield answer.text
        if answer.error:
            raise errors.SpaceError(answer.error)


# -- between what the page shows and what the engine is sent -----------------------------------------------------


def _message(role: str, text: str, **metadata: Any) -> dict[str, Any]:
    # As a typed part: Gradio would re-indent a plain string, and with it the code in it.
    return {"role": role, "content": [{"type": "text", "text": text}], "metadata": metadata or None}


def _text(message: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")


def _to_messages(history: History, system_prompt: str) -> list[Message]:
    """The conversation for the engine. What has a title is a note of the page (thinking, an error) and is left out."""
    messages: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    for message in history:
        if not (message.get("metadata") or {}).get("title"):
            messages.append({"role": message["role"], "content": _text(message)})
    return messages


def _checked_messages(history: list[dict], system_prompt: str, message: str) -> list[Message]:
    """A conversation that a program sent. Raises Refused where it is none."""
    for turn in history:
        if not (
            isinstance(turn, dict)
            and turn.get("role") in ("user", "assistant")
            and isinstance(turn.get("content"), str)
        ):
            raise errors.Refused('Each message of the history is {"role": "user" or "assistant", "content": "text"}.')
    system = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in history]
    return [*system, *turns, {"role": "user", "content": message}]


def _shown(answer: Answer, ended: bool = False) -> History:
    """An answer as messages of the page: its thinking, its text, its error, each where there is one."""
    shown = []
    if answer.reasoning:
        done = ended or bool(answer.text)
        took = {"duration": round(answer.thinking_time, 1)} if answer.thinking_time is not None else {}
        title = "Thought" if done else "Thinking"
        shown.append(_message("assistant", answer.reasoning, title=title, status="done" if done else "pending", **took))
    if answer.text:
        shown.append(_message("assistant", answer.text))
    if answer.error:
        shown.append(
            _message("assistant", answer.error, title="⚠️ The answer is incomplete" if answer.text else "⚠️ No answer")
        )
    elif ended and not shown:
        shown.append(_message("assistant", "The model ended its answer at once, without a word.", title="Empty answer"))
    return shown


def _turn(history: History, index: int | tuple[int, int] | list[int]) -> int:
    """Index of the user's message that an event on the conversation is about."""
    turn = min(index if isinstance(index, int) else index[0], len(history) - 1)
    while turn > 0 and history[turn]["role"] != "user":
        turn -= 1
    return turn


def _context(model: client.Model) -> str:
    return f" · context of {model.context_length:,} tokens" if model.context_length else ""


def _numbers(answer: Answer) -> str:
    """Tokens, speed and time to first token of an answer, small."""
    tokens = (answer.usage or {}).get("completion_tokens")
    if not tokens or answer.first_token_after is None:
        return ""
    parts = [
        f"{tokens} tokens",
        f"{tokens / answer.elapsed:.0f} tokens/s",
        f"first after {answer.first_token_after:.2f} s",
    ]
    if answer.finish_reason == "length":
        parts.append("stopped at max tokens")
    return " · ".join(parts)


@contextmanager
def _sentences() -> Iterator[None]:
    """A SpaceError inside reaches the calling program as its sentence."""
    try:
        yield
    except errors.SpaceError as error:
        raise gr.Error(str(error), print_exception=False) from None
