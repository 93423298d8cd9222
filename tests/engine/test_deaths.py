"""An engine that dies while it starts is explained by its last words, which are those of the installed version."""

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

# (the file of a package that says so, what stands there, what was said, what is made of it)
LAST_WORDS = [
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
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "no memory is left for the context",
        id="out of memory for the KV cache",
    ),
    pytest.param(
        "vllm/v1/core/kv_cache_utils.py",
        "cache is needed, which is larger than the available KV cache ",
        "ValueError: (4.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).",
        "lower MAX_MODEL_LEN",
        id="context too long for the memory",
    ),
    pytest.param(
        "vllm/v1/worker/utils.py",
        "Free memory on device ",
        "ValueError: Free memory on device cuda:0 (3.1/14.6 GiB) on startup is less than desired GPU memory",
        "another program holds part of the GPU memory",
        id="GPU busy",
    ),
    pytest.param(
        "vllm/v1/worker/cpu_worker.py",
        "is less than desired CPU memory utilization ",
        "ValueError: Available memory on node 0 (1.0/8.0 GiB) on startup is less than desired CPU memory utilization",
        "lower GPU_MEMORY_UTILIZATION",
        id="too little memory without a GPU",
    ),
    pytest.param(
        "vllm/platforms/cuda.py",
        "Bfloat16 is only supported on GPUs ",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU",
        "set DTYPE=half",
        id="bfloat16 on a T4",
    ),
    pytest.param(
        "vllm/config/vllm.py",
        "is not supported for the current GPU. Minimum ",
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89.",
        "this GPU is too old for the quantization of this model (fp8)",
        id="quantization on an old GPU",
    ),
    pytest.param(
        "vllm/config/vllm.py",
        "is not supported for quantization ",
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        "the quantization awq: set DTYPE=half",
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
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "finds no GPU that works",
        id="no device",
    ),
    pytest.param(
        "vllm/model_executor/models/registry.py",
        "is not supported in-tree anymore. ",
        "ValueError: Model architecture OldModel is not supported in-tree anymore. Please install the plugin",
        "does not support this kind of model (OldModel)",
        id="architecture given up",
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
        id="gated after all",
    ),
    pytest.param(
        "transformers/utils/hub.py",
        "is not a local folder and is not a valid model identifier ",
        "OSError: org/x is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'",
        "no such model, or it is private",
        id="no such model after all",
    ),
    pytest.param(
        "transformers/utils/hub.py",
        "We couldn't connect to ",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them",
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
        "/data/hub cannot be written to: set HF_HOME",
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
        "(EngineCore pid=9) ERROR 11-22 17:12:59 Worker proc VLLM::Worker died unexpectedly (exit code: -9), shutting",
        "the system killed it",
        id="worker killed by the kernel",
    ),
    pytest.param(
        "vllm/v1/engine/utils.py",
        "Engine core initialization failed. ",
        "(EngineCore pid=9) ValueError: what is really wrong.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
        "it says: ValueError: what is really wrong.",
        id="anything else: the root cause",
    ),
    pytest.param(
        "vllm/v1/engine/exceptions.py",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "INFO 11-22 17:12:59 args: trust_remote_code=True\n"
        "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "one of its processes ended without a word",
        id="the core gone without a word",
    ),
]


def dying(program, folder: Path, words: str, code: int = 1) -> tuple[int, list[str]]:
    """What start.sh's part for the engine makes of one that dies with these words."""
    run_dir = folder / "run"
    run_dir.mkdir()
    env = STAND_IN_ENGINE | {"SCRIPT": "die", "LAST_WORDS": words, "EXIT": str(code)}
    env |= {"ENGINE_RUN_DIR": str(run_dir), "ENGINE_PORT": str(free_port()), "TMPDIR": str(folder)}
    result = program([sys.executable, "-m", "vllm_space.engine"], **env).wait_for_exit(folder)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
    return result


@pytest.mark.parametrize(("file", "quote", "words", "says"), LAST_WORDS)
def test_an_engine_that_dies_while_starting_is_explained(
    program, tmp_path, file, quote, words, says
):
    if file:  # the words are those of the installed version
        package, _, path = file.partition("/")
        folder = Path(importlib.util.find_spec(package).origin).parent
        assert quote in (folder / path).read_text()
    code, lines = dying(program, tmp_path, words)
    assert code == 1
    assert lines[-1].startswith("ERROR: vLLM did not start: ")
    assert says in lines[-1]
    assert lines[-1].endswith(".")
    assert not lines[-1].endswith("..")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param("INFO loading", -9, "the system killed it", id="killed by the kernel"),
        pytest.param("INFO loading", 3, "it ended with exit code 3 and said nothing", id="silent"),
    ],
)
def test_an_engine_that_dies_without_a_word_is_explained(program, tmp_path, words, code, says):
    assert says in dying(program, tmp_path, words, code)[1][-1]


@pytest.fixture(scope="module")
def real_words(tmp_path_factory) -> dict[str, list[str]]:
    """Cause -> the last lines of the installed vLLM, which has just died of it."""
    command = [sys.executable, str(TESTS / "support" / "provoke_deaths.py"), str(DEMO_MODEL)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    folder = tmp_path_factory.mktemp("models")
    done = subprocess.run(
        [*command, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        timeout=300,
    )
    parts = re.split(r"^(?:\(.+?\) )?CAUSE (.+)$", done.stdout, flags=re.MULTILINE)[1:]
    return {
        cause: said.splitlines()[-200:] for cause, said in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (
            "unknown flag",
            "vLLM does not know a flag in ENGINE_ARGS: unrecognized arguments: --no-such-flag",
        ),
        ("bad value", "vLLM refuses a flag: argument --max-num-seqs: invalid int value: 'many'"),
        ("unknown reasoning parser", "vLLM does not know the parser mind: check REASONING_PARSER"),
        (
            "unknown tool parser",
            "vLLM does not know the parser hammer: check REASONING_PARSER and TOOL_CALL_PARSER",
        ),
        ("unknown quantization", "vLLM does not know the method zip: check QUANTIZATION"),
        ("context too long", "MAX_MODEL_LEN is more than this model's context of 2048 tokens"),
        (
            "heads not divisible",
            "this model's 4 attention heads cannot be split over that many GPUs",
        ),
        ("unsupported architecture", "vLLM does not support this kind of model (['NoSuchModel'])"),
        ("unknown model type", "vLLM does not support this kind of model (nosuch)"),
        ("code of its own", "set TRUST_REMOTE_CODE=true if you trust it"),
        ("not in the cache", "the model could not be downloaded"),
    ],
)
def test_what_the_real_vllm_says_when_it_dies_is_understood(real_words, cause, says):
    assert deaths.explain(real_words[cause], 1).startswith(says) or says in deaths.explain(
        real_words[cause], 1
    )
