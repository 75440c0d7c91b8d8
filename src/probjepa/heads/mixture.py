"""A mixture density network: a few diagonal Gaussians, weighted by the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.types import _size

from probjepa.errors import ConfigError
from probjepa.heads.base import (
    RAW_UNIT_SCALE,
    DensityPrediction,
    Head,
    check_counts,
    check_widths,
    draw_component,
    full_precision,
    gaussian_log_density,
    positive_scale,
)
from probjepa.heads.networks import mlp


class Mixture(NamedTuple):
    """Parameters of a mixture of K diagonal Gaussians."""

    weights: Tensor  # (..., K)
    means: Tensor  # (..., K, D)
    scales: Tensor  # (..., K, D)


class MixtureDensity(Head):
    """Σₖ πₖ(c)·N(μₖ(c), diag σₖ²(c)), with σ = softplus(·) + 1e-3. Source: Bishop 1994, NCRG/94/004.

    The loss adds ``log_variance_weight`` × the mean over components and coordinates of (log σ²)²: a component
    that no target uses keeps a scale near 1, and none shrinks onto single targets for little gain. Component
    means start apart (random biases of standard deviation 0.5), as equal ones would stay equal.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target and of the context
    components
        K ≥ 1
    hidden
        hidden widths of the network, GELU between. About 4.1 MFLOP a target at the sizes of I-JEPA tokens
        (192 → 384), forward
    log_variance_weight
        weight ≥ 0 of the regulariser, against nats per coordinate

    Raises
    ------
    ConfigError
        for a count or width below 1, or a negative weight
    """

    name = "mdn"

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        components: int = 5,
        hidden: Sequence[int] = (512,),
        log_variance_weight: float = 1e-3,
    ) -> None:
        super().__init__(dim, context_dim)
        check_counts(self, components=components)
        if log_variance_weight < 0:
            raise ConfigError(f"head 'mdn': log_variance_weight must be ≥ 0, got {log_variance_weight}")
        self.components = components
        self.log_variance_weight = log_variance_weight
        self.sizes = [components, components * dim, components * dim]
        self.net = mlp([context_dim, *check_widths(self, hidden), sum(self.sizes)])
        with torch.no_grad():
            _, means, raw = self.net[-1].bias.split(self.sizes)  # type: ignore[operator]
            means.normal_(std=0.5)
            raw.fill_(RAW_UNIT_SCALE)

    def forward(self, context: Tensor) -> MixturePrediction:
        """Predict from a context (..., C)."""
        logits, means, raw = self.net(self.checked(context)).to(self.dtype).split(self.sizes, -1)
        each = (self.components, self.dim)
        return MixturePrediction(
            self, logits, means.unflatten(-1, each), positive_scale(raw.unflatten(-1, each))
        )


class MixturePrediction(DensityPrediction):
    """A mixture of K diagonal Gaussians; its parameters are in ``mixture``."""

    head: MixtureDensity

    def __init__(self, head: MixtureDensity, logits: Tensor, means: Tensor, scales: Tensor) -> None:
        super().__init__(head, logits.shape[:-1])
        self._log_weights = logits.log_softmax(-1)
        self._means = means
        self._scales = scales

    @property
    def mixture(self) -> Mixture:
        """Weights (..., K), component means and scales, both (..., K, D)."""
        return Mixture(self._log_weights.exp(), self._means, self._scales)

    @property
    def entropy_of_weights(self) -> Tensor:
        """−Σ πₖ log πₖ (...) in nats, between 0 and log K."""
        return -(self._log_weights.exp() * self._log_weights).sum(-1)

    @property
    def effective_components(self) -> Tensor:
        """Number of components in use (...): exp of the entropy of the weights, between 1 and K."""
        return self.entropy_of_weights.exp()

    @property
    def mean(self) -> Tensor:
        """Σ πₖ μₖ (..., D)."""
        return (self._log_weights.exp().unsqueeze(-1) * self._means).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Variance (..., D) of each coordinate, within and between components."""
        apart = self._means - self.mean.unsqueeze(-2)
        return (self._log_weights.exp().unsqueeze(-1) * (self._scales.square() + apart.square())).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) in nats at targets (..., D)."""
        value = self.checked(value).unsqueeze(-2)
        with full_precision(value):
            each = gaussian_log_density(value, self._means, self._scales).sum(-1)
            return torch.logsumexp(self._log_weights + each, -1)

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-likelihood (...) in nats per coordinate, plus the log-variance regulariser."""
        log_variance = 2 * self._scales.log()
        penalty = log_variance.square().mean((-2, -1))
        return super().loss(target) + self.head.log_variance_weight * penalty

    @torch.no_grad()
    def sample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw targets (*sample_shape, ..., D): a component, then a Gaussian."""
        shape = self._extended_shape(torch.Size(sample_shape))
        chosen = draw_component(self._log_weights, self.noise_shape(sample_shape), generator)[..., None, None]
        chosen = chosen.expand(*shape[:-1], 1, self.head.dim)
        full = (*shape[:-1], *self._means.shape[-2:])
        mean, scale = (p.expand(full).gather(-2, chosen).squeeze(-2) for p in (self._means, self._scales))
        return mean + scale * self.standard_normal(sample_shape, generator)
