"""Whether a posterior's uncertainty follows the geometry of the classes, which it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from probjepa._arrays import ArrayInput, as_features, as_labels, as_scores, directions
from probjepa.errors import ConfigError, DataError
from probjepa.metrics.intervals import check_bootstrap, percentile_interval
from probjepa.typed import settings_checked

_ROWS_AT_A_TIME = 4096
_Array = npt.NDArray[np.float64]


@settings_checked
def uncertainty_geometry(
    mean: ArrayInput,
    labels: ArrayInput,
    measures: Mapping[str, ArrayInput],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how measures of uncertainty go with an input's place among the classes.

    The posterior means are put on the unit sphere, and a class's centroid is the mean of its own. An input's
    radius is its (Euclidean) distance to its own class's centroid; its margin is the distance to the nearest
    other centroid less the radius, so a negative margin is an input nearer to another class. Source: arXiv
    2602.05639, where mean σ² and the NLL fall with the margin, and the KL and the anisotropy rise.

    Parameters
    ----------
    mean
        posterior means μ (N, D), N ≥ 3
    labels
        classes (N,), at least two of them; rows labelled −1, None or NaN are left out
    measures
        name → (N,), finite
    n_bootstrap, seed
        of the 95 % percentile intervals: the inputs are resampled, the centroids stay

    Returns
    -------
    dict[str, Any]
        plain numbers, fit for JSON:

        - ``classes``: how many
        - ``margin``: ``mean``, ``std``, and ``negative``, the share of negative ones
        - ``spearman``: measure → ``margin`` and ``radius`` → ``value``, ``low``, ``high``: rank correlation,
          tied values at their mean rank; all three None where a measure is constant
        - ``tertiles``: measure → its means over the inputs of low, middle and high margin, in thirds as equal
          as N allows (equal margins in the order of the rows)

    Raises
    ------
    DataError
        for fewer than three rows or two classes, lengths that do not match, NaN or Inf (counted), or zero
        means, which have no direction
    ConfigError
        for ``n_bootstrap`` < 1, or measures without names
    """
    if not isinstance(measures, Mapping):
        raise ConfigError(f"the measures are a {type(measures).__name__}: give a mapping, name → (N,)")
    check_bootstrap(n_bootstrap, 0.95)
    features = as_features(mean, "the posterior means")
    known, labelled = as_labels(labels, "the labels", rows=len(features))
    rows = len(labelled)
    if rows < 3:
        raise DataError(
            f"the posterior means have {rows} labelled rows: give at least 3, one a third of the margins"
        )
    values = {name: _measure(name, x, len(features))[labelled] for name, x in measures.items()}
    features = features[torch.from_numpy(labelled).to(features.device)]
    classes, own = np.unique(known, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"all {rows} labels are '{classes[0]}': a margin needs at least two classes")
    margin, radius = _margin_and_radius(features, torch.from_numpy(own), len(classes))

    order = np.array_split(np.argsort(margin, kind="stable"), 3)
    correlations = _spearman([margin, radius], list(values.values()), n_bootstrap, seed)
    return {
        "classes": len(classes),
        "margin": {
            "mean": float(margin.mean()),
            "std": float(margin.std()),
            "negative": float((margin < 0).mean()),
        },
        "spearman": {
            name: {"margin": with_margin, "radius": with_radius}
            for name, (with_margin, with_radius) in zip(values, correlations, strict=True)
        },
        "tertiles": {name: [float(x[third].mean()) for third in order] for name, x in values.items()},
    }


def _measure(name: str, values: ArrayInput, rows: int) -> _Array:
    measure = as_scores(values, f"the measure '{name}'")
    if len(measure) != rows:
        raise DataError(f"the measure '{name}' has {len(measure)} values for {rows} rows: give one a row")
    infinite = int(np.isinf(measure).sum())
    if infinite:
        raise DataError(f"the measure '{name}' has {infinite} infinite among {rows} values: drop those rows")
    return measure


def _margin_and_radius(features: torch.Tensor, own: torch.Tensor, classes: int) -> tuple[_Array, _Array]:
    """Margin and radius (N,) of rows (N, D) whose classes are numbered in ``own`` (N,)."""
    x = features.double()
    own = own.to(x.device)
    zero = int((x == 0).all(1).sum())
    if zero:
        raise DataError(f"{zero} of {len(x)} posterior means are zero and have no direction: drop those rows")
    x = directions(x)
    sums = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, own, x)
    centroids = sums / torch.bincount(own, minlength=classes).unsqueeze(1)
    margin, radius = [], []
    for rows, label in zip(torch.split(x, _ROWS_AT_A_TIME), torch.split(own, _ROWS_AT_A_TIME), strict=True):
        # the matrix-product form loses small distances to cancellation
        distance = torch.cdist(rows, centroids, compute_mode="donot_use_mm_for_euclid_dist")
        to_own = distance.gather(1, label.unsqueeze(1))
        to_other = distance.scatter(1, label.unsqueeze(1), torch.inf).amin(1, keepdim=True)
        margin.append(to_other - to_own)
        radius.append(to_own)
    return torch.cat(margin).squeeze(1).cpu().numpy(), torch.cat(radius).squeeze(1).cpu().numpy()


def _spearman(
    places: list[_Array], measures: list[_Array], n_bootstrap: int, seed: int
) -> list[list[dict[str, float | None]]]:
    """Spearman's ρ of every measure with every place, each {value, low, high}; all see the same resamples."""
    # ranks depend on the values only through which of the distinct ones each is
    levels = [np.unique(x, return_inverse=True)[1] for x in (*places, *measures)]
    rows, split = len(places[0]), len(places)

    def correlations(chosen: npt.NDArray[np.intp] | slice) -> _Array:
        ranks = np.stack([_centred_ranks(level[chosen]) for level in levels])
        norms = np.linalg.norm(ranks, axis=1)
        # a constant has no ranking
        scaled = np.divide(ranks, norms[:, None], out=np.full_like(ranks, np.nan), where=norms[:, None] > 0)
        rho: _Array = np.clip(scaled[split:] @ scaled[:split].T, -1, 1)
        return rho

    rng = np.random.default_rng(seed)
    values = correlations(slice(None))
    resampled = np.stack([correlations(rng.integers(rows, size=rows)) for _ in range(n_bootstrap)])
    return [
        [_interval(values[i, j], resampled[:, i, j]) for j in range(len(places))]
        for i in range(len(measures))
    ]


def _centred_ranks(level: npt.NDArray[np.intp]) -> _Array:
    """Ranks (N,) about their mean, tied values at their mean rank, of integers ≥ 0."""
    counts = np.bincount(level)
    rank: _Array = (np.cumsum(counts) - counts / 2)[level]
    return rank - len(level) / 2


def _interval(value: float, resampled: _Array) -> dict[str, float | None]:
    known = resampled[np.isfinite(resampled)]  # a small resample may hold one value only
    if not np.isfinite(value) or not len(known):
        return {"value": None, "low": None, "high": None}
    return asdict(percentile_interval(value, known, 0.95))
