"""Will this model run here? Asked of the Hub and the hardware in seconds, before vLLM spends minutes on it.

A certainty stops the start with a sentence; an estimate only warns, since a wrong guess must not stand in the
way. Where the Hub cannot be reached nothing is said: the model may be in the cache. Knows no processes.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_space import flavors
from vllm_space.errors import EngineError
from vllm_space.flavors import GIB
from vllm_space.hardware import Gpu
from vllm_space.settings import Settings

HUB_TIMEOUT = 10  # seconds for each question

# Bits of one parameter, by the names that safetensors gives its number formats.
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
}

# Oldest NVIDIA driver for each CUDA generation: docs.nvidia.com/deploy/cuda-compatibility
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

# Flags with which a model may run although its weights are larger than the GPU memory.
SPARE_MEMORY = re.compile(
    r"--(?:cpu-offload|offload|quantization|hf-overrides|load-format|pipeline-parallel|nnodes)"
)


def check(config: Settings, model: str, gpus: list[Gpu]) -> list[str]:
    """Warnings for `model` on these GPUs (none: on the CPU). Raises EngineError for what certainly cannot work."""
    _check_driver(gpus)
    warnings = list(_busy(config, gpus))
    if Path(model).exists():
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
        return warnings + list(_memory(config, model, weights, gpus))
    info = _ask_hub(config, model)
    if info is None:
        return warnings
    _check_files(model, info)
    warnings += _kind(config, model, info)
    weights = _weight_bytes(info)
    _check_disk(config, model, info)
    return warnings + list(_memory(config, model, weights, gpus))


# -- the Hub ---------------------------------------------------------------------------------------------------


def _ask_hub(config: Settings, model: str) -> Any:
    """What the Hub says of the model (huggingface_hub.ModelInfo), or None where it cannot be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return None
    page = f"{constants.ENDPOINT}/{model}"
    token = config.hf_token.get_secret_value() if config.hf_token else False
    hub = HfApi(token=token)
    try:
        info = hub.model_info(
            model, revision=config.model_revision, timeout=HUB_TIMEOUT, files_metadata=True
        )
        if info.gated:
            hub.auth_check(model)
    except HFValidationError:
        raise EngineError(
            f"MODEL_ID={model} is neither a Hub id such as org/name nor a folder here."
        ) from None
    except GatedRepoError:
        how = "your HF_TOKEN has no access yet" if token else "HF_TOKEN is not set"
        raise EngineError(
            f"{model} is gated and {how}: ask for access at {page}, then set the secret HF_TOKEN to a token that may "
            "read it."
        ) from None
    except RevisionNotFoundError:
        raise EngineError(
            f"{model} has no revision {config.model_revision}: set MODEL_REVISION to one of {page}/refs, or unset it."
        ) from None
    except RepositoryNotFoundError:
        if token and not _token_works(hub):
            raise EngineError(
                "The Hub refuses HF_TOKEN: make a new one at huggingface.co/settings/tokens."
            ) from None
        private = "" if token else ", or it is private and needs the secret HF_TOKEN"
        raise EngineError(
            f"There is no model {model} on the Hub{private}.{_nearest(hub, model)}"
        ) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 401:
            raise EngineError(
                "The Hub refuses HF_TOKEN: make a new one at huggingface.co/settings/tokens."
            ) from None
        return None
    except (
        Exception
    ):  # no network, no name service, a proxy's own page: the model may still be in the cache
        return None
    return info


def _token_works(hub: Any) -> bool:
    try:
        hub.whoami()
    except Exception:
        return False
    return True


def _nearest(hub: Any, model: str) -> str:
    """The names most like `model` among those the Hub finds by its last part, or by the first half of that."""
    last = re.split(r"[/ ]", model)[-1][:40]
    found: set[str] = set()
    try:
        for part in (last, last[: max(3, len(last) // 2)]):
            found |= {one.id for one in hub.list_models(search=part, limit=50)}
    except Exception:
        return ""
    near = difflib.get_close_matches(model, sorted(found), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _check_files(model: str, info: Any) -> None:
    names = [file.rfilename for file in info.siblings or []]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".gguf"))]
    if weights and all(name.endswith(".gguf") for name in weights):
        raise EngineError(
            f"{model} holds only GGUF files, which are made for llama.cpp: choose the model they were made from."
        )
    if names and "config.json" not in names and "params.json" not in names:
        raise EngineError(
            f"{model} is not a language model in the form vLLM loads: it has no config.json."
        )


def _kind(config: Settings, model: str, info: Any) -> Iterator[str]:
    if info.pipeline_tag and not re.search(
        r"text-generation|text-to-text|any-to-any", info.pipeline_tag
    ):
        yield f"{model} says of itself that it is for {info.pipeline_tag}, so it may not chat."
    if "auto_map" in (info.config or {}) and not config.trust_remote_code:
        yield f"{model} comes with its own code: if vLLM does not know it, set TRUST_REMOTE_CODE=true if you trust it."


def _weight_bytes(info: Any) -> int:
    """Size of the weights: parameters times bytes where the Hub counted them, else the size of the files."""
    if info.safetensors and info.safetensors.parameters:
        return sum(
            count * BITS.get(name, 16) // 8 for name, count in info.safetensors.parameters.items()
        )
    return _download_bytes(info)


def _download_bytes(info: Any) -> int:
    return sum(
        file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(".safetensors")
    )


def _check_disk(config: Settings, model: str, info: Any) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    if (
        try_to_load_from_cache(model, "config.json", revision=config.model_revision)
        or "--download-dir" in config.engine_args
    ):
        return
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, _download_bytes(info)
    if not os.access(folder, os.W_OK):
        raise EngineError(f"{folder} cannot be written to: set HF_HOME to a folder that can.")
    if needed > free:
        raise EngineError(
            f"{model} is a download of {needed / GIB:.1f} GiB and {folder} has {free / GIB:.1f} GiB free: choose a "
            "smaller model, or set HF_HOME to a folder on a larger disk."
        )


# -- the hardware ----------------------------------------------------------------------------------------------


def _memory(config: Settings, model: str, weights: int, gpus: list[Gpu]) -> Iterator[str]:
    """Weights against GPU memory. Only what no setting could save is certain."""
    if not gpus or not weights:
        return
    count = config.tensor_parallel_size or len(gpus)
    total = sum(gpu.memory_total for gpu in gpus[:count]) / 1024
    needed = weights / GIB
    fits = flavors.cheapest(needed)
    on_space = f" On Spaces, {fits.name} ({fits.id}) would do." if fits else ""
    sum_up = f"{model} has {needed:.1f} GiB of weights and {count} x {gpus[0].name} has {total:.1f} GiB of memory"
    spared = config.quantization or SPARE_MEMORY.search(" ".join(config.engine_args))
    if needed > total and not spared:
        raise EngineError(
            f"{sum_up}: choose a smaller or quantised model, or bigger hardware.{on_space}"
        )
    if needed * flavors.ROOM > total:
        yield f"{sum_up}, which leaves little for the context: if it fails, choose a smaller model.{on_space}"


def _busy(config: Settings, gpus: list[Gpu]) -> Iterator[str]:
    wanted = config.gpu_memory_utilization or 0.92  # vLLM's default
    for number, gpu in enumerate(gpus[: config.tensor_parallel_size]):
        if gpu.memory_free < wanted * gpu.memory_total:
            yield (
                f"GPU {number} ({gpu.name}) has {gpu.memory_free / 1024:.1f} GiB of memory free of "
                f"{gpu.memory_total / 1024:.1f}: stop the program that holds the rest, or lower GPU_MEMORY_UTILIZATION."
            )


def _check_driver(gpus: list[Gpu]) -> None:
    cuda = _cuda_of_torch()
    if not gpus or cuda is None:
        return
    driver, oldest = int(gpus[0].driver.split(".")[0]), OLDEST_DRIVER.get(cuda, 0)
    if driver < oldest:
        raise EngineError(
            f"The NVIDIA driver {gpus[0].driver} is too old for CUDA {cuda}, which the installed PyTorch needs: update "
            f"it to {oldest} or newer."
        )


def _cuda_of_torch() -> int | None:
    """Major version of the CUDA that the installed PyTorch is built for, read without importing it."""
    spec = find_spec("torch")
    if not spec or not spec.origin:
        return None
    try:
        match = re.search(
            r"^cuda\b.*'(\d+)\.",
            Path(spec.origin).with_name("version.py").read_text(),
            re.MULTILINE,
        )
    except OSError:
        return None
    return int(match.group(1)) if match else None
