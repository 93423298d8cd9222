"""A stand-in for vllm.entrypoints.openai.api_server: see programs.STAND_IN_ENGINE.

The variable SCRIPT chooses its behaviour:
  ready       serves (the default)
  die         prints LAST_WORDS and exits with code EXIT (a negative EXIT is a signal)
  slow        never becomes ready
  deaf        serves, but ignores SIGTERM
  indiscreet  prints its secrets, then serves
  verbose     prints 1 MB, then serves
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
        print("the token is", os.environ["HF_TOKEN"], flush=True)
        print("the key is", os.environ["VLLM_API_KEY"], flush=True)
    if script == "verbose":
        print("\n".join(["INFO " + "word " * 20] * 10_000), flush=True)
    if script == "slow":
        time.sleep(600)
    if script == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"])  # a worker that must not outlive it
    with ScriptedEngine(lambda *_: chat_stream("Hello")).running(port):
        signal.pause()


main()
