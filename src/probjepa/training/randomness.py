"""torch's global generators: lent to a block, or kept in a checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def forked(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which the generators of the CPU and of ``device`` are as they were before."""
    context: AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return context


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that draws and dropout on ``device`` come from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def restore_random_state(states: list[Tensor], device: torch.device) -> None:
    """Set what ``random_state`` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
