"""What all tabs share: the model picker, the system prompt, the sampling controls, and the way to an answer."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import anyio
import gradio as gr

from vllm_space import client, errors, sampling
from vllm_space.auth import Guard
from vllm_space.client import Catalog, Message, Model
from vllm_space.settings import Settings
from vllm_space.streaming import Answer, Streams

GENERATION = "generation"  # every event that makes the engine work shares one concurrency limit
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}  # programs have /chat and /complete
AT_ONCE = {"queue": False, **PRIVATE}
# Values go in and out as the browser has them: a hop to another thread for each input and each update costs more than
# it brings, since Gradio has checked their types before.
_AS_THEY_ARE = {"preprocess": False, "postprocess": False}
RAW = AT_ONCE | _AS_THEY_ARE
# Those who wait for their turn see their place.
STREAM = {"concurrency_id": GENERATION, **PRIVATE, **_AS_THEY_ARE, "show_progress": "minimal"}

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
ORDER = (*ALWAYS_SHOWN, *(name for name in sampling.NAMES if name not in ALWAYS_SHOWN))
LOOK_AGAIN = 3  # seconds between two looks at an engine that does not answer
ROOM = 512  # tokens that a chat template may add to what a visitor sees

_END = object()
_THREADS = anyio.CapacityLimiter(math.inf)  # the queue bounds how many handlers run


def ends_with_its_event(handler: Callable[..., Generator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """A generator as the handler of an event: closed as soon as the event is over, finished, stopped or left.

    Gradio itself closes only one whose first value it has passed on: an answer that is stopped before that would
    keep the engine at work until its last token.
    """

    @functools.wraps(handler)
    async def run(*args: Any, **named: Any) -> AsyncIterator[Any]:
        values = handler(*args, **named)
        event = asyncio.current_task()  # Gradio runs an event, all steps of its handler, as one task
        event.add_done_callback(lambda _: asyncio.ensure_future(_close(values)))
        while (value := await anyio.to_thread.run_sync(next, values, _END, limiter=_THREADS)) is not _END:
            yield value

    return run


async def _close(values: Generator[Any]) -> None:
    while True:
        try:
            return values.close()
        except ValueError:  # it runs, in a thread that nothing can interrupt, until its next value
            await asyncio.sleep(0.02)


class Controls:
    """The controls beside the tabs, and the streams that run."""

    def __init__(self, config: Settings, catalog: Catalog, guard: Guard):
        self.config = config
        self.catalog = catalog
        self.guard = guard
        # A quarter of all for one visitor, with ten tabs or not; a comparison alone is four.
        self.streams = Streams(per_visitor=max(4, config.max_concurrency // 4))

    def picker(self) -> None:
        self.model = gr.Dropdown(label="Model", choices=[], visible=False, interactive=True)
        # Runs while something is wrong: the page mends itself, without a reload.
        self.again = gr.Timer(LOOK_AGAIN, active=False)

    def column(self) -> None:
        self.system_prompt = gr.Textbox(
            self.config.system_prompt, label="System prompt", info="Instruction before the conversation", lines=2
        )
        self.sampling = [self.control(name) for name in ALWAYS_SHOWN]
        with gr.Accordion("More", open=False):
            self.sampling += [self.control(name) for name in ORDER if name not in ALWAYS_SHOWN]

    def control(self, name: str) -> gr.Textbox:
        # Text, not gr.Number: a number cannot be empty there, and empty is what leaves a parameter to the model.
        # None, not "": Gradio sets a value once more, a frame after its accordion was opened, over what was typed.
        label, info = CONTROLS[name]
        value = sampling.defaults(self.config)[name]
        return gr.Textbox(
            None if value is None else str(value),
            label=label,
            info=info,
            lines=2 if name == "stop" else 1,
            max_lines=4 if name == "stop" else 1,
            placeholder="none" if name == "stop" else "model default",
        )

    def stream(self, messages: list[Message], model: str | None, values: tuple, **others: Any) -> client.Stream:
        """The answer to a conversation, about to be asked for. `others` win over `values`. Raises SpaceError."""
        found = self.catalog.find(model)
        return client.chat(found, messages, self._fit(found, messages, self._fields(values, others)))

    def visitor(self, request: gr.Request) -> str:
        return self.guard.visitor(request.request)

    def answer(
        self, request: gr.Request, messages: list[Message], model: str | None, values: tuple
    ) -> Iterator[Answer]:
        """The growing answer to a conversation; whatever goes wrong becomes its error."""
        try:
            stream = self.stream(messages, model, values)
        except errors.SpaceError as error:
            yield Answer(error=str(error))
        else:
            yield from self.streams.follow(stream, self.visitor(request))

    def continuation(self, request: gr.Request, text: str, model: str | None, values: tuple) -> Iterator[Answer]:
        """The growing continuation of a text. Otherwise as `answer`."""
        try:
            stream = client.complete(self.catalog.find(model), text, self._fields(values, {}))
        except errors.SpaceError as error:
            yield Answer(error=str(error))
        else:
            yield from self.streams.follow(stream, self.visitor(request), verbatim=True)

    def _fields(self, values: tuple, others: dict[str, Any]) -> dict[str, Any]:
        return sampling.request_fields(dict(zip(ORDER, values, strict=True)) | others, self.config.max_tokens_limit)

    @staticmethod
    def _fit(model: Model, messages: list[Message], fields: dict[str, Any]) -> dict[str, Any]:
        """The fields, with max_tokens lowered to the room that is left in the context.

        Raises Refused, with the numbers, where none is. A token is at least a byte, so most need no counting.
        """
        context = model.context_length
        size = sum(len(str(message["content"]).encode()) for message in messages)
        if not context or model.protocol != "openai" or size + ROOM + fields["max_tokens"] <= context:
            return fields
        count = client.count_tokens(model, messages)
        if count is None:
            return fields
        if count >= context:
            raise errors.too_long(count, context)
        return fields | {"max_tokens": min(fields["max_tokens"], context - count)}
