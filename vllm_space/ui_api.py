"""The API tab: programs to paste, with this Space's own address, and the endpoints /chat and /complete themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from vllm_space import auth, client, errors, sampling, snippets
from vllm_space.client import Message
from vllm_space.streaming import Answer
from vllm_space.ui_controls import GENERATION, Controls, ends_with_its_event

CLOSED = (
    "⚠️ **`/v1` is closed**: the owner of this Space has set no `API_KEYS`. The first three programs work once that "
    "secret is set and its key is in your variable `API_KEY`."
)
OPEN = "`/v1` is open to those who hold a key of this Space: put it into the variable `API_KEY`."
LOGIN = "The page asks for a login: `gradio_client` needs a name and a password of it, and MCP clients cannot pass it."


class ApiTab:
    def __init__(self, controls: Controls, guard: auth.Guard):
        self.controls = controls
        self.config = controls.config
        self.guard = guard

    def tab(self) -> None:
        gr.Markdown("\n\n".join([OPEN if self.config.api_keys else CLOSED, *([LOGIN] if self.guard.closed else [])]))
        self.programs = []
        with gr.Tabs():
            for title, (language, _) in snippets.ALL.items():
                with gr.Tab(title):
                    program = gr.Code(
                        label=title, language=language, interactive=False, show_label=False, show_line_numbers=False,
                        buttons=["copy"], elem_classes="snippet",
                    )  # fmt: skip
                    self.programs.append(program)
        gr.Markdown(
            "Every program asks the model one question. The page's own endpoints are listed under *Use via API*."
        )

    def wire(self, tab: gr.Tab) -> None:
        tab.select(
            self.fill, self.controls.model, self.programs, queue=False, api_visibility="private", show_progress="hidden"
        )

    def fill(self, label: str | None, request: gr.Request) -> list[str]:
        """The programs for the address that the visitor came by, and the model that is picked."""
        several = len(self.controls.catalog.servers) > 1
        try:
            model = self.controls.catalog.find(label)
            name = model.label if several else model.name
        except errors.SpaceError:
            name = "model"
        return list(snippets.write(self._address(request), name, self.guard.closed).values())

    def _address(self, request: gr.Request) -> str:
        space = self.guard.space
        if space and space.host:
            return f"https://{space.host.split(',')[0]}"
        scheme = request.headers.get("x-forwarded-proto", request.request.url.scheme)
        return f"{scheme}://{request.headers['host']}{request.request.scope.get('root_path', '')}".rstrip("/")

    # -- the same for programs: Gradio API endpoints, which are MCP tools too ----------------------------------

    def endpoints(self) -> None:
        defaults = sampling.defaults(self.config)
        owner_system_prompt = self.config.system_prompt

        @ends_with_its_event
        def chat(
            request: gr.Request,
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
                yield from self._texts(request, client.chat(self.controls.catalog.find(model), messages, fields))

        @ends_with_its_event
        def complete(
            request: gr.Request,
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
                yield from self._texts(request, client.complete(self.controls.catalog.find(model), prompt, fields))

        for endpoint in (chat, complete):
            gr.api(endpoint, concurrency_limit=self.config.max_concurrency, concurrency_id=GENERATION)

    def _texts(self, request: gr.Request, stream: client.Stream) -> Iterator[str]:
        answer = Answer()
        for answer in self.controls.streams.follow(stream, self.controls.visitor(request)):
            yield answer.text
        if answer.error:
            raise errors.SpaceError(answer.error)


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


@contextmanager
def _sentences() -> Iterator[None]:
    """A SpaceError inside reaches the calling program as its sentence."""
    try:
        yield
    except errors.SpaceError as error:
        raise gr.Error(str(error), print_exception=False) from None
