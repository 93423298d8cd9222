"""What runs as the engine: its command line, its environment and its CPU cores, by settings and hardware.

In all of it `gpus` are the GPUs that the engine runs on (hardware.gpus); none means the CPU. Starts nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vllm_space import flavors, hardware, settings
from vllm_space.settings import Settings

HOST = "127.0.0.1"
NO_HOST = "none.invalid"  # no name ends so: RFC 2606


def model_id(config: Settings, gpus: list[hardware.Gpu]) -> str:
    """The model to serve: the owner's, else one that fits a T4, else the embedded demo model."""
    if config.model_id:
        return config.model_id
    return settings.DEFAULT_GPU_MODEL if gpus else str(settings.DEMO_MODEL)


def served_model_name(model: str) -> str:
    """The name under which the API knows a model: a local folder shows its own name only, never the path."""
    if Path(model) == settings.DEMO_MODEL:
        return settings.DEMO_MODEL_NAME
    return Path(model).resolve().name if Path(model).exists() else model


def command_line(config: Settings, gpus: list[hardware.Gpu]) -> list[str]:
    """The engine's command line. No secret is in it: other users of the machine can read it."""
    model = model_id(config, gpus)
    flags: dict[str, object] = {
        "--model": model,
        "--host": HOST,
        "--port": config.engine_port,
        "--served-model-name": served_model_name(model),
        "--revision": config.model_revision if config.model_revision != "main" else None,
        "--quantization": config.quantization,
        **flavors.fitted_flags(config, gpus),
        "--trust-remote-code": config.trust_remote_code,
        "--enforce-eager": not gpus,
    }
    if config.engine_module.endswith("openai.api_server"):  # the legacy server knows none of these
        flags |= {
            "--reasoning-parser": config.reasoning_parser,
            "--tool-call-parser": config.tool_call_parser,
            "--enable-auto-tool-choice": bool(config.tool_call_parser),
            # No request makes the engine fetch an address: pictures come within requests. ENGINE_ARGS may name hosts.
            "--allowed-media-domains": NO_HOST,
            "--disable-uvicorn-access-log": True,
        }
    line = [sys.executable, "-m", config.engine_module]
    for flag, value in flags.items():
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line + list(config.engine_args)  # last, so that they win


def environment(config: Settings, gpus: list[hardware.Gpu]) -> dict[str, str]:
    """The engine's environment: this one's, and what it lacks. The owner's own values win."""
    quiet = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")  # usage statistics
    extra = {"PYTHONUNBUFFERED": "1"} | dict.fromkeys(quiet, "1")
    if not hardware.has_nvcc():
        extra["VLLM_USE_FLASHINFER_SAMPLER"] = (
            "0"  # it compiles with nvcc at start: vLLM issue 49497
        )
    if not gpus:
        # GiB for the KV cache: a part of what is free, so that weights and the system have room.
        extra["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(16, int(hardware.memory_gib() / 8))))
        if cores := hardware.core_limit():
            # vLLM would bind a thread to every core it sees, and they would wait for each other. One is for the rest.
            extra |= {
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": str(max(1, cores - 1)),
            }
    secret = {
        "VLLM_API_KEY": config.model_api_key.get_secret_value() if config.model_api_key else "",
        "HF_TOKEN": config.hf_token.get_secret_value() if config.hf_token else "",
    }
    # The page's own secrets are none of the engine's, nor of what it runs.
    return (
        extra
        | settings.environment_without_secrets()
        | {name: value for name, value in secret.items() if value}
    )


def cores(config: Settings, gpus: list[hardware.Gpu]) -> set[int]:
    """The CPU cores that the engine may use: without a GPU all but one, which is for the page.

    vLLM's processes spin while they wait for each other: on every core, they keep the page and the door waiting for
    seconds. Where the owner, or `environment` on a share of a machine, sees to its threads, it may use all.
    """
    mine = sorted(os.sched_getaffinity(0))
    bound = "VLLM_CPU_OMP_THREADS_BIND" in environment(config, gpus)
    return set(mine if gpus or bound or len(mine) == 1 else mine[:-1])
