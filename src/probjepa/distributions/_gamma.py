"""Differences of gamma functions that keep their digits where the two would cancel; all in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_STIRLING = 1e4  # from here on three terms of the series have all of float64's digits
_FARTHEST = 1e30  # infinity counts as this: the steps below have reached their limits


def log_gamma_step(x: Tensor, step: float) -> Tensor:
    """log Γ(x + step) − log Γ(x) − step·log x of x > 0 (...), for step > 0; it tends to 0 as x → ∞."""
    near, far, low, high = _parts(x, step)
    series = (far + step - 0.5) * torch.log1p(step * low) - step - step * low * high / 12
    direct = torch.lgamma(near + step) - torch.lgamma(near) - step * near.log()
    return torch.where(x > _STIRLING, series, direct)


def digamma_step(x: Tensor, step: float) -> Tensor:
    """ψ(x + step) − ψ(x) of x > 0 (...), for step > 0."""
    near, _, low, high = _parts(x, step)
    series = torch.log1p(step * low) + step * low * high * (0.5 + (low + high) / 12)
    return torch.where(x > _STIRLING, series, torch.digamma(near + step) - torch.digamma(near))


def _parts(x: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x where small and x where large, each harmless elsewhere; of the latter 1/x and 1/(x + step)."""
    x = x.double()
    large = x > _STIRLING
    near, far = torch.where(large, 1.0, x), torch.where(large, x, _STIRLING).clamp_max(_FARTHEST)
    return near, far, 1 / far, 1 / (far + step)
