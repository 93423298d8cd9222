"""How the page's events run: their options, the handlers that Gradio calls, and what becomes of their failures.

One visitor's action is one event: a chain of small events before the first token would cost more than the answer.
Streaming handlers are plain generators; closing one closes its connection to the engine.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import gradio as gr
from pydantic import ValidationError, validate_call
from starlette.requests import Request

from vllm_space import errors

log = logging.getLogger(__name__)

GENERATION = "generation"  # every event that makes the engine work shares one concurrency limit
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
}  # programs have /chat and /complete
UNQUEUED: dict[str, Any] = {"queue": False, **PRIVATE}
# gradio 6.31: values go in and out as the browser has them, since preprocessing and postprocessing hop to another
# thread for each input and each update (gradio#13168), which costs more than the streaming itself.
_RAW: dict[str, Any] = {"preprocess": False, "postprocess": False}
UNQUEUED_RAW: dict[str, Any] = UNQUEUED | _RAW
# Visitors who wait in the queue see their place.
STREAM: dict[str, Any] = {
    "concurrency_id": GENERATION,
    **PRIVATE,
    **_RAW,
    "show_progress": "minimal",
}

_END = object()
_THREADS = anyio.CapacityLimiter(math.inf)  # the queue bounds how many handlers run


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function or a generator the handler of an event.

    Its arguments are checked against its annotations. Its SpaceErrors are shown as their sentences; anything else that
    it raises goes to the log, and the visitor sees that it was not their mistake. A generator is closed when its event
    is over: finished, stopped, or its visitor gone.
    """
    checked = _checked(function)
    if inspect.isgeneratorfunction(function):
        return streaming(checked)

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with _sentences():
            return checked(*arguments, **named)

    return run


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises Rejected for arguments that its annotations do not allow."""
    validated = validate_call(config={"arbitrary_types_allowed": True})(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return validated(*arguments, **named)
        except ValidationError as error:
            if error.title != function.__qualname__:  # raised within it
                raise
            raise errors.malformed_request() from None

    return call


def streaming(function: Callable[..., Iterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """A generator as a `handler` whose arguments are checked elsewhere."""

    # gradio 6.31: a generator is closed only after its first value was passed on (gradio#13162 is about later ones).
    # An answer that is stopped before that would keep the engine at work until its last token.
    @functools.wraps(function)
    async def run(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
        with _sentences():
            values = function(*arguments, **named)
            if (
                event := asyncio.current_task()
            ):  # Gradio runs an event, all steps of its handler, as one task
                event.add_done_callback(lambda _: asyncio.ensure_future(_close(values)))
            while (
                value := await anyio.to_thread.run_sync(next, values, _END, limiter=_THREADS)
            ) is not _END:
                yield value

    return run


async def _close(values: Iterator[Any]) -> None:
    while isinstance(values, Generator):
        try:
            values.close()
            return
        except ValueError:  # it runs, in a thread that nothing can interrupt, until its next value
            await asyncio.sleep(0.02)


@contextmanager
def _sentences() -> Iterator[None]:
    """What is raised inside reaches the visitor, or the calling program, as one sentence."""
    try:
        yield
    except errors.SpaceError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        log.exception("an event failed")
        raise gr.Error(str(errors.internal()), print_exception=False) from None


def http(request: gr.Request) -> Request:
    """The HTTP request that began an event."""
    if request.request is None:
        raise RuntimeError("an event without an HTTP request")
    return request.request


def event_value(data: gr.EventData, name: str) -> Any:
    """What the browser says of an event, such as the index of the message it is about. Raises Rejected if it does not.

    gradio 6.31: gr.SelectData and the like raise whatever they raise for an event without data.
    """
    values = data._data
    if not isinstance(values, dict) or name not in values:
        raise errors.malformed_request()
    return values[name]
