"""Out-of-distribution detection from scores, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probjepa._arrays import ArrayInput, as_scores
from probjepa.metrics.intervals import Interval, accuracy_interval, check_bootstrap, percentile_interval
from probjepa.typed import settings_checked

_NAMES = ("auroc", "aupr_out", "aupr_in", "fpr_at_95_tpr_out", "fpr_at_95_tpr_in")
_Counts = npt.NDArray[np.int64]


@settings_checked
def ood_metrics(
    scores_in: ArrayInput,
    scores_out: ArrayInput,
    *,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return how well scores tell in-distribution from out-of-distribution samples.

    A score is higher for more typical samples; ties count as scikit-learn counts them.

    Parameters
    ----------
    scores_in, scores_out
        (N,) and (M,)
    n_bootstrap, confidence, seed
        of the percentile intervals: both sets are resampled, each to its own size. Near 0 and 1 they are too
        narrow where samples are few; where all resamples agree on 0 or 1 the other limit is Wilson's, of
        min(N, M) samples: an AUROC A varies by A·(1 − A)/min(N, M) at most (Birnbaum & Klose 1957)

    Returns
    -------
    dict[str, Interval]
        - ``auroc``: P(score_in > score_out) + ½·P(equal)
        - ``aupr_out``: average precision Σ (Rₙ − Rₙ₋₁)·Pₙ with out-of-distribution positive and −score
        - ``aupr_in``: the same with in-distribution positive and the score
        - ``fpr_at_95_tpr_out``: share of in-distribution samples flagged where at least 95 % of the
          out-of-distribution ones are (the FPR@95 of OpenOOD v1.5)
        - ``fpr_at_95_tpr_in``: share of out-of-distribution samples accepted where at least 95 % of the
          in-distribution ones are (the habit of ODIN, and of OpenOOD before 1.5)

    Raises
    ------
    DataError
        for no scores, or NaN (counted)
    ConfigError
        for a setting out of its range

    Examples
    --------
    >>> found = ood_metrics([0.9, 0.8, 0.7], [0.75, 0.2], n_bootstrap=100)
    >>> round(found["auroc"].value, 3)
    0.833
    """
    inside = as_scores(scores_in, "the in-distribution scores")
    outside = as_scores(scores_out, "the out-of-distribution scores")
    check_bootstrap(n_bootstrap, confidence)
    # every metric depends on the scores only through how many of each set lie at each distinct score
    levels, level = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    level_in, level_out = level[: len(inside)], level[len(inside) :]

    def counts(of: npt.NDArray[np.intp]) -> _Counts:
        return np.bincount(of, minlength=len(levels))

    rng = np.random.default_rng(seed)
    resampled = np.empty((n_bootstrap, len(_NAMES)))
    for index in range(n_bootstrap):
        resampled[index] = _from_counts(
            counts(level_in[rng.integers(len(inside), size=len(inside))]),
            counts(level_out[rng.integers(len(outside), size=len(outside))]),
        )
    values = _from_counts(counts(level_in), counts(level_out))
    return {
        name: _interval(value, column, confidence, min(len(inside), len(outside)))
        for name, value, column in zip(_NAMES, values, resampled.T, strict=True)
    }


def _interval(value: float, resampled: npt.NDArray[np.float64], confidence: float, rows: int) -> Interval:
    """The percentile interval, or, where all resamples are 0 or all are 1, Wilson's of so many rows."""
    if value in (0.0, 1.0) and (resampled == value).all():
        return accuracy_interval(np.full(rows, value), confidence=confidence)
    return percentile_interval(value, resampled, confidence)


def _from_counts(n_in: _Counts, n_out: _Counts) -> tuple[float, float, float, float, float]:
    """Return the five metrics from the counts at each distinct score, in rising order, of both sets."""
    flagged_in, flagged_out = np.cumsum(n_in), np.cumsum(n_out)
    total_in, total_out = int(flagged_in[-1]), int(flagged_out[-1])
    # accepted at a level: everything at or above it
    accepted_in, accepted_out = total_in - flagged_in + n_in, total_out - flagged_out + n_out
    auroc = float(n_out @ (accepted_in - 0.5 * n_in)) / (total_in * total_out)
    return (
        auroc,
        _average_precision(n_out, flagged_out, flagged_in),
        _average_precision(n_in, accepted_in, accepted_out),
        _fpr_at_95_tpr(flagged_out, flagged_in),
        _fpr_at_95_tpr(accepted_in[::-1], accepted_out[::-1]),
    )


def _average_precision(gained: _Counts, true: _Counts, false: _Counts) -> float:
    # a resample may have nothing yet at its first levels: no recall is gained there
    precision = true / np.maximum(true + false, 1)
    return float(gained @ precision) / int(gained.sum())


def _fpr_at_95_tpr(true: _Counts, false: _Counts) -> float:
    first = int(np.searchsorted(true / true[-1], 0.95))
    return float(false[first] / false[-1])
