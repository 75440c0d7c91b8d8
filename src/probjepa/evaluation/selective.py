"""Selective prediction: whose uncertainty finds the errors of a classifier, on images and on tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, spearmanr
from sklearn.ensemble import IsolationForest
from torch import Tensor

from probjepa import metrics
from probjepa._arrays import fingerprints
from probjepa.data.overlap import refuse_fitted_rows
from probjepa.detectors import KNN
from probjepa.draws import sklearn_seed
from probjepa.evaluation.figures import figure
from probjepa.metrics.selective import COVERAGES

_NEIGHBOURS = 20  # of the classifier of images, as in the accuracy table, and of the distances
_LARGEST_BANK = 10_000  # rows of a table; more make the neighbours' search the longest part
_POINTS = 200  # of a curve of images in a result
# sources of uncertainty
UNCERTAINTY, DECODED = "model uncertainty", "model uncertainty, decoded"
PREDICTIVE = "model uncertainty, predictive"
LIKELIHOOD, PROBABILITY = "−log-likelihood", "maximum class probability"

Column = npt.NDArray[np.float64]
Correct = npt.NDArray[np.bool_]


def lead(selective: Mapping[str, Any]) -> str:
    """Return the classifier that stands for all: the one with the highest accuracy at full coverage.

    ``selective`` is of metrics.json: classifier → source of uncertainty → what ``withheld`` returns.
    """

    def accuracy(name: str) -> float:
        of = (next(iter(selective[name].values())).get("accuracy_at") or {}).get("1.0")
        value = of["value"] if isinstance(of, Mapping) else of
        return -math.inf if value is None or math.isnan(value) else float(value)

    return max(selective, key=accuracy)


def withheld(confidence: Column, correct: Correct, at: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return what is left of the errors when the least confident of N answers are withheld.

    ``curve`` ("coverage" and "risk" where ``at`` + 1 answers are given), ``aurc``, ``excess_aurc`` and
    ``accuracy_at`` ("1.0", "0.9", "0.8", "0.5"), as ``metrics.risk_coverage`` defines them.
    """
    found = metrics.risk_coverage(confidence, correct)
    accuracy_at = {1.0: float(correct.mean()), **found.accuracy_at}
    return {
        "curve": {"coverage": found.coverage[at].tolist(), "risk": found.risk[at].tolist()},
        "aurc": found.aurc,
        "excess_aurc": found.excess_aurc,
        "accuracy_at": {str(share): accuracy for share, accuracy in accuracy_at.items()},
    }


# --- images -----------------------------------------------------------------------------------------------


def selective_prediction(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    labels: Tensor,
    *,
    scores: Mapping[str, Column],
    measures: Mapping[str, Column],
    vote: tuple[npt.NDArray[Any], Column] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the risk–coverage curve of the kNN classifier (k = 20, majority) by each source of uncertainty.

    Parameters
    ----------
    bank, bank_labels, test, labels
        embeddings (M, D) and (N, D) with their labels
    scores
        label-free scores (N,), higher = more typical: the least typical images are withheld first
    measures
        measures of uncertainty (N,): the highest are withheld first. One that puts the images in the order of
        a score, or in its reverse (σ²'s trace beside its mean), is that score and is left out
    vote
        what ``metrics.knn_vote`` says of the test rows, if it is known; None: it is asked

    Returns
    -------
    dict
        source → what ``withheld`` returns, the curve of at most 200 points, the last at coverage 1. Beside
        scores and measures: "kNN vote share" (of the winning class), "kNN distance" (to the 20th neighbour),
        and "random", the expectation of withholding at random
    """
    k = min(_NEIGHBOURS, len(bank))
    predicted, share = metrics.knn_vote(bank, bank_labels, test, k=k) if vote is None else vote
    refuse_fitted_rows("KNN", bank, test)
    confidence = {"kNN vote share": share, "kNN distance": KNN(k).fit(bank).score_samples(test), **scores}
    known = [_ranks(values) for values in scores.values()]
    for name, values in measures.items():
        ranks = _ranks(values)
        if not any(abs(float(ranks @ other)) > 1 - 1e-9 for other in known):
            known.append(ranks)
            confidence[name] = -values
    confidence["random"] = np.zeros(len(test))
    shown = np.unique(np.linspace(0, len(test) - 1, min(_POINTS, len(test))).round().astype(int))
    correct = predicted == labels.numpy()
    return {source: withheld(values, correct, shown) for source, values in confidence.items()}


def _ranks(values: Column) -> Column:
    """Ranks about their mean, of norm 1: the product of two is Spearman's ρ; zero for a constant."""
    ranks: Column = rankdata(values) - (len(values) + 1) / 2
    return ranks / max(float(np.linalg.norm(ranks)), 1.0)


# --- tables -----------------------------------------------------------------------------------------------


def table_uncertainty(
    model: Any, test: Any, spaces: Mapping[str, tuple[Any, Any]], seed: int
) -> dict[str, Column]:
    """Return the sources of uncertainty (N,) of the test rows that need no classifier, higher = less sure.

    ``model uncertainty``, the same ``predictive`` and ``decoded``, and ``−log-likelihood`` (−score_samples)
    where the model has them; kNN distance (to the 20th of at most 10,000 training rows) on the raw features
    and the embedding; Isolation Forest on the raw features; and ``random``, all equal, whose curve is the
    expectation of withholding at random.

    Parameters
    ----------
    spaces
        "raw", and perhaps "embedding" → features of the training and of the test rows
    """
    found: dict[str, Column] = {}
    if hasattr(model, "uncertainty"):
        found[UNCERTAINTY] = model.uncertainty(test)
    if hasattr(model, "uncertainty_features"):  # with them come the other ways to sum them up
        found[PREDICTIVE] = model.uncertainty(test, "predictive")
        found[DECODED] = model.uncertainty(test, "decoded")
    if hasattr(model, "score_samples"):
        found[LIKELIHOOD] = -model.score_samples(test)
    bank, queries = spaces["raw"]
    if "embedding" in spaces:
        found["kNN distance, embedding"] = _distance(*spaces["embedding"], seed, normalize=True)
    found["kNN distance, raw"] = _distance(bank, queries, seed, normalize=False)
    forest = IsolationForest(random_state=sklearn_seed(seed)).fit(bank)
    found["Isolation Forest, raw"] = -forest.score_samples(queries)
    found["random"] = np.zeros(len(queries))
    return found


def _distance(bank: Any, queries: Any, seed: int, *, normalize: bool) -> Column:
    # different rows may have equal features (unknown categories): their distance of 0 would say nothing
    bank = bank[~np.isin(fingerprints(bank + np.float32(0)), fingerprints(queries + np.float32(0)))]
    if len(bank) > _LARGEST_BANK:
        bank = bank[np.random.default_rng(seed).choice(len(bank), _LARGEST_BANK, replace=False)]
    if not len(bank):
        return np.zeros(len(queries))
    return -KNN(min(_NEIGHBOURS, len(bank)), normalize=normalize).fit(bank).score_samples(queries)


def selection_figures(
    correct: Correct, uncertainty: Mapping[str, Column]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what each uncertainty (N,) does for answers right or wrong (N,): selection, and calibration.

    Returns
    -------
    selective
        source → {"aurc", "excess_aurc", "accuracy_at", "risk": at the ``COVERAGES``}, as of ``withheld``
    calibration
        source → {"spearman": of the uncertainty with being wrong, "accuracy": of each tenth of the rows from
        the least to the most uncertain, what is expected where rows are tied}, without the sources that do
        not vary
    """
    selective, calibration = {}, {}
    n = len(correct)
    at = np.array([max(1, math.ceil(share * n - 1e-9)) - 1 for share in COVERAGES])
    for source, values in uncertainty.items():
        found = withheld(-values, correct, at)
        selective[source] = {
            **{name: figure(found[name]) for name in ("aurc", "excess_aurc")},
            "accuracy_at": {share: figure(accuracy) for share, accuracy in found["accuracy_at"].items()},
            "risk": found["curve"]["risk"],
        }
        if values.min() < values.max():
            _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
            expected = (np.bincount(group, correct) / sizes)[np.sort(group)]
            rho = math.nan if correct.all() or not correct.any() else float(spearmanr(values, ~correct)[0])
            calibration[source] = {
                "spearman": figure(rho),
                "accuracy": [float(tenth.mean()) for tenth in np.array_split(expected, min(10, n))],
            }
    return selective, calibration
