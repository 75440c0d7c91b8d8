"""Selective prediction: whose doubt finds the errors of the kNN classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import Tensor

from probjepa import metrics
from probjepa.data.overlap import refuse_fitted_rows
from probjepa.detectors import KNN

_NEIGHBOURS = 20  # of the classifier, as in the accuracy table
_POINTS = 200  # of a curve in a result

Column = npt.NDArray[np.float64]


def selective_prediction(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    labels: Tensor,
    *,
    scores: Mapping[str, Column],
    measures: Mapping[str, Column],
) -> dict[str, dict[str, Any]]:
    """Return the risk–coverage curve of the kNN classifier (k = 20, majority) by each source of doubt.

    Parameters
    ----------
    bank, bank_labels, test, labels
        embeddings (M, D) and (N, D) with their labels
    scores
        label-free scores (N,), higher = more typical: the least typical images are withheld first
    measures
        measures of uncertainty (N,): the highest are withheld first. One that puts the images in the order of
        a score, or in its reverse (σ²'s trace beside its mean), is that score and is left out

    Returns
    -------
    dict
        source → ``curve`` ("coverage" and "risk", at most 200 points, the last at coverage 1), ``aurc``,
        ``excess_aurc``, ``accuracy_at`` ("1.0", "0.9", "0.8", "0.5"), as ``metrics.risk_coverage`` defines
        them. Beside scores and measures: "kNN vote share" (of the winning class), "kNN distance" (to the
        20th neighbour), and "random", the expectation of withholding at random
    """
    k = min(_NEIGHBOURS, len(bank))
    predicted, share = metrics.knn_vote(bank, bank_labels, test, k=k)
    correct = predicted == labels.numpy()
    refuse_fitted_rows("KNN", bank, test)
    confidence = {"kNN vote share": share, "kNN distance": KNN(k).fit(bank).score_samples(test), **scores}
    known = [_ranks(values) for values in scores.values()]
    for name, values in measures.items():
        ranks = _ranks(values)
        if not any(abs(float(ranks @ other)) > 1 - 1e-9 for other in known):
            known.append(ranks)
            confidence[name] = -values
    confidence["random"] = np.zeros(len(test))
    return {source: _summary(values, correct) for source, values in confidence.items()}


def _ranks(values: Column) -> Column:
    """Ranks about their mean, of norm 1: the product of two is Spearman's ρ; zero for a constant."""
    ranks: Column = rankdata(values) - (len(values) + 1) / 2
    return ranks / max(float(np.linalg.norm(ranks)), 1.0)


def _summary(confidence: Column, correct: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found = metrics.risk_coverage(confidence, correct)
    count = len(correct)
    shown = np.unique(np.linspace(0, count - 1, min(_POINTS, count)).round().astype(int))
    return {
        "curve": {"coverage": found.coverage[shown].tolist(), "risk": found.risk[shown].tolist()},
        "aurc": found.aurc,
        "excess_aurc": found.excess_aurc,
        "accuracy_at": {"1.0": float(correct.mean())}
        | {str(coverage): accuracy for coverage, accuracy in found.accuracy_at.items()},
    }
