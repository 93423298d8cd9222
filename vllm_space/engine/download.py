"""The download of a model's weights, begun while Python is still importing vLLM, which would begin it afterwards.

vLLM finds them in the Hub's cache, or waits there for the file that is on its way. What it may need besides it fetches
itself; so it does with everything if this fails, and says why.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from vllm_space.settings import Settings

log = logging.getLogger(__name__)

MIB = 2**20
AT_ONCE = 4  # files
TELL_EVERY = 5  # seconds between two lines of progress
USUAL = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# With these vLLM reads other files, or keeps them elsewhere.
OTHERWISE = re.compile(r"--(load-format|download-dir|revision|hf-overrides)")


def fetch_in_background(config: Settings, model: str, say: Callable[[str], None]) -> None:
    """Begin to download what vLLM will load of a model of the Hub; nothing where that is not plain to see."""
    _begin(_fetch, config, model, say)


def _begin(function: Callable[..., None], *args: Any) -> None:
    # Not an executor, whose threads a process that ends would wait for.
    threading.Thread(target=function, args=args, daemon=True).start()


def _fetch(config: Settings, model: str, say: Callable[[str], None]) -> None:
    from huggingface_hub import HfApi, constants

    if (
        constants.HF_HUB_OFFLINE
        or Path(model).exists()
        or OTHERWISE.search(" ".join(config.engine_args))
    ):
        return
    hub = HfApi(token=config.hf_token.get_secret_value() if config.hf_token else False)
    try:
        info = hub.model_info(model, revision=config.model_revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if any(name.startswith("consolidated") for name in sizes):
            return  # the same weights in Mistral's form: vLLM chooses
        names = deque(name for name in sizes if USUAL.fullmatch(name))
        progress = _progress(sum(sizes[name] for name in names), say)
    except Exception as error:
        log.debug("the weights are left to vLLM: %s", error)
        return

    def work() -> None:
        while names:
            with suppress(Exception):
                hub.hf_hub_download(
                    model, names.popleft(), revision=config.model_revision, tqdm_class=progress
                )

    for _ in range(AT_ONCE):
        _begin(work)


def _progress(total: int, say: Callable[[str], None]) -> type:
    """A class for huggingface_hub's progress bars: instead of a bar for each file, now and then a line for all."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    here, told = 0.0, time.monotonic()

    class Progress(tqdm):
        monitor_interval = 0  # no thread that looks after bars

        def __init__(self, *args: Any, **kwargs: Any):
            cast(Any, super()).__init__(*args, **kwargs)  # it has no types
            self.update(self.n)  # what an earlier start had fetched of the file

        def update(self, n: float | None = 1) -> None:
            nonlocal here, told
            with lock:
                here += n or 0
                if time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    say(
                        f"The weights are on their way: {here / MIB:,.0f} of {total / MIB:,.0f} MiB"
                    )

        def display(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Progress
