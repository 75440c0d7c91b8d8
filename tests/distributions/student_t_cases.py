"""What the Student-t tests share: pairs of directions at a known angle, scipy's densities, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from probjepa.distributions import MultivariateStudentT, PolarStudentT, TangentStudentT

INF = math.inf
CLASSES = [TangentStudentT, PolarStudentT, MultivariateStudentT]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pair_at_angle(rng: np.random.Generator, dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors s and t with s ⟂ t, and u = cos θ·s + sin θ·t as (s, u)."""
    s = unit(rng.standard_normal(dim))
    t = rng.standard_normal(dim)
    for _ in range(2):  # twice is enough for orthogonality to the last bit
        t = unit(t - (s @ t) * s)
    return s, math.cos(theta) * s + math.sin(theta) * t


def tangent_basis(s: np.ndarray) -> np.ndarray:
    """Return B (D, D−1): orthonormal, orthogonal to s."""
    return np.linalg.qr(np.column_stack([s, np.eye(s.size)]))[0][:, 1:]


def log_jacobian(theta: float, dim: int) -> float:
    return (dim - 2) * math.log(math.sin(theta) / theta) if theta else 0.0


def scipy_logpdf(x: np.ndarray, shape: np.ndarray, df: float) -> float:
    if math.isinf(df):
        return float(stats.multivariate_normal(np.zeros(len(x)), shape).logpdf(x))
    return float(stats.multivariate_t(np.zeros(len(x)), shape, df).logpdf(x))


def grads(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return the gradients of the summed output with respect to each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(function(*leaves).sum(), leaves))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
