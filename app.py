"""Entry point: the page, and the API beside it, on one port.

A Space runs `python app.py`; so may you. Where no engine is set (MODEL_URL, MODELS), this process replaces itself
by start.sh, which boots one and runs this file again. `gradio app.py` reloads the page on every change.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def boot_with_start_script() -> None:
    """Become start.sh. Through bash, since upload tools lose the run bit."""
    os.environ["PYTHON"] = sys.executable  # the interpreter that a Space installed the requirements for
    os.execvp("bash", ["bash", str(HERE / "start.sh"), *sys.argv[1:]])


IS_MAIN = __name__ == "__main__"
if IS_MAIN and not all(map(find_spec, ("gradio", "requests", "pydantic_settings", "aiohttp", "limits"))):
    boot_with_start_script()  # it installs what is missing

from vllm_space import errors, hardware, preflight, settings  # noqa: E402

try:
    config = settings.load(sys.argv[1:] if IS_MAIN else [])
    no_gpu = preflight.no_gpu(config)
    if IS_MAIN and not config.servers and not no_gpu:
        boot_with_start_script()
    if IS_MAIN:
        preflight.check_page(config)
except errors.SpaceError as error:
    sys.exit(preflight.report(error))

from vllm_space import auth, server, ui  # noqa: E402  (Gradio takes seconds to import)

catalog = server.catalog(config)
guard = auth.Guard(config, hardware.space())
demo = ui.build_without_gpu(config, guard.space) if no_gpu else ui.build(config, catalog, guard)

if IS_MAIN:
    server.serve(demo, config, catalog, guard)
