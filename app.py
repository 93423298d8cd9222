"""Entry point: serves the chat page and the API on one port.

Run `python app.py`, as a Space does. If there is no engine to talk to (MODEL_URL and MODELS are
unset), this process replaces itself with start.sh, which starts vLLM and then runs this file again.
`gradio app.py` does the same, and reloads the page whenever a file changes.
"""

import os
import sys
import threading
from pathlib import Path

from vllm_space import requirements

HERE = Path(__file__).resolve().parent
IS_MAIN = __name__ == "__main__"
# After every change, `gradio app.py` runs this file again, in a separate thread.
IS_START = IS_MAIN and threading.current_thread() is threading.main_thread()


def boot_with_start_script() -> None:
    """Become start.sh: run by bash, since upload tools drop the executable bit."""
    # A Space has installed the requirements for this interpreter.
    os.environ["PYTHON"] = sys.executable
    os.execvp("bash", ["bash", str(HERE / "start.sh"), *sys.argv[1:]])


if IS_START and requirements.missing([HERE / "requirements.txt"], ignore=["vllm"]):
    boot_with_start_script()  # which installs what is missing

from vllm_space import errors, listening, network, settings, storage  # noqa: E402
from vllm_space.engine import preflight  # noqa: E402

try:
    config = settings.load(sys.argv[1:] if IS_MAIN else [])
    no_gpu = preflight.no_gpu(config)
    if IS_START and not config.servers and not no_gpu:
        boot_with_start_script()
    if IS_START:
        preflight.check_page(config)
        # gradio 6.31: launch sends a request to its own address (gradio#4046)
        warnings = network.prepare(listening.bare(config.gradio_server_name))
        if "GRADIO_TEMP_DIR" not in os.environ:  # start.sh sets it, and prints the warnings
            os.environ["GRADIO_TEMP_DIR"] = storage.make_private_folder()
            preflight.warn(settings.warnings(config) + warnings)
except errors.SpaceError as error:
    if not IS_START:
        raise
    sys.exit(preflight.report(error))

from vllm_space.web import Web  # noqa: E402  (Gradio takes seconds to import)

web = Web(config, without_gpu=no_gpu)
demo = web.demo  # the name that Gradio's hot reload looks for

if IS_START:
    web.serve()
elif IS_MAIN:
    web.restyle()
