"""Why an engine died: its last lines of output -> a cause.

A cause is a phrase without a full stop, for sentences such as "vLLM died: {cause}." The table holds
messages of vLLM 0.29 and its dependencies. Pure text: looks at no process and no machine.
"""

from __future__ import annotations

import re

KILLED = (
    "the system killed it, which usually means that memory ran out: choose a smaller model or "
    "bigger hardware"
)

# (pattern, cause); the first match decides.
CAUSES: list[tuple[str, str]] = [
    (
        r"No module named '?vllm\.entrypoints\.api_server",
        "the installed vLLM no longer has the legacy server: unset ENGINE_MODULE",
    ),
    (
        r"No module named '?vllm'?$",
        "vLLM is not installed: install requirements.txt, or requirements-cpu.txt without a GPU",
    ),
    (r"error: unrecognized arguments: (.+)", "ENGINE_ARGS contains an unknown flag ({0})"),
    (r"error: (argument .+)", "vLLM rejects a flag, probably one in ENGINE_ARGS ({0})"),
    (
        r"address already in use|Errno 98",
        "the engine's port is in use: set ENGINE_PORT to a free one",
    ),
    (
        r"Insufficient space in /dev/shm",
        "/dev/shm is too small for several GPUs: give the container more "
        "(docker run --shm-size=1g), or set TENSOR_PARALLEL_SIZE=1",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory",
        "the GPU has too little memory for this model: choose a smaller MODEL_ID, a quantized "
        "model, or bigger hardware",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache memory",
        "too little GPU memory is left for the KV cache: lower MAX_MODEL_LEN, raise "
        "GPU_MEMORY_UTILIZATION, or use bigger hardware",
    ),
    (
        r"Free memory on device .* is less than desired",
        "another program is using part of the GPU memory: stop it, or lower GPU_MEMORY_UTILIZATION",
    ),
    (
        r"Available memory on node .* is less than desired",
        "the machine has too little free memory: lower GPU_MEMORY_UTILIZATION, which also applies "
        "without a GPU",
    ),
    (
        r"Model architectures? (\S+) (?:are|is|was|failed|supported)"
        r"|has model type `(\S+)` but Transformers does not",
        "vLLM does not support this model architecture ({0}): choose another MODEL_ID",
    ),
    (
        r"Cannot find any model weights",
        "this model has no weights that vLLM can load: choose another MODEL_ID",
    ),
    (
        r"User-specified max_model_len .* is greater than the derived max_model_len "
        r"\(\w+=([\d]+)",
        "MAX_MODEL_LEN exceeds this model's context length of {0} tokens: lower it, or unset it",
    ),
    (
        r"Unknown quantization method: (\S+)\.",
        "vLLM does not know the quantization method {0}: check QUANTIZATION",
    ),
    (
        r"quantization method (\S+) is not supported for the current GPU",
        "this GPU is too old for the model's quantization ({0}): choose another MODEL_ID, or newer "
        "hardware",
    ),
    (
        r"is not supported for quantization method (\S+)\. Supported dtypes",
        "the dtype does not work with {0} quantization: set DTYPE=half, or unset it",
    ),
    (
        r"attention heads \((\d+)\) must be divisible by",
        "this model's {0} attention heads cannot be split evenly over that many GPUs: set "
        "TENSOR_PARALLEL_SIZE to a divisor of {0}",
    ),
    (
        r"World size \(\d+\) is larger than the number of",
        "there are fewer GPUs than TENSOR_PARALLEL_SIZE or ENGINE_ARGS ask for: lower it",
    ),
    (
        r"NVIDIA driver on your system is too old",
        "the NVIDIA driver is too old for the installed PyTorch: update it",
    ),
    (
        r"Failed to infer device type",
        "vLLM found no usable GPU: install requirements-cpu.txt to run without one",
    ),
    (
        r"trust_remote_code=True|trust-remote-code",
        "this model comes with its own code: set TRUST_REMOTE_CODE=true if you trust it",
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability",
        "this GPU does not support bfloat16: set DTYPE=half",
    ),
    (
        r"GatedRepoError|gated repo",
        "this model is gated: request access on its page, then set HF_TOKEN",
    ),
    (
        r"RepositoryNotFoundError|is not a local folder and is not a valid model identifier",
        "the model does not exist, or it is private: check MODEL_ID, or set HF_TOKEN",
    ),
    (r"RevisionNotFoundError", "this model has no such revision: check MODEL_REVISION"),
    (
        r"LocalEntryNotFoundError|couldn't connect to '?https?://|We couldn't connect"
        r"|Max retries exceeded",
        "the model could not be downloaded: check the connection to the Hugging Face Hub",
    ),
    (
        r"cannot open shared object file",
        "a system library is missing: install the packages in packages.txt (apt-get install) and "
        "start again",
    ),
    (
        r"No space left on device|Not enough free disk space",
        "the disk is full: choose a smaller model, or set HF_HOME to a folder on a larger disk",
    ),
    (
        r"(?:Read-only file system|Permission denied): '([^']+)",
        "{0} is not writable: set HF_HOME to a writable folder",
    ),
    (
        r"invalid (?:tool call|reasoning) parser: (\S+)"
        r"|(?:Reasoning|Tool) parser '(.+?)' not found",
        "vLLM does not know the parser {0}: check REASONING_PARSER and TOOL_CALL_PARSER",
    ),
    (r"died unexpectedly \(exit code: -9\)|Failed core proc\(s\): .*: -9\b", KILLED),
]

# Lines of vLLM's log that report no failure.
HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d ")
# How one process reports that another has failed.
SECONDHAND = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
)
ERROR_MESSAGE = re.compile(
    r"\bValue error, (.+?)(?: \[type=.*)?$|\b((?!Validation)\w*(?:Error|Exception): .+)"
)


def explain(lines: list[str], exit_code: int | None) -> str:
    """The cause, from the last lines of output.

    If no pattern matches, it is the last error message, or else the exit code.
    """
    lines = [line for line in lines if not HARMLESS.search(line)]
    for pattern, cause in CAUSES:
        for line in lines:
            if match := re.search(pattern, line, re.IGNORECASE):
                return cause.format(*filter(None, match.groups()))
    if exit_code == -9:
        return KILLED
    for line in reversed(lines):
        if (match := ERROR_MESSAGE.search(line)) and not SECONDHAND.search(line):
            message = match.group(1) or match.group(2)
            return message.strip()[:300].rstrip(".")
    if any(SECONDHAND.search(line) for line in lines):
        return (
            "one of its processes ended without an error message, which usually means that the "
            "system killed it because memory ran out"
        )
    return f"exit code {exit_code}, no error message"
