"""What a figure was measured on: the processor and the versions."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from probjepa import __version__

CPUINFO, CGROUP = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup")


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
    """Return the bytes of main memory that can still be had."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpuinfo(name: str) -> str:
    with suppress(OSError, StopIteration), CPUINFO.open(encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name))
    return ""


def hardware() -> str:
    """Name the processor with its flags (and the GPU) that figures are measured on, and torch's threads."""
    import torch

    name = cpu_model()
    if flags := cpu_flags():
        name += f" ({', '.join(flags)})"
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def versions() -> dict[str, str]:
    """Return the versions of this library, torch and Python."""
    import torch

    return {
        "probjepa": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
