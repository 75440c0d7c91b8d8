"""The states of torch's global generators, as a checkpoint keeps them."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that draws and dropout on ``device`` come from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def restore_random_state(states: list[Tensor], device: torch.device) -> None:
    """Set what ``random_state`` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
