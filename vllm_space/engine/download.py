"""Downloads a model's weights while Python is still importing vLLM, to save time.

vLLM finds the files in the Hub's cache, or waits there for a file that is being downloaded. It
downloads whatever is missing, including everything if this fails, and reports any error itself.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from vllm_space import settings
from vllm_space.engine import command
from vllm_space.settings import Settings

log = logging.getLogger(__name__)

MIB = 2**20
PARALLEL_DOWNLOADS = 4
PROGRESS_EVERY = 10  # seconds between two lines of progress
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# With these flags vLLM loads other files, or stores them elsewhere.
OTHER_FILES = re.compile(r"--(load-format|download-dir|revision|hf-overrides)")


def fetch_in_background(config: Settings, model: str, say: Callable[[str], None]) -> None:
    """Start downloading the weights from the Hub, if it is clear which files vLLM will load."""
    _start_thread(_fetch, config, model, say)


def _start_thread(function: Callable[..., None], *args: Any) -> None:
    # A daemon thread, unlike an executor's, does not keep the process from exiting.
    threading.Thread(target=function, args=args, daemon=True).start()


def _fetch(config: Settings, model: str, say: Callable[[str], None]) -> None:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or settings.models_are_elsewhere():
        return
    if command.is_local(model) or "://" in model:
        return
    if command.has_flag(config, OTHER_FILES):
        return
    hub = HfApi(token=config.hf_token.get_secret_value() if config.hf_token else False)
    try:
        info = hub.model_info(model, revision=config.model_revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if any(name.startswith("consolidated") for name in sizes):
            return  # the weights exist in Mistral's format too, and vLLM chooses
        names = deque(name for name in sizes if WEIGHTS.fullmatch(name))
        progress = _progress_class(sum(sizes[name] for name in names), say)
    except Exception as error:
        log.debug("leaving the download to vLLM: %s", error)
        return

    def work() -> None:
        while names:
            with suppress(Exception):
                hub.hf_hub_download(
                    model, names.popleft(), revision=config.model_revision, tqdm_class=progress
                )

    for _ in range(PARALLEL_DOWNLOADS):
        _start_thread(work)


def _progress_class(total: int, say: Callable[[str], None]) -> type:
    """A progress bar class for huggingface_hub that prints a line for all files now and then."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    done, last_line = 0.0, time.monotonic()

    class Progress(tqdm):
        monitor_interval = 0  # no monitor thread

        def __init__(self, *args: Any, **kwargs: Any):
            cast(Any, super()).__init__(*args, **kwargs)  # it has no types
            self.update(self.n)  # the part of the file that an earlier start downloaded

        def update(self, n: float | None = 1) -> None:
            nonlocal done, last_line
            with lock:
                done += n or 0
                if time.monotonic() - last_line > PROGRESS_EVERY:
                    last_line = time.monotonic()
                    say(f"Downloading weights: {done / MIB:,.0f} of {total / MIB:,.0f} MiB")

        def display(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Progress
