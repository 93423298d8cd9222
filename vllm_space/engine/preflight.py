"""Checks the settings and the machine before anything is started, and decides what to start.

Run by start.sh as `python -m vllm_space.engine.preflight RUN_DIR [app.py's flags]`. Writes the plan
into that folder. Exits with an error message and code 2 if a setting is wrong, code 1 if the
machine cannot do it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_space import errors, hardware, listening, network, run_dir, settings
from vllm_space.engine import command
from vllm_space.settings import Settings


def plan(config: Settings) -> str:
    """What start.sh has to do. Raises SpaceError if that is impossible.

    "boot URL" means to start vLLM, which will serve at URL, and the page. "page" means the page
    alone, because the engine runs elsewhere or there is no GPU to run it on.
    """
    boot = not config.servers and not no_gpu(config)
    check_page(config)
    if boot:
        listening.require_free_port(command.HOST, config.engine_port, "ENGINE_PORT")
        if config.engine_port == config.gradio_server_port:
            raise errors.SettingsError(
                f"ENGINE_PORT={config.engine_port} is the page's port: use another one."
            )
    return f"boot http://{command.HOST}:{config.engine_port}/v1" if boot else "page"


def check_page(config: Settings) -> None:
    """Raise SpaceError if the page cannot be served with these settings."""
    space = hardware.space()
    if config.oauth_allowed and not (space and space.oauth):
        raise errors.SettingsError(
            "OAUTH_ALLOWED works only in a Space whose card has `hf_oauth: true`: unset it, or use "
            "APP_USERNAME and APP_PASSWORD."
        )
    network.check_authorities()
    listening.require_free_port(
        config.gradio_server_name, config.gradio_server_port, "--port (or GRADIO_SERVER_PORT)"
    )


def no_gpu(config: Settings) -> bool:
    """Whether this is a Space that has no usable GPU and is not configured to run without one.

    Such a Space shows a page that says so, instead of crash-looping.
    """
    space = hardware.space()
    if not space or config.servers or config.engine_device == "cpu":
        return False
    return space.zero_gpu or not hardware.gpus(config.engine_device)


def report(error: errors.SpaceError) -> int:
    """Print the error, one line for each problem; returns the exit code."""
    for line in str(error).splitlines():
        print(f"ERROR: {line}", file=sys.stderr)
    return 2 if isinstance(error, errors.SettingsError) else 1


def warn(warnings: list[str]) -> None:
    """Print the warnings for the owner."""
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def main(folder: str, *argv: str) -> int:
    try:
        config = settings.load(list(argv))
        run_dir.write_plan(Path(folder), plan(config))
    except errors.SpaceError as error:
        return report(error)
    warn(settings.warnings(config) + network.prepare())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
