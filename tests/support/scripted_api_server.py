"""A stand-in for vllm.entrypoints.openai.api_server, for what start.sh does around it: see programs.STAND_IN_ENGINE.

SCRIPT in the environment says how it behaves: "ready" (the default), "die" (saying LAST_WORDS, by the signal or with
the exit code in EXIT), "slow" (never ready), "deaf" to SIGTERM, "indiscreet" (prints its secrets), "verbose" (it says
1 MB before it is ready).
"""

import os
import signal
import subprocess
import sys
import time

from support.scripted_engine import ScriptedEngine, chat_stream


def main() -> None:
    script = os.environ.get("SCRIPT", "ready")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("INFO Starting to load model", flush=True)
    if script == "die":
        print(os.environ["LAST_WORDS"], flush=True)
        code = int(os.environ.get("EXIT", "1"))
        os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
    if script == "indiscreet":
        print(
            f"the token is {os.environ['HF_TOKEN']}, the key is {os.environ['VLLM_API_KEY']}",
            flush=True,
        )
    if script == "verbose":
        print("\n".join(["INFO " + "word " * 20] * 10_000), flush=True)
    if script == "slow":
        time.sleep(600)
    if script == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"])  # a worker, which must not outlive the engine
    with ScriptedEngine(lambda *_: chat_stream("Hello")).running(port):
        signal.pause()


main()
