"""`python -m vllm_space.engine`: start the engine and keep it running until a signal arrives.

Exits with code 1 and an error message if the engine cannot be started or dies too often.
"""

from __future__ import annotations

import signal
import sys

from vllm_space import errors, network, prctl, settings
from vllm_space.engine import supervisor


def main() -> None:
    prctl.die_with_parent()
    prctl.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    network.prepare()
    config = settings.load()
    try:
        supervisor.supervise(config)
    except errors.SpaceError as error:
        sys.exit(f"ERROR: {config.mask(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
