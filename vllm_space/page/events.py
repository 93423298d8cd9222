"""How the page's events run: their options, their handlers, and what the visitor sees of failures.

One action of a visitor is one event: a chain of small events before the first token would cost more
than the answer. Streaming handlers are plain generators; closing one closes its connection to the
engine.
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

# Options of an event. Programs get /chat and /complete (endpoints.py); everything else is private.
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# gradio 6.31: values go in and out as the browser has them, since preprocessing and postprocessing
# hop to another thread for each input and each update (gradio#13168), which costs more than the
# streaming itself.
_RAW: dict[str, Any] = {"preprocess": False, "postprocess": False}

GENERATION = "generation"  # the concurrency limit shared by all events that generate text
UNQUEUED: dict[str, Any] = _PRIVATE | {"queue": False}
UNQUEUED_RAW: dict[str, Any] = UNQUEUED | _RAW
# With minimal progress, waiting visitors see their position in the queue.
STREAM: dict[str, Any] = (
    _PRIVATE | _RAW | {"concurrency_id": GENERATION, "show_progress": "minimal"}
)

_END = object()
_THREADS = anyio.CapacityLimiter(math.inf)  # the queue limits how many handlers run


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function or a generator the handler of an event.

    Its arguments are checked against its annotations. A SpaceError it raises is shown to the
    visitor; any other exception is logged, and the visitor reads that it was not their mistake. A
    generator is closed when its event is over: finished, stopped, or abandoned by its visitor.
    """
    checked = _checked(function)
    if inspect.isgeneratorfunction(function):
        return streaming(checked)

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with _errors_shown():
            return checked(*arguments, **options)

    return run


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function: arguments that its annotations do not allow raise Rejected."""
    validated = validate_call(config={"arbitrary_types_allowed": True})(function)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return validated(*arguments, **options)
        except ValidationError as error:
            if error.title != function.__qualname__:  # raised by the function's own code
                raise
            raise errors.malformed_request() from None

    return call


def streaming(function: Callable[..., Iterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """As `handler`, for a generator that checks its own arguments."""

    # gradio 6.31: a generator is closed only after its first value was passed on (gradio#13162 is
    # about later ones). An answer stopped before that would keep the engine busy to its last token.
    @functools.wraps(function)
    async def run(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        with _errors_shown():
            values = function(*arguments, **options)
            if task := asyncio.current_task():  # Gradio runs all steps of an event as one task
                task.add_done_callback(lambda _: asyncio.ensure_future(_close(values)))
            while True:
                value = await anyio.to_thread.run_sync(next, values, _END, limiter=_THREADS)
                if value is _END:
                    break
                yield value

    return run


async def _close(values: Iterator[Any]) -> None:
    while isinstance(values, Generator):
        try:
            values.close()
            return
        except ValueError:  # it is running, in a thread that cannot be interrupted before it yields
            await asyncio.sleep(0.02)


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Turn exceptions into error messages for the visitor or the calling program."""
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
    """The HTTP request that started an event."""
    if request.request is None:
        raise RuntimeError("an event without an HTTP request")
    return request.request


def event_value(data: gr.EventData, name: str) -> Any:
    """A value that the browser sends with an event, such as the index of the message it is about.

    Raises Rejected if there is none. gradio 6.31: gr.SelectData and the like raise any exception
    for an event without data.
    """
    values = data._data
    if not isinstance(values, dict) or name not in values:
        raise errors.malformed_request()
    return values[name]
