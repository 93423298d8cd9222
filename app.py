"""Entry point: the page, and the API beside it, on one port.

A Space runs `python app.py`; so may you. If no engine is set (MODEL_URL, MODELS), this process replaces itself with
start.sh, which boots one and runs this file again. `gradio app.py` does the same and reloads the page on every change.
"""

import os
import sys
import threading
from pathlib import Path

from vllm_space import requirements

HERE = Path(__file__).resolve().parent
IS_MAIN = __name__ == "__main__"
# `gradio app.py` runs this file once more, in a thread of its own, after every change.
IS_START = IS_MAIN and threading.current_thread() is threading.main_thread()


def boot_with_start_script() -> None:
    """Become start.sh. Through bash, since upload tools lose the run bit."""
    os.environ["PYTHON"] = (
        sys.executable
    )  # the interpreter that a Space installed the requirements for
    os.execvp("bash", ["bash", str(HERE / "start.sh"), *sys.argv[1:]])


if IS_START and requirements.missing([HERE / "requirements.txt"], besides=["vllm"]):
    boot_with_start_script()  # it installs what is missing

from vllm_space import errors, settings  # noqa: E402
from vllm_space.engine import preflight  # noqa: E402

try:
    config = settings.load(sys.argv[1:] if IS_MAIN else [])
    no_gpu = preflight.no_gpu(config)
    if IS_START and not config.servers and not no_gpu:
        boot_with_start_script()
    if IS_START:
        preflight.check_page(config)
except errors.SpaceError as error:
    if not IS_START:
        raise
    sys.exit(preflight.report(error))

from vllm_space.web import Web  # noqa: E402  (Gradio takes seconds to import)

web = Web(config, without_gpu=no_gpu)
demo = web.demo  # the name that Gradio's reloading looks for

if IS_START:
    web.serve()
elif IS_MAIN:
    web.restyle()
