"""What a figure was measured on: the processor and the versions."""

from __future__ import annotations

import platform

from probjepa import __version__


def hardware() -> str:
    """Name the processor (and GPU) that figures are measured on, with torch's threads."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
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
