"""Makes the installed vLLM's api_server die in several ways, in one process to import it only once.

Arguments: the demo model's folder and an empty folder. Prints "CASE name" and then the server's
output, for every case.
"""

import json
import runpy
import shutil
import sys
import traceback
from pathlib import Path

DEMO_MODEL, FOLDER = map(Path, sys.argv[1:])

# Case -> (flags of the server, changes to the demo model's config.json)
CASES = {
    "unknown flag": (["--no-such-flag", "1"], {}),
    "bad value": (["--max-num-seqs", "many"], {}),
    "unknown reasoning parser": (["--reasoning-parser", "mind"], {}),
    "unknown tool parser": (["--enable-auto-tool-choice", "--tool-call-parser", "hammer"], {}),
    "unknown quantization": (["--quantization", "zip"], {}),
    "context too long": (["--max-model-len", "1000000"], {}),
    "heads not divisible": (["--tensor-parallel-size", "7"], {}),
    "unsupported architecture": ([], {"architectures": ["NoSuchModel"]}),
    "unknown model type": ([], {"model_type": "nosuch", "architectures": ["NoSuchModel"]}),
    "custom code": (
        [],
        {"model_type": "nosuch", "auto_map": {"AutoConfig": "configuration.Config"}},
    ),
    "not in the cache": (["--model", "nobody/no-such-model"], {}),
}


def model(name: str, changes: dict) -> Path:
    """A copy of the demo model with another config.json."""
    folder = FOLDER / name.replace(" ", "-")
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


for case, (flags, changes) in CASES.items():
    print(f"CASE {case}", flush=True)
    sys.argv = ["api_server", "--model", str(model(case, changes)), "--enforce-eager", *flags]
    sys.stderr = sys.stdout
    try:
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc(file=sys.stdout)
