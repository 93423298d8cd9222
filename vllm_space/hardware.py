"""This machine's GPUs, memory and CPU cores, and the Space it runs, if any.

Reads nvidia-smi, /proc and the variables that Spaces set. Knows nothing of settings. start.sh runs
`python vllm_space/hardware.py ENGINE_DEVICE` before anything is installed: standard library only.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CUDA_HOME = "/usr/local/cuda"  # unless the environment variable says otherwise
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
    """A Hugging Face Space."""

    id: str
    host: str
    zero_gpu: bool
    oauth: bool = False  # `hf_oauth: true` in its card: visitors can sign in

    @property
    def settings_url(self) -> str:
        return f"https://huggingface.co/spaces/{self.id}/settings"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names under which it is reached: the Hub's, then custom domains."""
        return tuple(filter(None, (name.strip() for name in self.host.split(","))))

    @property
    def url(self) -> str:
        """The direct URL, outside the Hub's iframe; empty if unknown."""
        return f"https://{self.hosts[0]}" if self.hosts else ""


def gpus(device: str = "auto") -> list[Gpu]:
    """The NVIDIA GPUs that the engine runs on; none means the CPU.

    `device` is the setting ENGINE_DEVICE: "cpu" ignores all GPUs. Without a working nvidia-smi
    there are none.
    """
    if device == "cpu":
        return []
    try:
        result = subprocess.run(
            ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    devices = []
    for line in result.stdout.splitlines():
        try:
            name, total, free, capability, driver = (field.strip() for field in line.split(","))
            devices.append(Gpu(name, int(total), int(free), float(capability), driver))
        except ValueError:  # a lost GPU, or one in a mode without these figures
            continue
    return devices


def has_nvcc() -> bool:
    """Whether the CUDA compiler is installed, which FlashInfer's sampler needs at run time."""
    home = os.environ.get("CUDA_HOME", CUDA_HOME)
    return bool(shutil.which("nvcc")) or Path(home, "bin", "nvcc").exists()


def memory_gib() -> float:
    """Memory available to this process in GiB: what is free, or the container's limit if lower."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) / 2**20
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            available = min(available, int(Path(limit).read_text()) / 2**30)
        except (OSError, ValueError):  # no such cgroup version, or "max"
            continue
    return available


def core_limit() -> int | None:
    """How many CPU cores this process may keep busy; None if it may use all that it sees.

    A container with a share of a large machine sees all of the machine's cores.
    """
    cores = os.environ.get("CPU_CORES", "") if os.environ.get("SPACE_ID") else ""
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = cores or str(quota / period)
    except (OSError, ValueError):  # no cgroup version 2, or no limit
        pass
    try:
        limit = max(1, int(float(cores)))
    except ValueError:
        return None
    return limit if limit < len(os.sched_getaffinity(0)) else None


def is_loopback(host: str | None) -> bool:
    """Whether the host of a URL is this machine."""
    name = (host or "").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
        return True
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:  # another name
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip  # a socket for both kinds shows IPv4 in IPv6
    return ip.is_loopback or ip.is_unspecified  # Linux connects 0.0.0.0 to loopback


def space() -> Space | None:
    """The Space this runs in, or None elsewhere."""
    space_id = os.environ.get("SPACE_ID")
    if not space_id:
        return None
    zero_gpu = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t")
    oauth = all(map(os.environ.get, OAUTH_VARIABLES))
    return Space(space_id, os.environ.get("SPACE_HOST", ""), zero_gpu, oauth)


if __name__ == "__main__":
    sys.exit(not gpus(*sys.argv[1:]))
