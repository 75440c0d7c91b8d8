"""The terms of the evidence lower bound of diagonal Gaussians, as plain functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def bounded_log_variance(raw: Tensor) -> Tensor:
    """Return 10·tanh(raw/10): log σ² as it is near 0, but within (−10, 10), so that no term overflows."""
    return 10 * torch.tanh(raw / 10)


Noise = Callable[[Tensor], Tensor]


def draw(mean: Tensor, log_variance: Tensor, noise: Noise = torch.randn_like) -> Tensor:
    """Return one reparameterised draw of N(mean, exp(log_variance)), of their shape (…, D).

    ``noise``: a tensor → standard normal numbers that broadcast to it.
    """
    return mean + (0.5 * log_variance).exp() * noise(mean)


def gaussian_nll(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return −log N(value; mean, variance), element by element, constants included."""
    return 0.5 * ((value - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def balanced_nll(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return ``gaussian_nll``, whose gradient is here weighted by the variance, held constant.

    β-NLL with β = 1 (Seitzer et al. 2022, arXiv 2203.09168). The mean's gradient is that of half the squared
    error, so a column that is predicted well does not pull harder than the others.
    """
    nll = gaussian_nll(value, mean, variance)
    return nll.detach() + variance.detach() * (nll - nll.detach())


def annealed(weight: float, epoch: float, over: float) -> float:
    """Return α(t) = min(t/T, 1)·α: the weight of a KL term at epoch t (a fraction within one) of T = over."""
    return weight * min(epoch / over, 1.0) if over > 0 else weight
