"""The Gaussian mixtures of the synthetic study, and what is drawn from and compared with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from probjepa.errors import ConfigError, DataError

COMPONENTS = 8
SEPARATION = 6.0  # root mean square distance of two means, in units of a typical standard deviation
DEVIATIONS = (0.5, 1.5)  # log-uniform standard deviations along each component's own axes
_ENTROPY = 2510_05949
_BLOCK = 2_000_000  # distances held at a time


class GaussianMixture:
    """An equal-weight mixture in P dimensions, float64, centred and with mean variance 1.

    Eight components: means N(0, 36/(2P)·I), so that two of them are 6 apart whatever P is (root mean
    square), and covariances with random axes and standard deviations log-uniform in [0.5, 1.5]. Then one
    shift and one scale for all coordinates. It is a function of ``dim`` alone.

    Parameters
    ----------
    dim
        P
    smoothing
        standard deviation of Gaussian noise added to the samples: the density of noisy views
    """

    def __init__(self, dim: int, smoothing: float = 0.0) -> None:
        if dim < 1:
            raise ConfigError(f"the mixture's dim is {dim}: use at least 1")
        random = np.random.default_rng([_ENTROPY, dim])
        means = random.normal(size=(COMPONENTS, dim)) * SEPARATION / math.sqrt(2 * dim)
        covariances = np.empty((COMPONENTS, dim, dim))
        low, high = DEVIATIONS
        for k in range(COMPONENTS):
            axes, _ = np.linalg.qr(random.normal(size=(dim, dim)))
            deviations = np.exp(random.uniform(math.log(low), math.log(high), dim))
            covariances[k] = (axes * deviations**2) @ axes.T
        means -= means.mean(0)
        scale = math.sqrt((np.square(means).sum() + np.trace(covariances, axis1=1, axis2=2).sum())
                          / (COMPONENTS * dim))  # fmt: skip
        self.means = torch.from_numpy(means / scale)
        self.covariances = torch.from_numpy(covariances / scale**2)
        self.covariances += smoothing**2 * torch.eye(dim, dtype=torch.float64)
        self._law = MixtureSameFamily(
            Categorical(torch.ones(COMPONENTS, dtype=torch.float64)),
            MultivariateNormal(self.means, self.covariances),
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (N,) float64 at points (N, P)."""
        return cast(Tensor, self._law.log_prob(x.double()))  # type: ignore[no-untyped-call]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points (count, P), float64."""
        which = torch.randint(COMPONENTS, (count,), generator=generator)
        normal = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covariances)
        return self.means[which] + torch.einsum("nij,nj->ni", roots[which], normal)


def langevin(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    step: float,
    steps: int,
    generator: torch.Generator,
    bound: float,
) -> Tensor:
    """Sample by the Metropolis-adjusted Langevin algorithm, many chains at once.

    A proposal is x + (h/2)∇log p(x) + √h·ξ, accepted with probability min(1, p(x′)q(x|x′)/(p(x)q(x′|x))), so
    that the step size costs time and no bias (Roberts & Tweedie 1996). Gradients are autograd's.

    Parameters
    ----------
    log_density
        points (N, P) → (N,), differentiable, up to a constant
    start
        (N, P), a chain a row
    step
        h
    steps
        proposals a chain
    bound
        the support: outside ‖x‖∞ ≤ bound the density is taken as zero. A learned density says nothing of
        places without data, and may not be integrable there

    Returns
    -------
    Tensor
        (N, P), where the chains ended
    """

    def measured(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = log_density(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return torch.where(x.abs().amax(1) <= bound, value, -math.inf).detach(), slope

    def drift_cost(to: Tensor, x: Tensor, slope: Tensor) -> Tensor:  # −log q(to | x) up to a constant
        return (to - x - 0.5 * step * slope).square().sum(1) / (2 * step)

    x = start.detach()
    value, slope = measured(x)
    for _ in range(steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        proposal = x + 0.5 * step * slope + math.sqrt(step) * noise
        new_value, new_slope = measured(proposal)
        log_ratio = new_value - value + drift_cost(proposal, x, slope) - drift_cost(x, proposal, new_slope)
        accept = torch.rand(len(x), generator=generator, dtype=x.dtype).log() < log_ratio
        x = torch.where(accept[:, None], proposal, x)
        slope = torch.where(accept[:, None], new_slope, slope)
        value = torch.where(accept, new_value, value)
    return x


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Return 2E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ of two samples (N, P) and (M, P).

    The means leave out the pairs of a point with itself: unbiased, so that two samples of one law give about
    0, of either sign. Székely & Rizzo, "Energy statistics", 2013.

    Raises
    ------
    DataError
        for other shapes, or fewer than two points
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(
            f"energy distance: samples {tuple(first.shape)} and {tuple(second.shape)}: give (N, P) and (M, P)"
        )
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise DataError(f"energy distance: {n} and {m} points: give at least two of each")
    within = _total(first, first) / (n * (n - 1)) + _total(second, second) / (m * (m - 1))
    return 2 * _total(first, second) / (n * m) - within


def _total(x: Tensor, y: Tensor) -> float:
    rows = torch.split(x.double(), max(1, _BLOCK // len(y)))
    exact = "donot_use_mm_for_euclid_dist"  # the product form loses small distances
    return sum(torch.cdist(part, y.double(), compute_mode=exact).sum().item() for part in rows)
