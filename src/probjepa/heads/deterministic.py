"""A point prediction: the baseline of the predictive heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import _size

from probjepa.errors import ConfigError
from probjepa.heads.base import MAX_Z, Head, Prediction, check_widths, far_scale, full_precision
from probjepa.heads.networks import mlp

_ALIGNMENT, _VARIANCE, _COVARIANCE = 1.0, 0.1, 0.01


def variances_and_off_diagonal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (D,) over N − 1 of rows (N, D), N ≥ 2, and Σ_{i≠j} Cov²ᵢⱼ/D, a scalar."""
    scale = far_scale(x, (0, 1), MAX_Z).squeeze()
    scaled = x / scale
    centered = scaled - scaled.mean(0)
    covariance = centered.T @ centered / (len(x) - 1)
    variances = covariance.diagonal()
    # subtracting the diagonal's squares from the sum of all would cancel
    off_diagonal = (covariance - torch.diag(variances)).square().sum() / x.shape[1]
    # factor by factor: a power of the scale may overflow where the product does not
    return variances * scale * scale, off_diagonal * scale * scale * scale * scale


def variance_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Batch terms of a collapse-avoiding loss, for rows (N, D): two scalars, zero for a single row.

    The mean over coordinates of max(0, 1 − √(Var + 1e-4)), and Σ_{i≠j} Cov²ᵢⱼ/D (arXiv 2105.04906).
    """
    if len(x) < 2:
        return x.new_zeros(()), x.new_zeros(())
    variances, off_diagonal = variances_and_off_diagonal(x)
    return F.relu(1 - (variances + 1e-4).sqrt()).mean(), off_diagonal


class Deterministic(Head):
    """One point y = f(c) in place of a distribution; it has no density.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target and of the context
    hidden
        hidden widths of f, GELU between; () is a linear map, as the original I-JEPA ends. The default is that
        of ``Gaussian`` and ``MixtureDensity``. About 0.6 MFLOP a target at the sizes of I-JEPA tokens
        (192 → 384), forward
    loss
        "smooth-l1" (β = 1), the mean over coordinates; or "vic": mean squared error + 0.1 × variance +
        0.01 × covariance of the predictions in the batch (added to every element: their mean is the loss)

    Raises
    ------
    ConfigError
        for an unknown loss or a width below 1
    """

    name = "deterministic"
    has_density = False

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        hidden: Sequence[int] = (512,),
        loss: Literal["smooth-l1", "vic"] = "smooth-l1",
    ) -> None:
        super().__init__(dim, context_dim)
        if loss not in ("smooth-l1", "vic"):
            raise ConfigError(f"head 'deterministic': loss must be 'smooth-l1' or 'vic', got '{loss}'")
        self.loss = loss
        self.net = mlp([context_dim, *check_widths(self, hidden), dim])

    def forward(self, context: Tensor) -> PointPrediction:
        """Predict from a context (..., C)."""
        return PointPrediction(self, self.net(self.checked(context)).to(self.dtype))


class PointPrediction(Prediction):
    """All mass at ``mean`` (..., D)."""

    head: Deterministic

    def __init__(self, head: Deterministic, point: Tensor) -> None:
        super().__init__(head, point.shape[:-1])
        self._point = point

    @property
    def mean(self) -> Tensor:
        """The predicted point (..., D)."""
        return self._point

    def loss(self, target: Tensor) -> Tensor:
        """Smooth L1, or alignment + variance + covariance, (...)."""
        target = self.checked(target)
        point = self._point.expand(target.shape)
        if self.head.loss == "smooth-l1":
            return F.smooth_l1_loss(point, target, beta=1.0, reduction="none").mean(-1)
        with full_precision(point):
            variance, covariance = variance_covariance(self._point.reshape(-1, self.head.dim))
        alignment = (point - target).square().mean(-1)
        return _ALIGNMENT * alignment + _VARIANCE * variance + _COVARIANCE * covariance

    def sample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Copies of the point (*sample_shape, ..., D): nothing is random."""
        return self._point.detach().expand(self._extended_shape(torch.Size(sample_shape))).clone()
