"""Selective prediction on tables: whose doubt finds a classifier's errors, and whether it is calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa import metrics
from probjepa._arrays import fingerprints
from probjepa.detectors import KNN
from probjepa.tabular.predictors import Features

_LARGEST_BANK = 10_000  # rows; more make the neighbours' search the longest part
_NEIGHBOURS = 20
_SHARES = (0.9, 0.8, 0.5)
GRID = tuple(round(0.01 * percent, 2) for percent in range(5, 101))  # coverages of a stored curve
# sources of doubt
UNCERTAINTY, DECODED = "model uncertainty", "model uncertainty, decoded"
LIKELIHOOD, PROBABILITY = "−log-likelihood", "maximum class probability"

Column = npt.NDArray[np.float64]


def doubts(
    model: Any, test: Any, spaces: Mapping[str, tuple[Features, Features]], seed: int
) -> dict[str, Column]:
    """Return each source of doubt (N,) about the test rows that needs no classifier, higher = less sure.

    ``model uncertainty``, the same ``decoded`` and ``−log-likelihood`` (−score_samples) where the model has
    them; kNN distance (to the 20th of at most 10,000 training rows) on the raw features and the embedding;
    Isolation Forest on the raw features; and ``random``, all equal, whose curve is the expectation of
    withholding at random.

    Parameters
    ----------
    spaces
        "raw", and perhaps "embedding" → features of the training and of the test rows
    """
    from sklearn.ensemble import IsolationForest

    found: dict[str, Column] = {}
    if hasattr(model, "uncertainty"):
        found[UNCERTAINTY] = model.uncertainty(test)
        found[DECODED] = model.uncertainty(test, "decoded")
    if hasattr(model, "score_samples"):
        found[LIKELIHOOD] = -model.score_samples(test)
    bank, queries = spaces["raw"]
    if "embedding" in spaces:
        found["kNN distance, embedding"] = _distance(*spaces["embedding"], seed, normalize=True)
    found["kNN distance, raw"] = _distance(bank, queries, seed, normalize=False)
    forest = IsolationForest(random_state=seed).fit(bank)
    found["Isolation Forest, raw"] = -forest.score_samples(queries)
    found["random"] = np.zeros(len(queries))
    return found


def _distance(bank: Features, queries: Features, seed: int, *, normalize: bool) -> Column:
    # different rows may have equal features (unknown categories): their distance of 0 would say nothing
    bank = bank[~np.isin(fingerprints(bank + np.float32(0)), fingerprints(queries + np.float32(0)))]
    if len(bank) > _LARGEST_BANK:
        bank = bank[np.random.default_rng(seed).choice(len(bank), _LARGEST_BANK, replace=False)]
    if not len(bank):
        return np.zeros(len(queries))
    return -KNN(min(_NEIGHBOURS, len(bank)), normalize=normalize).fit(bank).score_samples(queries)


def selection_figures(
    correct: npt.NDArray[np.bool_], doubt: Mapping[str, Column]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what each doubt (N,) does for answers right or wrong (N,): selection, and calibration.

    Returns
    -------
    selective
        source → {"aurc", "excess_aurc", "accuracy_at": {"1.0", "0.9", "0.8", "0.5"}, "risk": at the coverages
        ``GRID``}, as ``metrics.risk_coverage`` defines them
    calibration
        source → {"spearman": of the doubt with being wrong, "accuracy": of each tenth of the rows from the
        least to the most doubtful}, without the sources that do not vary
    """
    selective, calibration = {}, {}
    n = len(correct)
    at = np.array([max(1, math.ceil(share * n - 1e-9)) - 1 for share in GRID])
    for source, values in doubt.items():
        curve = metrics.risk_coverage(-values, correct)
        accuracy_at = {1.0: float(correct.mean()), **curve.accuracy_at}
        selective[source] = {
            "aurc": _figure(curve.aurc),
            "excess_aurc": _figure(curve.excess_aurc),
            "accuracy_at": {str(share): _figure(accuracy_at[share]) for share in (1.0, *_SHARES)},
            "risk": curve.risk[at].tolist(),
        }
        if values.min() < values.max():
            calibration[source] = {"spearman": _figure(_spearman(values, ~correct)),
                                   "accuracy": _tenths(values, correct)}  # fmt: skip
    return selective, calibration


def _tenths(values: Column, correct: npt.NDArray[np.bool_]) -> list[float]:
    parts = np.array_split(np.argsort(values, kind="stable"), min(10, len(values)))
    return [float(correct[part].mean()) for part in parts]


def _spearman(values: Column, wrong: npt.NDArray[np.bool_]) -> float:
    from scipy.stats import spearmanr

    if wrong.all() or not wrong.any():
        return math.nan
    return float(spearmanr(values, wrong)[0])


def _figure(value: float) -> dict[str, float | None]:
    known = float(value) if math.isfinite(value) else None
    return {"value": known, "low": None, "high": None}
