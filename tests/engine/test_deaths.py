"""Why an engine died while it started, from the error messages of the installed versions."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import DEMO_MODEL, STAND_IN_ENGINE, TESTS, free_port
from vllm_space.engine import deaths

pytestmark = pytest.mark.vllm

# (source file of the message, text in that file, last lines of output, cause)
LAST_LINES = [
    pytest.param(
        "torch/cuda/__init__.py",
        "OutOfMemoryError",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "the GPU has too little memory",
        id="out of memory at load",
    ),
    pytest.param(
        "vllm/v1/core/kv_cache_utils.py",
        "No available memory for the cache blocks. ",
        "ValueError: No available memory for the cache blocks.",
        "too little GPU memory is left for the KV cache",
        id="out of memory for the KV cache",
    ),
    pytest.param(
        "vllm/v1/core/kv_cache_utils.py",
        "cache is needed, which is larger than the available KV cache ",
        "ValueError: (4.0 GiB KV cache is needed, which is larger than the available KV cache "
        "memory (1.0 GiB).",
        "lower MAX_MODEL_LEN",
        id="context too long for the memory",
    ),
    pytest.param(
        "vllm/v1/worker/utils.py",
        "Free memory on device ",
        "ValueError: Free memory on device cuda:0 (3.1/14.6 GiB) on startup is less than desired",
        "another program is using part of the GPU memory",
        id="GPU busy",
    ),
    pytest.param(
        "vllm/v1/worker/cpu_worker.py",
        "is less than desired CPU memory utilization ",
        "ValueError: Available memory on node 0 (1.0/8.0 GiB) on startup is less than desired CPU",
        "lower GPU_MEMORY_UTILIZATION",
        id="too little memory without a GPU",
    ),
    pytest.param(
        "vllm/platforms/cuda.py",
        "Bfloat16 is only supported on GPUs ",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        "set DTYPE=half",
        id="bfloat16 on a T4",
    ),
    pytest.param(
        "vllm/config/vllm.py",
        "is not supported for the current GPU. Minimum ",
        "ValueError: The quantization method fp8 is not supported for the current GPU.",
        "this GPU is too old for the model's quantization (fp8)",
        id="quantization on an old GPU",
    ),
    pytest.param(
        "vllm/config/vllm.py",
        "is not supported for quantization ",
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes",
        "with awq quantization: set DTYPE=half",
        id="dtype and quantization",
    ),
    pytest.param(
        "vllm/config/parallel.py",
        "is larger than the number of ",
        "ValueError: World size (4) is larger than the number of available GPUs (1) in this node.",
        "fewer GPUs than TENSOR_PARALLEL_SIZE",
        id="too few GPUs",
    ),
    pytest.param(
        "vllm/config/device.py",
        "Failed to infer device type, please set ",
        "RuntimeError: Failed to infer device type, please set the environment variable",
        "found no usable GPU",
        id="no device",
    ),
    pytest.param(
        "vllm/model_executor/models/registry.py",
        "is not supported in-tree anymore. ",
        "ValueError: Model architecture OldModel is not supported in-tree anymore.",
        "does not support this model architecture (OldModel)",
        id="architecture removed",
    ),
    pytest.param(
        "vllm/model_executor/model_loader/default_loader.py",
        "Cannot find any model weights with ",
        "RuntimeError: Cannot find any model weights with `org/name`",
        "has no weights",
        id="no weights",
    ),
    pytest.param(
        "transformers/utils/hub.py",
        "You are trying to access a gated repo.",
        "OSError: You are trying to access a gated repo.",
        "is gated",
        id="gated",
    ),
    pytest.param(
        "transformers/utils/hub.py",
        "is not a local folder and is not a valid model identifier ",
        "OSError: org/x is not a local folder and is not a valid model identifier",
        "the model does not exist, or it is private",
        id="no such model",
    ),
    pytest.param(
        "transformers/utils/hub.py",
        "We couldn't connect to ",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        "could not be downloaded",
        id="download failed",
    ),
    pytest.param(
        None,
        os.strerror(28),
        "OSError: [Errno 28] No space left on device",
        "the disk is full",
        id="disk full",
    ),
    pytest.param(
        None,
        os.strerror(30),
        "OSError: [Errno 30] Read-only file system: '/data/hub'",
        "/data/hub is not writable: set HF_HOME",
        id="cache read-only",
    ),
    pytest.param(
        None,
        os.strerror(98),
        "OSError: [Errno 98] Address already in use",
        "set ENGINE_PORT",
        id="port taken",
    ),
    pytest.param(
        "vllm/v1/executor/multiproc_executor.py",
        "Worker proc %s died unexpectedly (exit code: %s), ",
        "(EngineCore pid=9) ERROR Worker proc VLLM::Worker died unexpectedly (exit code: -9)",
        "the system killed it",
        id="worker killed by the kernel",
    ),
    pytest.param(
        "vllm/v1/engine/utils.py",
        "Engine core initialization failed. ",
        "(EngineCore pid=9) ValueError: what is really wrong.\n"
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "vLLM did not start: ValueError: what is really wrong.",
        id="unknown: the root cause",
    ),
    pytest.param(
        "vllm/v1/engine/exceptions.py",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "INFO 11-22 17:12:59 args: trust_remote_code=True\n"
        "EngineDeadError: EngineCore encountered an issue.",
        "one of its processes ended without an error message",
        id="engine core killed",
    ),
]


def lines_of_dying_engine(program, folder: Path, output: str, code: int = 1) -> list[str]:
    """The ERROR lines when the engine prints `output` and exits with `code`."""
    run_dir = folder / "run"
    run_dir.mkdir()
    env = STAND_IN_ENGINE | {"SCRIPT": "die", "LAST_WORDS": output, "EXIT": str(code)}
    env |= {"ENGINE_RUN_DIR": str(run_dir), "ENGINE_PORT": str(free_port()), "TMPDIR": str(folder)}
    running = program([sys.executable, "-m", "vllm_space.engine"], **env)
    exit_code, lines = running.wait_for_exit(folder)
    assert exit_code == 1
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
    return lines


@pytest.mark.parametrize(("file", "quote", "output", "cause"), LAST_LINES)
def test_error_message_is_explained(program, tmp_path, file, quote, output, cause):
    if file:  # check that the installed version still says so
        package, _, path = file.partition("/")
        folder = Path(importlib.util.find_spec(package).origin).parent
        assert quote in (folder / path).read_text()
    line = lines_of_dying_engine(program, tmp_path, output)[-1]
    assert line.startswith("ERROR: vLLM did not start: ")
    assert cause in line
    assert line.endswith(".")
    assert not line.endswith("..")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        pytest.param(-9, "the system killed it", id="killed"),
        pytest.param(3, "vLLM did not start: exit code 3, no error message.", id="exit code"),
    ],
)
def test_silent_death_is_explained(program, tmp_path, code, cause):
    assert cause in lines_of_dying_engine(program, tmp_path, "INFO loading", code)[-1]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, list[str]]:
    """Case -> the last lines of the installed vLLM, which died in each of them."""
    script = TESTS / "support" / "provoke_deaths.py"
    result = subprocess.run(
        [sys.executable, str(script), str(DEMO_MODEL), str(tmp_path_factory.mktemp("models"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        timeout=300,
    )
    parts = re.split(r"^(?:\(.+?\) )?CASE (.+)$", result.stdout, flags=re.MULTILINE)[1:]
    return {
        case: output.splitlines()[-200:]
        for case, output in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        (
            "unknown flag",
            "ENGINE_ARGS contains an unknown flag (--no-such-flag)",
        ),
        ("bad value", "ENGINE_ARGS (argument --max-num-seqs: invalid int value: 'many')"),
        ("unknown reasoning parser", "vLLM does not know the parser mind: check REASONING_PARSER"),
        ("unknown tool parser", "vLLM does not know the parser hammer: check REASONING_PARSER"),
        ("unknown quantization", "vLLM does not know the quantization method zip"),
        ("context too long", "MAX_MODEL_LEN exceeds this model's context length of 2048 tokens"),
        ("heads not divisible", "this model's 4 attention heads cannot be split evenly"),
        ("unsupported architecture", "vLLM does not support this model architecture"),
        ("unknown model type", "vLLM does not support this model architecture (nosuch)"),
        ("custom code", "set TRUST_REMOTE_CODE=true if you trust it"),
        ("not in the cache", "the model could not be downloaded"),
    ],
)
def test_death_of_the_real_vllm_is_explained(outputs, case, cause):
    assert cause in deaths.explain(outputs[case], 1)
