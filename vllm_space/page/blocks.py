"""gr.Blocks that refuses, with a sentence, what an event's handler cannot be given."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from vllm_space import errors

log = logging.getLogger(__name__)


class Blocks(gr.Blocks):
    """A page to which a malformed request is the visitor's mistake, not a failure of the page."""

    async def preprocess_data(self, *arguments: Any, **named: Any) -> list[Any]:
        """Turn the values of an event's inputs into its handler's arguments: the place where requests enter Gradio.

        gradio 6.31: values of a wrong type, a wrong number of them, or a file that is not an upload raise whatever
        they raise, which is answered with HTTP 500 like a bug.
        """
        try:
            values: list[Any] = await super().preprocess_data(*arguments, **named)
        except gr.Error:
            raise
        except Exception as error:
            log.info("a request was rejected: %s", type(error).__name__)
            raise gr.Error(str(errors.malformed_request()), print_exception=False) from None
        return values
