"""The device of a name."""

from __future__ import annotations

import torch

from probjepa.errors import ConfigError, unknown_name


def resolve_device(device: str) -> torch.device:
    """Return the device of a name such as "auto" (a GPU where there is one), or raise ConfigError."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "mps"]) from None
    if target.type == "cuda":
        count = torch.cuda.device_count()
        if (target.index or 0) >= count:
            raise ConfigError(f"no device {device}: {count} CUDA devices are visible; use 'cpu' or 'auto'")
        return target if target.index is not None else torch.device("cuda", torch.cuda.current_device())
    if target.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("no device mps on this machine: use device='cpu' or 'auto'")
    if target.type not in ("cpu", "mps"):
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "mps"])
    return target
