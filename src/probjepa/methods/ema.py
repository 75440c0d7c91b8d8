"""An exponential moving average of a module: the teacher."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probjepa.errors import ConfigError, unknown_name

SCHEDULES = ("cosine", "linear")


class EMA(nn.Module):
    """A copy that follows ``source`` at momentum τ₀ → 1.

    It stays in evaluation mode when the method is put in training mode: its batch statistics are the
    source's. A method whose published teacher normalises by its own batch sets ``module``'s mode (BYOL).

    τ(step) = 1 − (1 − τ₀)·r with r = (1 + cos(π·step/total))/2 ("cosine") or 1 − step/total ("linear").
    Buffers (batch statistics) are copied as they are.

    Raises
    ------
    ConfigError
        if the momentum is not in [0, 1], or for an unknown schedule
    """

    def __init__(
        self,
        source: nn.Module,
        momentum: float = 0.996,
        schedule: Literal["cosine", "linear"] = "cosine",
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"EMA momentum must lie in [0, 1], got {momentum}")
        if schedule not in SCHEDULES:
            raise unknown_name("EMA schedule", schedule, SCHEDULES)
        self.momentum = momentum
        self.schedule = schedule
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode: the teacher's batch statistics are the source's."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, *args: Any) -> Tensor:
        """Apply the averaged module, without gradients."""
        out: Tensor = self.module(*args)
        return out

    def momentum_at(self, step: int, total_steps: int) -> float:
        """Momentum τ at an optimiser step."""
        progress = min(step / max(total_steps, 1), 1.0)
        left = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return 1 - (1 - self.momentum) * left

    @torch.no_grad()
    def update(self, source: nn.Module, step: int, total_steps: int) -> None:
        """Move towards ``source``: call it after each optimiser step."""
        weight = 1 - self.momentum_at(step, total_steps)
        for mine, theirs in zip(self.module.parameters(), source.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), weight)
        for kept, current in zip(self.module.buffers(), source.buffers(), strict=True):
            kept.copy_(current)
