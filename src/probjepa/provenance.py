"""What a figure was measured on: the processor and the versions."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from probjepa import __version__
from probjepa.errors import counted

if TYPE_CHECKING:
    import torch

OWN_THREADS = "PROBJEPA_OWN_THREADS"  # set where the command has set OMP_NUM_THREADS, not the user
CPUINFO, MEMINFO, CGROUP = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def cpu_model() -> str:
    """Return the processor's name where Linux tells it, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return which of AVX2, AVX-512 and the units for bfloat16 the processor has, where Linux tells it."""
    flags = _cpuinfo("flags").split()
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]


def bf16_units() -> list[str]:
    """Return which units for bfloat16 the processor has, where Linux tells it."""
    return [flag for flag in cpu_flags() if flag.endswith("_bf16")]


def computes_bf16(device: str) -> bool:
    """Return whether a device of this type ("cpu", "cuda") has units for bfloat16."""
    import torch

    return torch.cuda.is_bf16_supported() if device == "cuda" else device == "cpu" and bool(bf16_units())


def usable_cpus() -> int:
    """Return how many processors this process may use: by its affinity, and by its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        if (CGROUP / "cpu.max").is_file():
            quota, period = map(int, (CGROUP / "cpu.max").read_text().split())  # no limit is "max"
        else:
            files = (CGROUP / "cpu" / f"cpu.cfs_{of}_us" for of in ("quota", "period"))
            quota, period = (int(file.read_text()) for file in files)
        if quota > 0:
            return min(allowed, -(-quota // period))
    return allowed


def free_memory() -> int:
    """Return the bytes of main memory that can still be had, also by its container's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):  # not Linux
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    one = (CGROUP / "memory.max").is_file()
    names = ("memory.max", "memory.current") if one else ("limit_in_bytes", "usage_in_bytes")
    folder = CGROUP if one else CGROUP / "memory"
    with suppress(OSError, ValueError):  # no limit is "max", or more than there is
        limit, used = (int((folder / (name if one else f"memory.{name}")).read_text()) for name in names)
        free = min(free, max(limit - used, 0))
    return free


def _cpuinfo(name: str) -> str:
    with suppress(OSError, StopIteration), CPUINFO.open(encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name))
    return ""


def hardware(device: torch.device | None = None) -> str:
    """Name the processor with its flags (and the GPU) that figures are measured on, and torch's threads.

    The GPU is ``device``, or the current one.
    """
    import torch

    name = cpu_model()
    if flags := cpu_flags():
        name += f" ({', '.join(flags)})"
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return f"{name}, {counted(torch.get_num_threads(), 'thread')}"


def versions() -> dict[str, str]:
    """Return the versions of this library, torch and Python."""
    import torch

    return {
        "probjepa": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
