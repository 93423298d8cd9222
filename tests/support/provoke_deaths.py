"""Lets the installed vLLM's api_server die of each cause in turn, in one process: importing it takes longer than dying.

Run with the demo model's folder and an empty folder. Prints the name of each cause and what the server said of it.
"""

import json
import runpy
import shutil
import sys
import traceback
from pathlib import Path

DEMO_MODEL, FOLDER = map(Path, sys.argv[1:])

# Cause -> (flags of the server, fields of the model's config.json that differ from the demo model's)
CAUSES = {
    "unknown flag": (["--no-such-flag", "1"], {}),
    "bad value": (["--max-num-seqs", "many"], {}),
    "unknown reasoning parser": (["--reasoning-parser", "mind"], {}),
    "unknown tool parser": (["--enable-auto-tool-choice", "--tool-call-parser", "hammer"], {}),
    "unknown quantization": (["--quantization", "zip"], {}),
    "context too long": (["--max-model-len", "1000000"], {}),
    "heads not divisible": (["--tensor-parallel-size", "7"], {}),
    "unsupported architecture": ([], {"architectures": ["NoSuchModel"]}),
    "unknown model type": ([], {"model_type": "nosuch", "architectures": ["NoSuchModel"]}),
    "code of its own": (
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


for cause, (flags, changes) in CAUSES.items():
    print(f"CAUSE {cause}", flush=True)
    sys.argv = ["api_server", "--model", str(model(cause, changes)), "--enforce-eager", *flags]
    sys.stderr = sys.stdout
    try:
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc(file=sys.stdout)
