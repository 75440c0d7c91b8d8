"""Rows whose ambiguity is known: is a model unsure of what lies between two classes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError
from probjepa.registry import importing
from probjepa.tabular.frames import pandas
from probjepa.tabular.splits import split_rows

# SIM has three clusters in 28 dimensions and four categorical columns (arXiv 2603.20111). Its other constants
# were not published: these are ours.
CLUSTERS = 3
NUMERIC = 28
CATEGORICAL = 4
CATEGORIES = 5
SEPARATION = 10.0  # between two clusters' means, in standard deviations: the raw accuracy is then near theirs
FAVOURED = 0.7  # probability of a cluster's favoured category; the others share the rest
_CLUSTERS_SEED = 0  # the clusters are the same for all samples
LABEL = "label"


@dataclass(frozen=True)
class Ambiguous:
    """Rows with their label (column "label") and ambiguity u (N,) in [0, 1]."""

    table: Any
    ambiguity: npt.NDArray[np.float64]


def simulate(n_rows: int = 10_000, seed: int = 0) -> Ambiguous:
    """Draw SIM: rows of three Gaussian clusters in 28-D with four categorical columns.

    A row of cluster a has u ~ U(0, 1) and another cluster b. Its numbers are N((1 − w)μ_a + w·μ_b, I) with
    w = u²/2, so that at u = 1 it lies midway; each category is drawn from b's probabilities with
    probability w, else from a's. Means are orthogonal, 10 apart; favoured categories have probability 0.7.
    """
    fixed, random = np.random.default_rng(_CLUSTERS_SEED), np.random.default_rng(seed)
    directions = np.linalg.qr(fixed.normal(size=(NUMERIC, CLUSTERS)))[0].T
    means = directions * SEPARATION / np.sqrt(2)
    favoured = np.array([fixed.permutation(CATEGORIES)[:CLUSTERS] for _ in range(CATEGORICAL)]).T
    own = random.integers(CLUSTERS, size=n_rows)
    other = (own + random.integers(1, CLUSTERS, size=n_rows)) % CLUSTERS
    ambiguity = random.random(n_rows)
    weight = ambiguity**2 / 2
    numbers = (1 - weight)[:, None] * means[own] + weight[:, None] * means[other]
    numbers += random.normal(size=numbers.shape)
    columns: dict[str, Any] = {f"n{i}": numbers[:, i] for i in range(NUMERIC)}
    for i in range(CATEGORICAL):
        source = np.where(random.random(n_rows) < weight, other, own)
        stray = (favoured[source, i] + random.integers(1, CATEGORIES, size=n_rows)) % CATEGORIES
        codes = np.where(random.random(n_rows) < FAVOURED, favoured[source, i], stray)
        columns[f"c{i}"] = np.array(list("abcde"))[codes]
    return Ambiguous(pandas().DataFrame({**columns, LABEL: own}), ambiguity)


def blended_digits(
    seed: int = 0, pixels: npt.ArrayLike | None = None, labels: npt.ArrayLike | None = None
) -> tuple[Ambiguous, Ambiguous, Ambiguous]:
    """Return 70/10/20 % of a set of digits, each blended with one of another class, pixels as columns.

    Pixel by pixel (1 − u/2)·own + (u/2)·other with u ~ U(0, 1); own's class is the label. Both digits are of
    the same part, so that no test digit is trained on.

    Parameters
    ----------
    seed
        of the split, the pairs and u
    pixels, labels
        numbers (N, P) and their classes (N,); None: scikit-learn's 1,797 digits, 64 pixels

    Raises
    ------
    DataError
        for pixels and labels that do not match, or a part with one class
    """
    if pixels is None or labels is None:
        with importing():
            from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    pixels, labels = np.asarray(pixels, np.float64), np.asarray(labels)
    if pixels.ndim != 2 or labels.shape != (len(pixels),):
        raise DataError(
            f"the pixels have shape {pixels.shape} and the labels {labels.shape}: give (N, P) and (N,)"
        )
    random = np.random.default_rng(seed)
    train, validation, test = (
        _blended(pixels[rows], labels[rows], random) for rows in split_rows(labels, seed)
    )
    return train, validation, test


def _blended(
    pixels: npt.NDArray[np.float64], labels: npt.NDArray[Any], random: np.random.Generator
) -> Ambiguous:
    if len(np.unique(labels)) < 2:
        raise DataError("a part of the digits has one class: give more rows, of at least two classes")
    partners = np.array([random.choice(np.flatnonzero(labels != label)) for label in labels])
    ambiguity = random.random(len(labels))
    weight = ambiguity[:, None] / 2
    mixed = (1 - weight) * pixels + weight * pixels[partners]
    frame = pandas().DataFrame(mixed, columns=[f"p{i}" for i in range(mixed.shape[1])])
    return Ambiguous(frame.assign(**{LABEL: labels}), ambiguity)


def ambiguity_figures(
    uncertainty: npt.NDArray[np.float64], ambiguity: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Return how uncertainty (N,) tells ambiguity (N,): "spearman", and "auc" of the most ambiguous fifth."""
    with importing():
        from scipy.stats import spearmanr
        from sklearn.metrics import roc_auc_score

    most = ambiguity >= np.quantile(ambiguity, 0.8)
    return {
        "spearman": float(spearmanr(uncertainty, ambiguity)[0]),
        "auc": float(roc_auc_score(most, uncertainty)),
    }
