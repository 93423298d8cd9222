"""Can this model run here? Asks the Hub and the hardware, before vLLM spends minutes finding out.

A model that cannot work stops the start with an explanation. An estimate only warns, because it
might be wrong. If the Hub cannot be reached, the check is skipped: the model may be cached. So is
everything about a model that vLLM gets from elsewhere.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_space import flavors, settings
from vllm_space.engine import command
from vllm_space.errors import EngineError
from vllm_space.flavors import GIB
from vllm_space.hardware import Gpu
from vllm_space.settings import Settings

HUB_TIMEOUT = 10  # seconds for each request

# Bits per parameter, for the dtype names of safetensors.
BITS = {
    **dict.fromkeys(("F64", "I64"), 64),
    **dict.fromkeys(("F32", "I32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
    "F4": 4,
}

# CUDA major version -> oldest NVIDIA driver: docs.nvidia.com/deploy/cuda-compatibility
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

CONFIG_FILES = {"config.json", "params.json"}  # one is needed; the second is Mistral's

# Pipeline tags on the Hub of models that can chat.
CHAT_TAGS = re.compile(r"text-generation|text-to-text|any-to-any")
# With these vLLM flags, a model may run although its weights exceed the GPU memory.
MEMORY_SAVING_FLAGS = re.compile(
    r"--(?:cpu-offload|offload|quantization|hf-overrides|load-format|pipeline-parallel|nnodes)|-q\b"
)

# With these, vLLM asks the Hub for something other than MODEL_ID, MODEL_REVISION and HF_TOKEN
# say, or needs less of it.
OTHER_QUESTIONS = re.compile(
    r"--(?:config|config-format|hf-config-path|hf-token|revision)(?:=| |$)"
)
NO_DOWNLOAD = re.compile(r"--(?:download-dir|load-format)")
# A GGUF file on the Hub: org/name:Q4_K_M or org/name/file.gguf.
GGUF_ON_THE_HUB = re.compile(r"[^/:]+/[^/:]+:[\w.-]+|.*\.gguf", re.IGNORECASE)


def check(config: Settings, model: str, gpus: list[Gpu]) -> list[str]:
    """Warnings about `model` on these GPUs (none: on the CPU).

    Raises EngineError if it certainly cannot work.
    """
    _check_driver(gpus)
    warnings = list(_busy_gpus(config, gpus))
    if command.is_local(model):
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
        warnings += _local(config, model)
        return warnings + list(_memory(config, model, weights, gpus))
    if (
        "://" in model
        or settings.models_are_elsewhere()
        or command.has_flag(config, OTHER_QUESTIONS)
    ):
        return warnings
    info = _model_info(config, model)
    if info is None:
        return warnings
    _check_files(model, info)
    warnings += _kind(config, model, info)
    _check_disk(config, model, info)
    return warnings + list(_memory(config, model, _weight_bytes(info), gpus))


def _local(config: Settings, model: str) -> Iterator[str]:
    """Warnings about a model on this machine."""
    path = Path(model)
    if path.suffix.lower() == ".gguf" and not _reads_gguf():
        yield f"{path.name} is a GGUF file, which the installed vLLM cannot load without a plugin."
    elif path.is_dir() and not any((path / name).exists() for name in CONFIG_FILES):
        on_the_hub = f" To get {model} from the Hub, rename it." if model[0] not in "./" else ""
        yield (
            f"The folder {path.resolve()}, which vLLM will load, has no config.json.{on_the_hub}"
        )


def _reads_gguf() -> bool:
    """Whether the installed vLLM can load GGUF files: itself, or by a plugin."""
    plugins = entry_points(group="vllm.general_plugins")
    vllm = find_spec("vllm")
    loader = "model_executor/model_loader/gguf_loader.py"
    return any("gguf" in f"{plugin.name} {plugin.value}".lower() for plugin in plugins) or any(
        Path(folder, loader).exists() for folder in (vllm and vllm.submodule_search_locations) or ()
    )


# -- the Hub -------------------------------------------------------------------------------


def _model_info(config: Settings, model: str) -> Any:
    """The Hub's ModelInfo, or None if the Hub cannot be reached."""
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
    if GGUF_ON_THE_HUB.fullmatch(model):
        if _reads_gguf():
            return None
        raise EngineError(
            f"MODEL_ID={model} names a GGUF file, which the installed vLLM cannot load: choose the "
            "original model it was converted from."
        )
    page = f"{constants.ENDPOINT}/{model}"
    revision = config.model_revision
    token = config.hf_token.get_secret_value() if config.hf_token else False
    hub = HfApi(token=token)
    try:
        info = hub.model_info(model, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
        if info.gated:
            hub.auth_check(model)
    except HFValidationError:
        raise EngineError(
            f"MODEL_ID={settings.shorten(model)} is neither a Hub id such as org/name nor a local "
            "folder."
        ) from None
    except GatedRepoError:
        why = f"{config.hf_token_origin} has no access yet" if token else "HF_TOKEN is not set"
        raise EngineError(
            f"{model} is gated and {why}: request access at {page}, then set the secret HF_TOKEN "
            "to a token that can read it."
        ) from None
    except RevisionNotFoundError:
        raise EngineError(
            f"{model} has no revision {revision}: set MODEL_REVISION to one listed at {page}/refs, "
            "or unset it."
        ) from None
    except RepositoryNotFoundError:
        if token and not _token_works(hub):
            raise _bad_token(config) from None
        private = "" if token else ", or it is private and needs the secret HF_TOKEN"
        raise EngineError(
            f"There is no model {model} on the Hub{private}.{_suggestion(hub, model)}"
        ) from None
    except HfHubHTTPError as error:
        if token and error.response is not None and error.response.status_code == 401:
            raise _bad_token(config) from None
        return None
    except Exception:  # no network, no DNS, or the error page of a proxy
        return None
    return info


def _bad_token(config: Settings) -> EngineError:
    return EngineError(
        f"The Hub rejected {config.hf_token_origin}: create a new one at "
        "huggingface.co/settings/tokens."
    )


def _token_works(hub: Any) -> bool:
    try:
        hub.whoami()
    except Exception:
        return False
    return True


def _suggestion(hub: Any, model: str) -> str:
    """A sentence with similar names from the Hub, or an empty string."""
    name = re.split(r"[/ ]", model)[-1][:40]
    ids: set[str] = set()
    try:
        for part in (name, name[: max(3, len(name) // 2)]):
            ids |= {result.id for result in hub.list_models(search=part, limit=50)}
    except Exception:
        return ""
    similar = difflib.get_close_matches(model, sorted(ids), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""


def _check_files(model: str, info: Any) -> None:
    names = [file.rfilename for file in info.siblings or []]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".gguf"))]
    if weights and all(name.endswith(".gguf") for name in weights):
        if _reads_gguf():
            return
        raise EngineError(
            f"{model} contains only GGUF files, which are for llama.cpp: choose the original "
            "model they were converted from."
        )
    if names and not CONFIG_FILES & set(names):
        raise EngineError(f"{model} is not a language model that vLLM can load: no config.json.")


def _kind(config: Settings, model: str, info: Any) -> Iterator[str]:
    if info.pipeline_tag and not CHAT_TAGS.search(info.pipeline_tag):
        yield f"{model} is tagged {info.pipeline_tag} on the Hub, so chat may not work."
    if "auto_map" in (info.config or {}) and not config.trust_remote_code:
        yield (
            f"{model} comes with its own code: if vLLM does not support it natively, set "
            "TRUST_REMOTE_CODE=true if you trust it."
        )


def _weight_bytes(info: Any) -> int:
    """Size of the weights in memory, from the Hub's parameter counts or else the file sizes."""
    if info.safetensors and info.safetensors.parameters:
        parameters = info.safetensors.parameters.items()
        return sum(count * BITS.get(dtype, 16) // 8 for dtype, count in parameters)
    return _download_bytes(info)


def _download_bytes(info: Any) -> int:
    files = info.siblings or []
    return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))


def _check_disk(config: Settings, model: str, info: Any) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    if try_to_load_from_cache(model, "config.json", revision=config.model_revision):
        return
    if command.has_flag(config, NO_DOWNLOAD):
        return
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, _download_bytes(info)
    if not os.access(folder, os.W_OK):
        raise EngineError(f"{folder} is not writable: set HF_HOME to a writable folder.")
    if needed > free:
        raise EngineError(
            f"{model} is a download of {needed / GIB:.1f} GiB, but {folder} has only "
            f"{free / GIB:.1f} GiB free: choose a smaller model, or set HF_HOME to a folder on a "
            "larger disk."
        )


# -- the hardware --------------------------------------------------------------------------


def _memory(config: Settings, model: str, weights: int, gpus: list[Gpu]) -> Iterator[str]:
    """Compare the weights to the GPU memory. An error only if no setting could help."""
    if not gpus or not weights:
        return
    count = config.tensor_parallel_size or len(gpus)
    total = sum(gpu.memory_total for gpu in gpus[:count]) / 1024
    needed = weights / GIB
    flavor = flavors.cheapest(needed)
    on_spaces = f" On Spaces, {flavor.name} ({flavor.id}) is enough." if flavor else ""
    comparison = (
        f"{model} has {needed:.1f} GiB of weights and {count} x {gpus[0].name} has {total:.1f} GiB "
        "of memory"
    )
    saves_memory = config.quantization or command.has_flag(config, MEMORY_SAVING_FLAGS)
    if needed > total and not saves_memory:
        raise EngineError(
            f"{comparison}: choose a smaller or quantized model, or bigger hardware.{on_spaces}"
        )
    if needed * flavors.HEADROOM > total:
        yield (
            f"{comparison}, which leaves little for the context. If it fails, choose a smaller "
            f"model.{on_spaces}"
        )


def _busy_gpus(config: Settings, gpus: list[Gpu]) -> Iterator[str]:
    utilization = config.gpu_memory_utilization or 0.92  # vLLM's default
    for number, gpu in enumerate(gpus[: config.tensor_parallel_size]):
        if gpu.memory_free < utilization * gpu.memory_total:
            yield (
                f"GPU {number} ({gpu.name}) has {gpu.memory_free / 1024:.1f} of "
                f"{gpu.memory_total / 1024:.1f} GiB of memory free: stop the program that uses the "
                "rest, or lower GPU_MEMORY_UTILIZATION."
            )


def _check_driver(gpus: list[Gpu]) -> None:
    cuda = _cuda_of_torch()
    if not gpus or cuda is None:
        return
    driver, oldest = int(gpus[0].driver.split(".")[0]), OLDEST_DRIVER.get(cuda, 0)
    if driver < oldest:
        raise EngineError(
            f"The NVIDIA driver {gpus[0].driver} is too old for CUDA {cuda}, which the installed "
            f"PyTorch needs: update it to {oldest} or newer."
        )


def _cuda_of_torch() -> int | None:
    """CUDA major version of the installed PyTorch, read without importing it."""
    spec = find_spec("torch")
    if not spec or not spec.origin:
        return None
    try:
        version = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b.*'(\d+)\.", version, re.MULTILINE)
    return int(match.group(1)) if match else None
