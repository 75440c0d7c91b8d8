"""Confidence intervals, and the test of two classifiers on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa._arrays import ArrayInput, as_scores
from probjepa.errors import ConfigError, DataError, short
from probjepa.registry import importing
from probjepa.typed import settings_checked

_MOST_RESAMPLES = 10**7


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval [low, high].

    Examples
    --------
    >>> print(Interval(0.91234, 0.9, 0.925))
    0.9123 [0.9000, 0.9250]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def check_bootstrap(n_bootstrap: int, confidence: float) -> None:
    """Raise ConfigError for settings that give no interval."""
    if not 1 <= n_bootstrap <= _MOST_RESAMPLES:
        raise ConfigError(
            f"n_bootstrap is {short(n_bootstrap)}: use at least 1 resample (1000 is usual), "
            f"at most {_MOST_RESAMPLES:,}"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: use a level between 0 and 1, such as 0.95")


def percentile_interval(value: float, resampled: npt.NDArray[np.float64], confidence: float) -> Interval:
    """Return ``value`` with the central ``confidence`` share of its resampled values (B,)."""
    tail = (1 - confidence) / 2
    # between infinities there is nothing to interpolate
    method: Any = "linear" if np.isfinite(resampled).all() else "inverted_cdf"
    low, high = np.quantile(resampled, [tail, 1 - tail], method=method)
    return Interval(float(value), float(low), float(high))


@settings_checked
def bootstrap_interval(
    values: ArrayInput,
    statistic: Callable[[npt.NDArray[np.float64]], Any] = np.mean,
    *,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a statistic of values (N,) with its percentile bootstrap interval.

    Reference: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, §13.3.

    Raises
    ------
    DataError
        for no values, NaN (counted), or a statistic that is NaN in a resample
    ConfigError
        for a setting out of its range
    """
    sample = as_scores(values, "the values")
    check_bootstrap(n_bootstrap, confidence)
    # scipy.stats.bootstrap draws the same resamples of a seed and gives the same limits, but takes half as
    # long again, refuses a single value, and warns of one resample and of infinities
    rng = np.random.default_rng(seed)
    n = len(sample)
    resampled = np.array([float(statistic(sample[rng.integers(n, size=n)])) for _ in range(n_bootstrap)])
    if lost := int(np.isnan(resampled).sum()):
        raise DataError(
            f"the statistic is NaN in {lost} of {n_bootstrap} resamples: give one that all of them have, or "
            "more values"
        )
    return percentile_interval(float(statistic(sample)), resampled, confidence)


@settings_checked
def accuracy_interval(correct: ArrayInput, *, confidence: float = 0.95) -> Interval:
    """Return an accuracy with its Wilson score interval (Wilson 1927).

    ``correct`` (N,) holds 0 or 1. Near 0 and 1, where every resample of a bootstrap may give the same
    accuracy, the interval keeps its width. Its coverage is the level on average over accuracies near one, and
    may be less at one (0.84 of 0.95 where N times the error is 0.18; see Brown, Cai & DasGupta 2001).

    Raises
    ------
    DataError
        for no values, NaN (counted), or values other than 0 and 1
    ConfigError
        for a confidence outside (0, 1)
    """
    sample = as_correct(correct)
    check_bootstrap(1, confidence)
    with importing():
        from scipy.stats import binomtest

    right, n = int(sample.sum()), len(sample)
    low, high = binomtest(right, n).proportion_ci(confidence, method="wilson")
    return Interval(right / n, float(low), float(high))


@dataclass(frozen=True)
class McNemar:
    """Rows that only the second classifier answers right, rows that only the first does, and the p-value."""

    gained: int
    lost: int
    p: float


def mcnemar(first: ArrayInput, second: ArrayInput) -> McNemar:
    """Return McNemar's exact test of two classifiers' answers to the same rows (McNemar 1947), two-sided.

    ``first`` and ``second`` (N,) hold 1 where the answer is right, else 0. If the classifiers are alike, the
    rows that only one of them answers right fall to either by a coin's toss; p is 1 where there are none.

    Raises
    ------
    DataError
        for no rows, numbers of rows that differ, NaN (counted), or values other than 0 and 1

    Examples
    --------
    >>> mcnemar([1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1])
    McNemar(gained=4, lost=1, p=0.375)
    """
    one, other = as_correct(first), as_correct(second)
    if len(one) != len(other):
        raise DataError(f"one answers {len(one)} rows, the other {len(other)}: give the same rows to both")
    with importing():
        from scipy.stats import binomtest

    gained, lost = int((other > one).sum()), int((one > other).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p)


@settings_checked
def seed_interval(
    values: Sequence[float | None],
    own: tuple[float | None, float | None] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Return a figure over seeds: its mean, its 95 % interval, and the value of each seed.

    Parameters
    ----------
    values
        one a seed; None where it was not measured
    own
        the interval (low, high) that a seed gave itself (Wilson, bootstrap)
    limits
        what the figure cannot leave, such as (0, 1) of a share; None: nothing

    Returns
    -------
    dict
        ``value``, ``low``, ``high`` and ``seeds`` (``values``), fit for JSON. From three measured seeds on
        the interval is mean ± t₀.₉₇₅(n−1)·s/√n (Student), cut off at ``limits``. Of a single one it is
        ``own``; of two there is none, nor of seeds that agree, which would look like certainty. What is
        missing is None

    Examples
    --------
    >>> seed_interval([0.25, 0.75])
    {'value': 0.5, 'low': None, 'high': None, 'seeds': [0.25, 0.75]}
    """
    known = [value for value in values if value is not None]
    low: float | None = None
    high: float | None = None
    if len(known) >= 3 and min(known) < max(known):
        with importing():
            from scipy.stats import t

        half = float(t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
        least, most = limits
        low, high = float(np.mean(known)) - half, float(np.mean(known)) + half
        low, high = low if least is None else max(low, least), high if most is None else min(high, most)
    elif len(known) == 1 and own is not None:
        low, high = own
    mean = float(np.mean(known)) if known else None
    return {"value": mean, "low": low, "high": high, "seeds": list(values)}


def as_correct(values: ArrayInput) -> npt.NDArray[np.float64]:
    """Return a mask of right answers (N,) as 0.0 and 1.0, or raise DataError."""
    correct = as_scores(values, "the mask of right answers")
    other = int((~np.isin(correct, (0.0, 1.0))).sum())
    if other:
        raise DataError(f"the mask of right answers has {other} values other than 0 and 1: give booleans")
    return correct
