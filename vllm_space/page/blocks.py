"""gr.Blocks that rejects, with a sentence, values that no event handler can take."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from vllm_space import errors

log = logging.getLogger(__name__)


class Blocks(gr.Blocks):
    """A page on which a malformed request is the sender's mistake, not a failure of the page."""

    async def preprocess_data(self, *arguments: Any, **options: Any) -> list[Any]:
        """Turn the values of an event's inputs into its handler's arguments.

        This is where requests enter Gradio. gradio 6.31: values of a wrong type, too many or too
        few, or a file that was not uploaded raise any exception, and the answer is HTTP 500, as for
        a bug.
        """
        try:
            values: list[Any] = await super().preprocess_data(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            log.info("a request was rejected: %s", type(error).__name__)
            raise gr.Error(str(errors.malformed_request()), print_exception=False) from None
        return values
