"""Scores as decisions: the rate at which typical rows are flagged, beside the rate asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import betabinom

from probjepa.errors import DataError
from probjepa.evaluation.figures import figure
from probjepa.metrics.conformal import threshold, threshold_rank

if TYPE_CHECKING:
    from probjepa.scores.base import Values

TEST, CALIBRATION = "test", "calibration"
ALPHAS = (0.01, 0.05, 0.1)
_BAND = 0.95


def check_calibration(rows: int) -> None:
    """Raise DataError if a calibration set has too few rows for any of the ``ALPHAS``."""
    threshold_rank(rows, max(ALPHAS))


def flagged_rates(scores: Mapping[str, Mapping[str, Values]], *, seed: int = 0) -> dict[str, Any]:
    """Return which share of each set a threshold flags that is asked for a false-alarm rate.

    Parameters
    ----------
    scores
        score → set → (N,), higher = more typical. The threshold is read off the set "calibration", or where
        there is none off a half of the set "test", drawn by ``seed``, and the other half is counted

    Returns
    -------
    dict
        "rows" ("calibration" n and "test" m, and whether they are "split" from one set); "band" → alpha →
        the "expected" rate k/(n + 1), k = ⌊alpha(n + 1)⌋, and the "low" and "high" ends of what 95 of 100
        such evaluations find if both sets are drawn alike: the flagged of m rows are beta-binomial with
        k and n + 1 − k (fewer where scores are equal); "flagged" → score → alpha → set → figure. An alpha
        that n rows are too few for is left out
    """
    first = next(iter(scores.values()))
    split = CALIBRATION not in first
    order = np.random.default_rng(seed).permutation(len(first[TEST]))
    half = np.isin(np.arange(len(order)), order[: len(order) // 2])
    n = int(half.sum()) if split else len(first[CALIBRATION])
    m = int((~half).sum()) if split else len(half)
    band: dict[str, dict[str, float]] = {}
    for alpha in ALPHAS:
        try:
            k = threshold_rank(n, alpha)
        except DataError:
            continue
        low, high = betabinom(m, k, n + 1 - k).ppf([(1 - _BAND) / 2, (1 + _BAND) / 2]) / m
        band[str(alpha)] = {"expected": k / (n + 1), "low": float(low), "high": float(high)}

    def rates(of: Mapping[str, Values], alpha: float) -> dict[str, Any]:
        least = threshold(of[TEST][half] if split else of[CALIBRATION], alpha)
        counted = {name: values for name, values in of.items() if name != CALIBRATION}
        if split:
            counted[TEST] = of[TEST][~half]
        return {name: figure(float((values < least).mean())) for name, values in counted.items()}

    flagged = {name: {key: rates(of, float(key)) for key in band} for name, of in scores.items()}
    return {"rows": {CALIBRATION: n, TEST: m, "split": split}, "band": band, "flagged": flagged}
