"""Why an engine died: its own last lines -> one sentence.

The table holds messages of vLLM 0.29 and of what it stands on. Pure text: asks no process and no machine.
"""

from __future__ import annotations

import re

KILLED = "the system killed it, which mostly means that memory ran out: choose a smaller model or bigger hardware"

# (pattern, sentence); the first that matches wins.
DEATHS: list[tuple[str, str]] = [
    (
        r"No module named '?vllm\.entrypoints\.api_server",
        "the installed vLLM no longer has the legacy server: unset ENGINE_MODULE",
    ),
    (
        r"No module named '?vllm'?$",
        "vLLM is not installed: install requirements.txt, or requirements-cpu.txt without a GPU",
    ),
    (r"error: (unrecognized arguments: .+)", "vLLM does not know a flag in ENGINE_ARGS: {0}"),
    (r"error: (argument .+)", "vLLM refuses a flag: {0}. Check ENGINE_ARGS"),
    (
        r"address already in use|Errno 98",
        "the engine's port is taken: set ENGINE_PORT to a free one",
    ),
    (
        r"Insufficient space in /dev/shm",
        "/dev/shm is too small for several GPUs: give the container more (docker run --shm-size=1g), or set "
        "TENSOR_PARALLEL_SIZE=1",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory",
        "the GPU has too little memory for this model: choose a smaller MODEL_ID, a quantised one, or bigger hardware",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache memory",
        "no memory is left for the context: lower MAX_MODEL_LEN, raise GPU_MEMORY_UTILIZATION, or use bigger hardware",
    ),
    (
        r"Free memory on device .* is less than desired",
        "another program holds part of the GPU memory: stop it, or lower GPU_MEMORY_UTILIZATION",
    ),
    (
        r"Available memory on node .* is less than desired",
        "the machine has too little memory free: lower GPU_MEMORY_UTILIZATION, which counts without a GPU too",
    ),
    (
        r"Model architectures? (\S+) (?:are|is|was|failed|supported)|has model type `(\S+)` but Transformers does not",
        "vLLM does not support this kind of model ({0}): choose another MODEL_ID",
    ),
    (
        r"Cannot find any model weights",
        "this model has no weights that vLLM can load: choose another MODEL_ID",
    ),
    (
        r"User-specified max_model_len .* is greater than the derived max_model_len \(\w+=([\d]+)",
        "MAX_MODEL_LEN is more than this model's context of {0} tokens: lower it, or unset it",
    ),
    (
        r"Unknown quantization method: (\S+)\.",
        "vLLM does not know the method {0}: check QUANTIZATION",
    ),
    (
        r"quantization method (\S+) is not supported for the current GPU",
        "this GPU is too old for the quantization of this model ({0}): choose another MODEL_ID, or newer hardware",
    ),
    (
        r"is not supported for quantization method (\S+)\. Supported dtypes",
        "the number format of the weights does not go with the quantization {0}: set DTYPE=half, or unset it",
    ),
    (
        r"attention heads \((\d+)\) must be divisible by",
        "this model's {0} attention heads cannot be split over that many GPUs: set TENSOR_PARALLEL_SIZE to a divisor",
    ),
    (
        r"World size \(\d+\) is larger than the number of",
        "there are fewer GPUs than TENSOR_PARALLEL_SIZE (and flags in ENGINE_ARGS) ask for: lower it",
    ),
    (
        r"NVIDIA driver on your system is too old",
        "the NVIDIA driver is too old for the installed PyTorch: update it",
    ),
    (
        r"Failed to infer device type",
        "vLLM finds no GPU that works: install requirements-cpu.txt to run without one",
    ),
    (
        r"trust_remote_code=True|trust-remote-code",
        "this model comes with its own code: set TRUST_REMOTE_CODE=true if you trust it",
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability",
        "this GPU cannot compute in bfloat16: set DTYPE=half",
    ),
    (
        r"GatedRepoError|gated repo",
        "this model is gated: ask for access on its page, then set HF_TOKEN",
    ),
    (
        r"RepositoryNotFoundError|is not a local folder and is not a valid model identifier",
        "there is no such model, or it is private: check MODEL_ID, or set HF_TOKEN",
    ),
    (r"RevisionNotFoundError", "this model has no such revision: check MODEL_REVISION"),
    (
        r"LocalEntryNotFoundError|couldn't connect to '?https?://|We couldn't connect|Max retries exceeded",
        "the model could not be downloaded: check the connection to the Hugging Face Hub",
    ),
    (
        r"cannot open shared object file",
        "a system library is missing: install what packages.txt names (apt-get install) and start again",
    ),
    (
        r"No space left on device|Not enough free disk space",
        "the disk is full: choose a smaller model, or set HF_HOME to a folder on a larger disk",
    ),
    (
        r"(?:Read-only file system|Permission denied): '([^']+)",
        "{0} cannot be written to: set HF_HOME to a folder that can",
    ),
    (
        r"invalid (?:tool call|reasoning) parser: (\S+)|(?:Reasoning|Tool) parser '(.+?)' not found",
        "vLLM does not know the parser {0}: check REASONING_PARSER and TOOL_CALL_PARSER",
    ),
    (r"died unexpectedly \(exit code: -9\)|Failed core proc\(s\): .*: -9\b", KILLED),
]

CALM = re.compile(
    r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d "
)  # lines of vLLM's log that report no failure
# What a process says of another one's failure.
ECHO = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
)
SAID = re.compile(
    r"\bValue error, (.+?)(?: \[type=.*)?$|\b((?!Validation)\w*(?:Error|Exception): .+)"
)


def explain(lines: list[str], exit_code: int | None) -> str:
    """Why the engine ended, from its last lines of output, as one sentence without the full stop.

    Falls back on the last line that reports an error, then on the exit code.
    """
    lines = [line for line in lines if not CALM.search(line)]
    for pattern, sentence in DEATHS:
        for line in lines:
            if match := re.search(pattern, line, re.IGNORECASE):
                return sentence.format(*filter(None, match.groups()))
    if exit_code == -9:
        return KILLED
    for line in reversed(lines):
        if (match := SAID.search(line)) and not ECHO.search(line):
            return f"it says: {(match.group(1) or match.group(2)).strip()[:300].rstrip('.')}"
    if any(ECHO.search(line) for line in lines):
        return "one of its processes ended without a word, which mostly means that the system killed it for its memory"
    return f"it ended with exit code {exit_code} and said nothing"
