"""Selective prediction: the error that is left when the least confident answers are withheld."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probjepa._arrays import ArrayInput, as_scores
from probjepa.errors import DataError
from probjepa.metrics.intervals import as_correct

#: of a curve that results of tables hold: 5 %, 6 %, …, 100 %
COVERAGES = tuple(round(0.01 * percent, 2) for percent in range(5, 101))


@dataclass(frozen=True)
class RiskCoverage:
    """The risk–coverage curve and its summaries.

    Attributes
    ----------
    coverage
        1/N, 2/N, ..., 1: share of the samples answered, most confident first, (N,)
    risk
        share of wrong answers among them, (N,)
    aurc
        mean of ``risk``
    excess_aurc
        ``aurc`` less that of the perfect order, which answers all right ones first
    accuracy_at
        coverage (0.9, 0.8, 0.5) → accuracy on that share, rounded up to whole samples
    """

    coverage: npt.NDArray[np.float64]
    risk: npt.NDArray[np.float64]
    aurc: float
    excess_aurc: float
    accuracy_at: dict[float, float]


def risk_coverage(confidence: ArrayInput, correct: ArrayInput) -> RiskCoverage:
    """Return the risk–coverage curve of a confidence (N,), higher = surer, over answers right or wrong (N,).

    Equally confident answers come in random order: the curve is its expectation, so it does not depend on the
    order of the rows. Reference: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks",
    NeurIPS 2017; Geifman et al., "Bias-Reduced Uncertainty Estimation", ICLR 2019 (excess AURC).

    Raises
    ------
    DataError
        for no values, NaN (counted), lengths that do not match, or ``correct`` with values other than 0 and 1

    Examples
    --------
    >>> curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1])
    >>> curve.risk.round(2).tolist(), curve.accuracy_at[0.5]
    ([0.0, 0.0, 0.33, 0.25], 1.0)
    """
    scores, right = as_scores(confidence, "the confidence"), as_correct(correct)
    if len(scores) != len(right):
        raise DataError(
            f"the confidence has {len(scores)} values and the mask of right answers {len(right)}: "
            "give one of each a sample"
        )
    n = len(scores)
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    group_errors = np.bincount(group, weights=1 - right)
    errors = np.cumsum(np.repeat(group_errors / size, size))
    answered = np.arange(1, n + 1)
    risk = errors / answered
    n_right = int(right.sum())
    perfect = np.maximum(answered - n_right, 0) / answered
    accuracy_at = {share: float(1 - risk[_whole(share * n) - 1]) for share in (0.9, 0.8, 0.5)}
    aurc = float(risk.mean())
    return RiskCoverage(answered / n, risk, aurc, aurc - float(perfect.mean()), accuracy_at)


def _whole(count: float) -> int:
    # 0.9 * 10 may come out a hair above 9
    return math.ceil(count - 1e-9)
