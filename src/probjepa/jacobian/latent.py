"""The density of embeddings that the change of variables starts from: log p(x) = log p_Z(f(x)) + Σ log σ."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from probjepa._arrays import ArrayInput, as_features, power_of_two
from probjepa.errors import ConfigError, DataError, short
from probjepa.registry import importing

Latent: TypeAlias = Literal["normal"] | Distribution | Tensor | npt.NDArray[Any] | None


def fit_normal(reference: ArrayInput) -> MultivariateNormal:
    """N(m, C) of reference embeddings (M, K), M ≥ 3, in float64 on the CPU.

    m is their mean; C the covariance of Ledoit & Wolf (2004): (1 − α)Σ + α(tr Σ/K)·I with the α that
    minimises the expected squared error, so that C is invertible also for M ≤ K.

    Raises
    ------
    DataError
        for NaN, another shape, fewer than three rows (two leave nothing to shrink by), or rows on a line
    """
    with importing():
        from sklearn.covariance import ledoit_wolf

    rows = as_features(reference, "the latent's reference embeddings").double().cpu()
    if len(rows) < 3:
        raise DataError(
            f"the latent's reference has too few embeddings, {len(rows)}: give at least 3, better 10 a "
            "dimension"
        )
    unit = power_of_two(rows.abs().max())
    rows = rows / unit
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(ledoit_wolf(rows.numpy())[0]))
    if int(failed):
        raise DataError(
            f"the latent's {len(rows)} reference embeddings do not vary, or along one line alone: give those "
            "of more, different inputs"
        )
    return MultivariateNormal(rows.mean(0) * unit, scale_tril=factor * unit)


def as_density(latent: Latent) -> Distribution | Literal["normal"] | None:
    """Check the argument ``latent``, and fit it if it is a reference set. Raises ConfigError."""
    if isinstance(latent, Tensor | np.ndarray):
        return fit_normal(latent)
    if latent is None or isinstance(latent, Distribution) or (isinstance(latent, str) and latent == "normal"):
        return latent
    raise ConfigError(
        f"latent is '{short(latent)}': use None (the paper's form), 'normal' (N(0, I)), a torch "
        "Distribution, or reference embeddings (M, K)"
    )


def latent_term(density: Distribution | Literal["normal"] | None, embeddings: Tensor) -> Tensor:
    """log p_Z (N,) of embeddings (N, K) on the CPU in float64; zeros for the paper's form.

    Raises
    ------
    ConfigError
        for a density over another space than (K,)
    """
    rows = embeddings.double().cpu()
    n, dim = rows.shape
    if density is None:
        return torch.zeros(n, dtype=torch.float64)
    if density == "normal":
        return -0.5 * (rows.square() + math.log(2 * math.pi)).sum(1)
    assert isinstance(density, Distribution)
    shape = tuple(density.batch_shape) + tuple(density.event_shape)
    if len(density.event_shape) != 1 or shape != (dim,):
        raise ConfigError(
            f"latent is a density with batch shape {tuple(density.batch_shape)} and event shape "
            f"{tuple(density.event_shape)}, and the embeddings have {dim} dimensions: pass one density with "
            f"event shape ({dim},) (torch.distributions.Independent makes one of factors)"
        )
    try:
        like = density.mean
    except NotImplementedError:
        like = rows
    return density.log_prob(rows.to(like.device, like.dtype)).double().cpu()
