"""A diagonal Gaussian: the simplest probabilistic head, the control of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.types import _size

from probjepa.heads.base import (
    RAW_UNIT_SCALE,
    DensityPrediction,
    Head,
    check_widths,
    full_precision,
    gaussian_log_density,
    positive_scale,
)
from probjepa.heads.networks import mlp

_HALF_LOG_2PI_E = 0.5 * math.log(2 * math.pi * math.e)


class Gaussian(Head):
    """N(μ(c), diag σ²(c)), with σ = softplus(·) + 1e-3, 1 at first up to the network's random output.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target and of the context
    hidden
        hidden widths of the network, GELU between. About 1 MFLOP a target at the sizes of I-JEPA tokens
        (192 → 384), forward

    Raises
    ------
    ConfigError
        for a width below 1

    Examples
    --------
    >>> head = Gaussian(dim=2, context_dim=3)
    >>> prediction = head(torch.zeros(5, 3))
    >>> prediction.log_prob(torch.zeros(5, 2)).shape, prediction.sample((10,)).shape
    (torch.Size([5]), torch.Size([10, 5, 2]))
    """

    name = "gaussian"

    def __init__(self, dim: int, context_dim: int, *, hidden: Sequence[int] = (512,)) -> None:
        super().__init__(dim, context_dim)
        self.net = mlp([context_dim, *check_widths(self, hidden), 2 * dim])
        with torch.no_grad():
            self.net[-1].bias.view(2, dim)[1] = RAW_UNIT_SCALE  # type: ignore[operator]

    def forward(self, context: Tensor) -> GaussianPrediction:
        """Predict from a context (..., C)."""
        mean, raw = self.net(self.checked(context)).to(self.dtype).chunk(2, -1)
        return GaussianPrediction(self, mean, positive_scale(raw))


class GaussianPrediction(DensityPrediction):
    """A diagonal Gaussian with ``mean`` and ``stddev``, both (..., D)."""

    has_rsample = True

    def __init__(self, head: Gaussian, mean: Tensor, scale: Tensor) -> None:
        super().__init__(head, mean.shape[:-1])
        self._mean = mean
        self._scale = scale

    @property
    def mean(self) -> Tensor:
        """μ (..., D)."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """σ² (..., D)."""
        return self._scale.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) in nats at targets (..., D)."""
        value = self.checked(value)
        with full_precision(value):
            return gaussian_log_density(value, self._mean, self._scale).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats: Σ ½·log(2πe·σ²)."""
        return (self._scale.log() + _HALF_LOG_2PI_E).sum(-1)

    def rsample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw targets (*sample_shape, ..., D) that are differentiable in μ and σ."""
        return self._mean + self._scale * self.standard_normal(sample_shape, generator)
