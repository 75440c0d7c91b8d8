"""How many dimensions an embedding uses, and what to do where they are too few."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from probjepa._arrays import ArrayInput, as_features, directions, power_of_two

_Matrix = npt.NDArray[np.float64]
_SETTLED = 10  # epochs
LEAST_ROWS = 10  # that tell a collapse


def _matrix(embeddings: ArrayInput) -> _Matrix:
    """Return the embeddings in float64, times a power of two if need be, which no measure here depends on."""
    rows = as_features(embeddings, "the embeddings").double()
    matrix: _Matrix = (rows / power_of_two(rows.abs().amax())).cpu().numpy()
    return matrix


def effective_rank(embeddings: ArrayInput) -> float:
    """Return exp(−Σ pₖ log pₖ), pₖ = σₖ/Σσ, over the singular values σ of the *centred* embeddings (N, D).

    Between 1 (all on one line) and min(N − 1, D); 0 if all embeddings are equal. Computed in float64.
    Reference: Roy & Vetterli, "The effective rank", EUSIPCO 2007; centring is ours, so that a common offset
    does not pass for a used dimension.

    Raises
    ------
    DataError
        for embeddings that are no (N, D), or hold NaN or Inf (counted)

    Examples
    --------
    >>> round(effective_rank([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 6)
    2.0
    """
    return _effective_rank(_matrix(embeddings))


def rank_me(embeddings: ArrayInput) -> float:
    """Return exp(−Σ pₖ log pₖ), pₖ = σₖ/Σσ + 1e-7, over the singular values of the embeddings *as they are*.

    Reference: Garrido et al., "RankMe", ICML 2023, which does not centre.

    Raises
    ------
    DataError
        for embeddings that are no (N, D), or hold NaN or Inf (counted)
    """
    return _rank_me(_matrix(embeddings))


def collapse_summary(embeddings: ArrayInput) -> dict[str, float]:
    """Return the signs of collapse of embeddings (N, D).

    Returns
    -------
    dict[str, float]
        ``effective_rank``, ``rank_me``, and ``std_mean`` and ``std_min``: mean and smallest standard
        deviation of a feature of the L2-normalised embeddings (1/√D when they fill the sphere evenly, 0 when
        collapsed)

    Raises
    ------
    DataError
        for embeddings that are no (N, D), or hold NaN or Inf (counted)
    """
    matrix = _matrix(embeddings)
    spread = directions(as_features(embeddings, "the embeddings").double()).cpu().numpy().std(0)
    return {
        "effective_rank": _effective_rank(matrix),
        "rank_me": _rank_me(matrix),
        "std_mean": float(spread.mean()),
        "std_min": float(spread.min()),
    }


def collapse_advice(
    values: Mapping[str, float | None],
    dim: int | None = None,
    *,
    epochs: int | None = None,
    settings: Collection[str] = (),
    rows: int | None = None,
) -> str | None:
    """Return what to do about the collapse that diagnostics show, or None for none.

    Collapsed: the spread is below a tenth of an even one (1/√D), or the effective rank below 2; σ² below
    10⁻³ (it shrinks to nothing without a KL term) or within 1 % of the prior's 1 with a KL of nearly 0.
    In its first ten epochs a network that has hardly moved from its random weights may look like that. Until
    then the limits are a hundredth and 1.1, and a posterior at its prior is not judged.

    Parameters
    ----------
    values
        any of ``effective_rank`` and ``std_mean`` (see :func:`collapse_summary`), ``mean_variance`` (mean σ²)
        and ``kl_per_dim``; what is missing or not finite is not judged
    dim
        size D of the embedding. Without it the spread is judged as if D were 10,000
    epochs
        trained so far; None: to the end
    settings
        names of the method's settings: only these are advised
    rows
        how many were embedded; of fewer than ten, spread and rank are not judged: n rows have a rank of n − 1
        at most
    """
    early = epochs is not None and epochs < _SETTLED
    known = {name: float(x) for name, x in values.items() if x is not None and math.isfinite(x)}
    variance, kl = known.get("mean_variance"), known.get("kl_per_dim")
    if variance is not None and variance < 1e-3:
        return f"the posterior has collapsed to a point (mean variance {variance:.1e}): raise kl_weight"
    if not early and variance is not None and kl is not None and abs(variance - 1) < 0.01 and kl < 1e-3:
        return (
            f"the posterior has fallen back to the prior (mean variance {variance:.3f}, KL {kl:.1e} a "
            "dimension): lower kl_weight, or keep the directional term"
        )
    if rows is not None and rows < LEAST_ROWS:
        return None
    rank, spread = known.get("effective_rank", math.inf), known.get("std_mean", math.inf)
    even = (dim or 10_000) ** -0.5
    if rank >= (1.1 if early else 2) and spread >= (0.01 if early else 0.1) * even:
        return None
    signs = {
        f"effective rank {rank:.1f}{f' of {dim}' if dim else ''}": rank,
        f"mean spread {spread:.1e}{f' of {even:.1e}' if dim else ''}": spread,
    }
    seen = ", ".join(text for text, value in signs.items() if math.isfinite(value))
    lower = "df or the learning rate" if "df" in settings else "the learning rate"
    return f"the embeddings have collapsed ({seen}): lower {lower}, or use larger batches"


def _effective_rank(matrix: _Matrix) -> float:
    sigma = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False)
    # centring leaves rounding noise of this size, which must not count where nothing else is left
    sigma = sigma[sigma > max(matrix.shape) * np.finfo(np.float64).eps * np.linalg.norm(matrix)]
    return _exp_entropy(sigma / sigma.sum()) if len(sigma) else 0.0


def _rank_me(matrix: _Matrix) -> float:
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return _exp_entropy(sigma / max(float(sigma.sum()), np.finfo(np.float64).tiny) + 1e-7)


def _exp_entropy(p: npt.NDArray[np.floating]) -> float:
    return float(np.exp(-np.sum(p * np.log(p))))
