"""Before anything is started: are the settings right, and can this machine do what they ask?

Run by start.sh as `python -m vllm_space.engine.preflight RUN_DIR [app.py's flags]`. Writes what start.sh is to do
into that folder. Exit code 2 for settings that cannot work, 1 for a machine that cannot, each with its sentence.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from vllm_space import errors, hardware, run_dir, settings
from vllm_space.engine import command
from vllm_space.settings import Settings


def plan(config: Settings) -> str:
    """What start.sh is to do: "boot URL" (boot vLLM, which will answer at URL, then the page) or "page" alone, where
    the engine runs elsewhere or there is no GPU to run it on. Raises SpaceError where neither can be done.
    """
    boot = not config.servers and not no_gpu(config)
    check_page(config)
    if boot:
        require_free_port(command.HOST, config.engine_port, "ENGINE_PORT")
        if config.engine_port == config.gradio_server_port:
            raise errors.SettingsError(
                f"ENGINE_PORT={config.engine_port} is the page's own port: use another one."
            )
    return f"boot http://{command.HOST}:{config.engine_port}/v1" if boot else "page"


def check_page(config: Settings) -> None:
    """Raise SpaceError where the page cannot be served as the settings want it."""
    space = hardware.space()
    if config.oauth_allowed and not (space and space.oauth):
        raise errors.SettingsError(
            "OAUTH_ALLOWED works only in a Space whose card has `hf_oauth: true`: unset it, or use APP_USERNAME and "
            "APP_PASSWORD."
        )
    require_free_port(
        config.gradio_server_name, config.gradio_server_port, "--port (or GRADIO_SERVER_PORT)"
    )


def no_gpu(config: Settings) -> bool:
    """Whether this is a Space without a usable GPU whose owner asked for no other engine: page only, no crash loop."""
    space = hardware.space()
    if not space or config.servers or config.engine_device == "cpu":
        return False
    return space.zero_gpu or not hardware.gpus(config.engine_device)


def require_free_port(host: str, port: int, name: str) -> None:
    """Raise EngineError if another program listens on the port; `name` is what sets it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: TIME_WAIT is no hindrance
        try:
            probe.bind((host, port))
        except OSError as error:
            raise errors.EngineError(
                f"Port {port} on {host} cannot be used ({error.strerror}): set {name} to a free one, or stop the "
                "program that has it."
            ) from None


def report(error: errors.SpaceError) -> int:
    """Print why nothing can be started; the exit code that says the same."""
    for line in str(error).splitlines():
        print(f"ERROR: {line}", file=sys.stderr)
    return 2 if isinstance(error, errors.SettingsError) else 1


def main(folder: str, *argv: str) -> int:
    try:
        config = settings.load(list(argv))
        run_dir.write_plan(Path(folder), plan(config))
    except errors.SpaceError as error:
        return report(error)
    for warning in settings.unknown_names():
        print(f"WARNING: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
