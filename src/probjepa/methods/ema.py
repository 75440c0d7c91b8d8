"""An exponential moving average of a module: the teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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

    The copy is kept in float32 at least, whatever the source is cast to (bf16-true, 16-true): a step of
    (1 − τ)·Δ is less than half a unit in the last place of bfloat16, so that nothing would move.

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
        self._apply(lambda value: value)  # a source that is narrow already

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMA:
        """Move and cast, as in ``to``, but to no type narrower than float32."""

        def wide(value: Tensor) -> Tensor:
            moved = fn(value)
            if moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize:
                return value.to(moved.device, torch.promote_types(value.dtype, torch.float32))
            return moved

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> EMA:
        """Set the mode; the averaged module is in evaluation mode unless it uses its batch's statistics."""
        self.training = mode
        self.module.train(mode and self.statistics == "batch")
        return self

    @torch.no_grad()
    def forward(self, *args: Any) -> Tensor:
        """Apply the averaged module, without gradients."""
        out: Tensor = self.module(*(self.typed(arg) if isinstance(arg, Tensor) else arg for arg in args))
        return out

    def typed(self, value: Tensor) -> Tensor:
        """Return a floating-point value in the averaged module's type, anything else as it is."""
        of = next(self.module.parameters(), value).dtype
        return value.to(of) if value.is_floating_point() else value

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
        saved = self.module.state_dict(keep_vars=True)  # other buffers are constants, such as positions
        for (name, kept), current in zip(self.module.named_buffers(), source.buffers(), strict=True):
            if name not in saved:
                continue
            if kept.is_floating_point():
                kept.lerp_(current.to(kept.dtype), weight)
            else:
                kept.copy_(current)  # a count of batches
