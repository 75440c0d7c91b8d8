"""Decisions from scores, with a false-alarm rate that holds: conformal p-values and thresholds.

All that is assumed is that typical rows and calibration rows are exchangeable: drawn alike, and not used to
train or to fit the score. "Algorithmic Learning in a Random World" (Vovk, Gammerman, Shafer 2005); for
outliers Bates, Candès, Lei, Romano, Sesia, arXiv 2104.08279.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control

from probjepa._arrays import ArrayInput, as_float_tensor, as_scores
from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.typed import settings_checked

_Array = npt.NDArray[np.float64]
Combination = Literal["fisher", "bonferroni", "harmonic"]
# p-values (…, S) → a statistic (…), lower for rows that look odd
_STATISTICS: dict[str, Callable[[_Array], _Array]] = {
    "fisher": lambda p: np.log(p).sum(-1),
    "bonferroni": lambda p: p.min(-1),
    "harmonic": lambda p: -(1 / p).sum(-1),
}
_AT_A_TIME = 1 << 22  # numbers of one block
# p-values are whole numbers over n + 1, so that what is closer than this is equal but for rounding
_ROUNDING = 1e-12


@settings_checked
def conformal_p_values(
    scores: ArrayInput, calibration: ArrayInput, *, smoothed: bool = False, seed: int = 0
) -> _Array:
    """Return how typical each row is among held-out typical rows, as a p-value (N,) in (0, 1].

    p = (1 + #{c ≤ s})/(n + 1), for a score s and n calibration scores c. Of a typical row, P(p ≤ α) ≤ α for
    every α. ``smoothed`` breaks ties at random, p = (#{c < s} + U·(1 + #{c = s}))/(n + 1): then p is exactly
    uniform.

    Parameters
    ----------
    scores, calibration
        (N,) and (n,), higher for more typical rows
    smoothed, seed
        whether, and of the U

    Raises
    ------
    DataError
        for no scores, or NaN (counted)

    Examples
    --------
    >>> conformal_p_values([0.5, 9.0], [1.0, 2.0, 3.0]).tolist()
    [0.25, 1.0]
    """
    found = as_scores(scores, "the scores")
    known = np.sort(as_scores(calibration, "the calibration scores"))
    at_most = np.searchsorted(known, found, side="right")
    if not smoothed:
        return (1 + at_most) / (len(known) + 1)
    below = np.searchsorted(known, found, side="left")
    # in (0, 1], so that no p is 0
    uniform = 1 - np.random.default_rng(seed).random(len(found))
    return (below + uniform * (1 + at_most - below)) / (len(known) + 1)


@settings_checked
def threshold(calibration: ArrayInput, alpha: float) -> float:
    """Return the score below which a row is flagged, so that at most ``alpha`` of typical rows are.

    That is on average over calibration sets: the share of one is above ``alpha`` nearly half of the time, and
    near it where n is large.

    It is the k-th smallest calibration score, k = ⌊α(n + 1)⌋: ``score < threshold`` where the plain p-value
    is at most α.

    Parameters
    ----------
    calibration
        (n,) of held-out typical rows, higher for more typical ones
    alpha
        the false-alarm rate, in (0, 1)

    Raises
    ------
    ConfigError
        for an ``alpha`` outside (0, 1)
    DataError
        for no scores, NaN (counted), or fewer than 1/α − 1 of them: then no row could ever be flagged

    Examples
    --------
    >>> threshold([3.0, 1.0, 2.0, 4.0], alpha=0.4)
    2.0
    """
    known = np.sort(as_scores(calibration, "the calibration scores"))
    return float(known[threshold_rank(len(known), alpha) - 1])


def threshold_rank(rows: int, alpha: float, name: str = "alpha") -> int:
    """Return k: the threshold is the k-th smallest score of so many calibration rows; see ``threshold``."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ConfigError(f"{name} is {alpha}: give a rate between 0 and 1, such as 0.05")
    rank = math.floor(alpha * (rows + 1) * (1 + _ROUNDING))  # 0.29 · 100 is 28.999… in floating point
    if rank < 1:
        least = math.ceil(Fraction(1 - _ROUNDING) / Fraction(alpha)) - 1
        rows_asked = f"at least {least}" if least < 10**12 else "more than 10^12"
        raise DataError(
            f"{rows} calibration rows are too few for {name} = {alpha}: give {rows_asked}, or a larger {name}"
        )
    return min(rank, rows)


@dataclass(frozen=True)
class Rule:
    """Which rows to flag: those with a p-value of at most ``alpha``, or those that ``fdr`` allows.

    Parameters
    ----------
    alpha
        the false-alarm rate: at most this share of the typical rows is flagged
    fdr
        the false discovery rate, which then decides: at most this share of the flagged rows is typical, by
        Benjamini and Hochberg (1995), who Bates et al. show may be given conformal p-values
    """

    alpha: float = 0.05
    fdr: float | None = None

    def check(self, rows: int) -> None:
        """Raise ConfigError for a rate outside (0, 1), DataError for too few calibration rows for it."""
        threshold_rank(rows, *((self.alpha,) if self.fdr is None else (self.fdr, "fdr")))

    def decide(self, scores: ArrayInput, calibration: ArrayInput) -> dict[str, npt.NDArray[Any]]:
        """Return of N scores "p_value", plain, "q_value", the least ``fdr`` that flags, and "flagged"."""
        calibration = as_scores(calibration, "the calibration scores")
        self.check(len(calibration))
        p = conformal_p_values(scores, calibration)
        q = false_discovery_control(p)
        if self.fdr is not None:
            flagged = q <= self.fdr * (1 + _ROUNDING)
        else:
            flagged = as_scores(scores, "the scores") < threshold(calibration, self.alpha)
        return {"p_value": p, "q_value": q, "flagged": flagged}

    def __str__(self) -> str:
        return f"alpha = {self.alpha:g}" if self.fdr is None else f"fdr = {self.fdr:g}"


@settings_checked
def combined_p_values(
    scores: ArrayInput, calibration: ArrayInput, *, combine: Combination = "fisher"
) -> _Array:
    """Return one p-value (N,) from several scores of each row.

    Each score is turned into a p-value, these into one statistic, and the row's statistic is ranked among
    those of the calibration rows, with the row itself counted in. So P(p ≤ α) ≤ α for a typical row however
    the scores depend on each other, which the statistics' own tables do not promise.

    Parameters
    ----------
    scores, calibration
        (N, S) and (n, S), higher for more typical rows
    combine
        "fisher", Σ log p; "bonferroni", the smallest p; "harmonic", their harmonic mean

    Raises
    ------
    DataError
        for other shapes, no scores, or NaN
    ConfigError
        for an unknown combination
    """
    if combine not in _STATISTICS:
        raise unknown_name("combination", combine, _STATISTICS)
    found, known = _columns(scores, "the scores"), _columns(calibration, "the calibration scores")
    if found.shape[1] != known.shape[1]:
        raise DataError(
            f"{found.shape[1]} scores a row and {known.shape[1]} a calibration row: give the same ones"
        )
    statistic, n = _STATISTICS[combine], len(known)
    ranks = _ranks(known, known)
    own = statistic((1 + _ranks(found, known)) / (n + 1))
    own += _ROUNDING * np.abs(own)  # statistics that are equal differ by the order of their sum
    p = np.empty(len(found))
    step = max(1, _AT_A_TIME // known.size)
    for start in range(0, len(found), step):
        rows = slice(start, start + step)
        # a calibration row's rank with the scored row among them
        with_row = ranks + (found[rows, None] <= known)
        others = statistic(with_row / (n + 1))
        p[rows] = (1 + (others <= own[rows, None]).sum(1)) / (n + 1)
    return p


def _columns(values: ArrayInput, what: str) -> _Array:
    tensor = as_float_tensor(values, what)
    if tensor.ndim != 2:
        raise DataError(f"{what} have shape {tuple(tensor.shape)}: give one row a sample, (N, S)")
    found: _Array = tensor.double().cpu().numpy()
    as_scores(found.reshape(-1), what)
    return found


def _ranks(values: _Array, known: _Array) -> npt.NDArray[np.intp]:
    """How many of ``known`` (n, S) are at most each of ``values`` (N, S), a column at a time."""
    columns = (
        np.searchsorted(np.sort(of), column, side="right")
        for column, of in zip(values.T, known.T, strict=True)
    )
    return np.stack(list(columns), 1)
