"""An exponential moving average of a module: the teacher."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probjepa.errors import ConfigError, unknown_name

SCHEDULES = ("cosine", "linear")
STATISTICS = ("averaged", "batch")


class EMA(nn.Module):
    """A copy that follows ``source`` at momentum τ₀ → 1.

    τ(step) = 1 − (1 − τ₀)·r with r = (1 + cos(π·step/total))/2 ("cosine") or 1 − step/total ("linear").

    Batch norm in the copy needs statistics of the copy's own activations: the source's are of other weights.

    Parameters
    ----------
    source
        the module that is followed
    momentum, schedule
        τ₀, and the course of τ
    statistics
        "averaged": the source's running statistics are averaged like its weights, and the copy stays in
        evaluation mode; "batch": in training the copy normalises by its own batch, and keeps running
        statistics of its own for evaluation, as BYOL's code does

    Raises
    ------
    ConfigError
        if the momentum is not in [0, 1], or for an unknown schedule or kind of statistics
    """

    def __init__(
        self,
        source: nn.Module,
        momentum: float = 0.996,
        schedule: Literal["cosine", "linear"] = "cosine",
        statistics: Literal["averaged", "batch"] = "averaged",
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"EMA momentum must lie in [0, 1], got {momentum}")
        if schedule not in SCHEDULES:
            raise unknown_name("EMA schedule", schedule, SCHEDULES)
        if statistics not in STATISTICS:
            raise unknown_name("kind of EMA statistics", statistics, STATISTICS)
        self.momentum = momentum
        self.schedule = schedule
        self.statistics = statistics
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EMA:
        """Set the mode; the averaged module is in evaluation mode unless it uses its batch's statistics."""
        self.training = mode
        self.module.train(mode and self.statistics == "batch")
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
        mine: list[Tensor] = list(self.module.parameters())
        theirs = [value.to(kept.dtype) for kept, value in zip(mine, source.parameters(), strict=True)]
        torch._foreach_lerp_(mine, theirs, weight)  # in one go, which a GPU needs
        if self.statistics == "batch":
            return
        for kept, current in zip(self.module.buffers(), source.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(current.to(kept.dtype), weight)
            else:
                kept.copy_(current)  # a count of batches
