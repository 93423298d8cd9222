"""The GPU hardware that Spaces offer, the model suggested for each, and its vLLM flags.

`python -m vllm_space.flavors` prints the README's table. Pure data and arithmetic: looks at no
machine and no Hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_space import settings
from vllm_space.hardware import Gpu

GIB = 2**30
HEADROOM = 1.2  # memory that a model needs, as a multiple of its weights
BFLOAT16_FROM = 8.0  # compute capability: Ampere

# Memory in MiB as nvidia-smi reports it, and compute capability.
T4 = Gpu("Tesla T4", 15360, 15360, 7.5, "")
L4 = Gpu("NVIDIA L4", 23034, 23034, 8.9, "")
A10G = Gpu("NVIDIA A10G", 23028, 23028, 8.6, "")
L40S = Gpu("NVIDIA L40S", 46068, 46068, 8.9, "")
A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920, 81920, 8.0, "")
RTX_PRO = Gpu("NVIDIA RTX PRO 6000", 97887, 97887, 12.0, "")


@dataclass(frozen=True)
class Flavor:
    """A hardware choice of Spaces: its id in Hugging Face's API, its displayed name, its GPUs."""

    id: str
    name: str
    gpu: Gpu
    count: int = 1

    @property
    def gpus(self) -> list[Gpu]:
        return [self.gpu] * self.count

    @property
    def memory(self) -> float:
        """GPU memory in GiB, of all GPUs together."""
        return self.gpu.memory_total * self.count / 1024

    def holds(self, weights: float) -> bool:
        """Whether a model with that many GiB of weights fits, with room for its context."""
        return weights * HEADROOM <= self.memory


# Cheapest first: huggingface.co/docs/hub/spaces-gpus. The last four are not listed there, only in
# huggingface_hub, without a price.
FLAVORS = [
    Flavor("t4-small", "T4 small", T4),
    Flavor("t4-medium", "T4 medium", T4),
    Flavor("l4x1", "L4", L4),
    Flavor("a10g-small", "A10G small", A10G),
    Flavor("a10g-large", "A10G large", A10G),
    Flavor("l40sx1", "L40S", L40S),
    Flavor("a100-large", "A100", A100),
    Flavor("a10g-largex2", "2 x A10G", A10G, 2),
    Flavor("l4x4", "4 x L4", L4, 4),
    Flavor("a10g-largex4", "4 x A10G", A10G, 4),
    Flavor("l40sx4", "4 x L40S", L40S, 4),
    Flavor("a100x4", "4 x A100", A100, 4),
    Flavor("a100x8", "8 x A100", A100, 8),
    Flavor("l40sx8", "8 x L40S", L40S, 8),
    Flavor("rtx-pro-6000", "RTX PRO 6000", RTX_PRO),
    Flavor("rtx-pro-6000x2", "2 x RTX PRO 6000", RTX_PRO, 2),
    Flavor("rtx-pro-6000x4", "4 x RTX PRO 6000", RTX_PRO, 4),
    Flavor("rtx-pro-6000x8", "8 x RTX PRO 6000", RTX_PRO, 8),
]

# Suggested models -> parameters according to the Hub, smallest first. All are of one family, not
# gated, and have 16 bits per parameter.
MODELS = {
    settings.DEFAULT_GPU_MODEL: 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-235B-A22B-Instruct-2507": 235_093_634_560,
}


def weights(model: str) -> float:
    """The weights of one of MODELS, in GiB."""
    return MODELS[model] * 2 / GIB


def cheapest(gib: float) -> Flavor | None:
    """The cheapest flavor for a model with that many GiB of weights."""
    return next((flavor for flavor in FLAVORS if flavor.holds(gib)), None)


def largest_model(flavor: Flavor) -> str:
    """The largest of MODELS that fits."""
    return [model for model in MODELS if flavor.holds(weights(model))][-1]


def hardware_flags(config: settings.Settings, gpus: list[Gpu]) -> dict[str, object]:
    """The vLLM flags that depend on the hardware: flag -> value, or None for vLLM's default.

    No GPUs means the CPU. The owner's settings override.
    """
    dtype, size = config.dtype, config.tensor_parallel_size
    if gpus and dtype is None and min(gpu.compute_capability for gpu in gpus) < BFLOAT16_FROM:
        dtype = "half"
    if gpus and size is None:
        size = 1 << (len(gpus).bit_length() - 1)  # a power of two: it divides attention heads
    return {
        "--dtype": dtype,
        "--max-model-len": config.max_model_len or -1,  # -1: as long as the memory allows
        "--gpu-memory-utilization": config.gpu_memory_utilization,
        "--tensor-parallel-size": size,
    }


def flags(flavor: Flavor) -> str:
    """The hardware flags on this flavor if the owner sets only MODEL_ID."""
    defaults = settings.Settings.model_construct()  # ignores this machine's variables
    pairs = hardware_flags(defaults, flavor.gpus).items()
    return " ".join(f"{flag} {value}" for flag, value in pairs if value is not None)


def table() -> str:
    """The README's hardware table, as Markdown."""
    rows = [
        "| hardware | GPU memory | largest suggested model | weights | vLLM flags |",
        "|---|---|---|---|---|",
    ]
    for flavor in FLAVORS:
        model = largest_model(flavor)
        rows.append(
            f"| {flavor.name} (`{flavor.id}`) | {flavor.memory:.0f} GiB | `{model}` | "
            f"{weights(model):.0f} GiB | `{flags(flavor)}` |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
