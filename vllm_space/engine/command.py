"""The engine's command line, environment and CPU cores, for the settings and the hardware.

`gpus` always means the GPUs that the engine runs on (hardware.gpus); none means the CPU. Starts
nothing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from vllm_space import flavors, hardware, settings
from vllm_space.settings import Settings

HOST = "127.0.0.1"
NO_HOST = "none.invalid"  # a host name that never exists: RFC 2606

# Usage statistics are off unless the owner turns them on.
NO_TELEMETRY = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")


def model_id(config: Settings, gpus: list[hardware.Gpu]) -> str:
    """The model to serve: the owner's, else one that fits a T4, else the embedded demo model."""
    if config.model_id:
        return config.model_id
    return settings.DEFAULT_GPU_MODEL if gpus else str(settings.DEMO_MODEL)


def model_origin(config: Settings, gpus: list[hardware.Gpu]) -> str:
    """Why `model_id` chose its model, for the log."""
    if config.model_id:
        return "MODEL_ID"
    if gpus:
        return "default for a GPU"
    return "demo model: " + (
        "ENGINE_DEVICE=cpu" if config.engine_device == "cpu" else "no GPU found"
    )


def is_local(model: str) -> bool:
    """Whether the model is a file or a folder on this machine."""
    return os.path.exists(model)  # noqa: PTH110  (a Path raises an error for a very long name)


def served_model_name(model: str) -> str:
    """The model's name in the API: for a path or an address its last part, never all of it."""
    path = Path(model)
    if path == settings.DEMO_MODEL:
        return settings.DEMO_MODEL_NAME
    if is_local(model):
        path = path.resolve()
    elif not re.match(r"[./~]|\w+://", model):
        return model
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def has_flag(config: Settings, flags: re.Pattern[str]) -> bool:
    """Whether ENGINE_ARGS has one of these flags. vLLM takes them with underscores, too."""
    words = (re.sub("^--[^=]*", lambda m: m[0].replace("_", "-"), w) for w in config.engine_args)
    return bool(flags.search(" ".join(words)))


def command_line(config: Settings, gpus: list[hardware.Gpu]) -> list[str]:
    """The engine's command line. It holds no secrets: any user of the machine can read it."""
    model = model_id(config, gpus)
    flags: dict[str, object] = {
        "--model": model,
        "--host": HOST,
        "--port": config.engine_port,
        "--served-model-name": served_model_name(model),
        "--revision": config.model_revision if config.model_revision != "main" else None,
        "--quantization": config.quantization,
        **flavors.hardware_flags(config, gpus),
        "--trust-remote-code": config.trust_remote_code,
        "--enforce-eager": not gpus,
    }
    if config.engine_module.endswith("openai.api_server"):  # the legacy server lacks these flags
        flags |= {
            "--reasoning-parser": config.reasoning_parser,
            "--tool-call-parser": config.tool_call_parser,
            "--enable-auto-tool-choice": bool(config.tool_call_parser),
            # Requests contain their images; they must not make the engine fetch URLs. ENGINE_ARGS
            # can allow hosts.
            "--allowed-media-domains": NO_HOST,
            "--disable-uvicorn-access-log": True,
        }
    line = [sys.executable, "-m", config.engine_module]
    for flag, value in flags.items():
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line + list(config.engine_args)  # last, so that they override


def environment(config: Settings, gpus: list[hardware.Gpu]) -> dict[str, str]:
    """The engine's environment: defaults, the variables of this process, and its secrets."""
    defaults = {"PYTHONUNBUFFERED": "1"} | dict.fromkeys(NO_TELEMETRY, "1")
    if not hardware.has_nvcc():
        # FlashInfer's sampler is compiled with nvcc when the engine starts (vllm#49497).
        defaults["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if not gpus:
        # KV cache in GiB: a fraction of the free memory, to leave room for weights and system.
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(16, int(hardware.memory_gib() / 8))))
        if cores := hardware.core_limit():
            # vLLM would bind one thread to every core it sees: more threads than this container
            # can run, waiting for each other. One core is left for the page.
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            defaults["OMP_NUM_THREADS"] = str(max(1, cores - 1))
    secrets = {"VLLM_API_KEY": config.model_api_key, "HF_TOKEN": config.hf_token}
    return (
        defaults
        | settings.environment_without_secrets()  # the engine needs none of the page's secrets
        | {name: secret.get_secret_value() for name, secret in secrets.items() if secret}
    )


def cores(config: Settings, gpus: list[hardware.Gpu]) -> set[int]:
    """The CPU cores that the engine may use: without a GPU all but one, which is for the page.

    vLLM's processes spin while they wait for each other. If they use every core, the page and the
    API stall for seconds. If the owner or `environment` limits its threads, it may use all cores.
    """
    available = sorted(os.sched_getaffinity(0))
    is_limited = "VLLM_CPU_OMP_THREADS_BIND" in environment(config, gpus)
    return set(available if gpus or is_limited or len(available) == 1 else available[:-1])
