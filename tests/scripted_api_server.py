"""A stand-in for vllm.entrypoints.openai.api_server, for what start.sh does around it: run with ENGINE_MODULE.

SCRIPT in the environment says how it behaves: "ready" (the default), "die", "slow" (never ready), "deaf" to SIGTERM.
"""

import os
import signal
import subprocess
import sys
import time
from http.server import ThreadingHTTPServer

from scripted_engine import ScriptedEngine, _handler, chat_stream


def main() -> None:
    script = os.environ.get("SCRIPT", "ready")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("INFO Starting to load model", flush=True)
    if script == "die":
        print("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory.", flush=True)
        sys.exit(1)
    if script == "slow":
        time.sleep(600)
    if script == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"])  # a worker, which must not outlive the engine
    ThreadingHTTPServer(("127.0.0.1", port), _handler(ScriptedEngine(lambda *_: chat_stream("Hello")))).serve_forever()


main()
