"""What this machine has: GPUs, memory, cores, and which Space it is, if it is one.

Reads what the platform says (nvidia-smi, /proc, the Space's own variables). Knows nothing of settings.
start.sh asks `python vllm_space/hardware.py ENGINE_DEVICE` before anything is installed, so this file needs the
standard library only.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CUDA_HOME = (
    "/usr/local/cuda"  # where the toolkit is, unless the variable of this name says otherwise
)
OAUTH_VARIABLES = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
GPU_FIELDS = "name,memory.total,memory.free,compute_cap,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in MiB."""

    name: str
    memory_total: int
    memory_free: int
    compute_capability: float
    driver: str


@dataclass(frozen=True)
class Space:
    """The Hugging Face Space this runs in."""

    id: str
    host: str
    zero_gpu: bool
    oauth: bool = False  # whether it may sign visitors in: `hf_oauth: true` in its card

    @property
    def settings_url(self) -> str:
        return f"https://huggingface.co/spaces/{self.id}/settings"

    @property
    def url(self) -> str:
        """Its own address, outside the Hub's frame; empty if the platform does not say."""
        return f"https://{self.host.split(',')[0]}" if self.host else ""


def gpus(device: str = "auto") -> list[Gpu]:
    """The NVIDIA GPUs that the engine runs on; an empty list means the CPU.

    `device` is the owner's ENGINE_DEVICE: with "cpu" the GPUs do not count. Nor do those for which nvidia-smi is
    missing or fails.
    """
    if device == "cpu":
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.stdout.splitlines():
        try:
            name, total, free, capability, driver = (field.strip() for field in line.split(","))
            found.append(Gpu(name, int(total), int(free), float(capability), driver))
        except ValueError:  # a GPU that is lost or in a mode without these figures
            continue
    return found


def has_nvcc() -> bool:
    """Whether the CUDA compiler is there, which FlashInfer's sampler needs at run time."""
    home = os.environ.get("CUDA_HOME", CUDA_HOME)
    return bool(shutil.which("nvcc")) or Path(home, "bin", "nvcc").exists()


def memory_gib() -> float:
    """Memory this process may use, in GiB: what is free, or the container's limit where that is less."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) / 2**20
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            available = min(available, int(Path(limit).read_text()) / 2**30)
        except (OSError, ValueError):  # no such cgroup version, or "max"
            continue
    return available


def core_limit() -> int | None:
    """CPU cores this process may keep busy, where that is fewer than it can see; None where it may use all of them.

    A container with a share of a large machine sees every core of it.
    """
    allotted = os.environ.get("CPU_CORES", "") if os.environ.get("SPACE_ID") else ""
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        allotted = allotted or str(quota / period)
    except (OSError, ValueError):  # no cgroup of version 2, or no limit
        pass
    try:
        limit = max(1, int(float(allotted)))
    except ValueError:
        return None
    return limit if limit < len(os.sched_getaffinity(0)) else None


def is_loopback(host: str | None) -> bool:
    """Whether a host, as it stands in an address, is this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:  # a name
        return False


def reach_directly(host: str) -> None:
    """Let no proxy that the environment names stand before this machine and `host`, its own address."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if excepted != "*":
        names = ",".join(filter(None, (excepted, "localhost", "127.0.0.1", host)))
        os.environ |= {"no_proxy": names, "NO_PROXY": names}


def space() -> Space | None:
    """The Space this runs in, or None on any other machine."""
    space_id = os.environ.get("SPACE_ID")
    if not space_id:
        return None
    zero_gpu = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")
    oauth = all(map(os.environ.get, OAUTH_VARIABLES))
    return Space(space_id, os.environ.get("SPACE_HOST", ""), zero_gpu, oauth)


if __name__ == "__main__":
    sys.exit(not gpus(*sys.argv[1:]))
