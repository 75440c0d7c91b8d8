"""Detectors of anomalies in tables of numbers that VarTJEPA stands beside: fit to rows, score others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from probjepa.detectors import KNN
from probjepa.errors import MissingExtraError

_Array = npt.NDArray[np.float64]


class _Pyod:
    """A detector of pyod in scikit-learn's manner, imported when it is made."""

    def __init__(self, name: str) -> None:
        try:
            self.detector = getattr(import_module(f"pyod.models.{name.lower()}"), name)()
        except ImportError as error:
            raise MissingExtraError("pyod", "pyod") from error

    def fit(self, rows: _Array) -> _Pyod:
        self.detector.fit(rows)
        return self

    def score_samples(self, rows: _Array) -> _Array:
        scores: _Array = -self.detector.decision_function(rows)
        return scores


#: name → (rows of the fit, seed) → a detector that is not fitted, with its library's defaults
DETECTORS: Mapping[str, Callable[[int, int], Any]] = {
    "ECOD": lambda rows, seed: _Pyod("ECOD"),
    "COPOD": lambda rows, seed: _Pyod("COPOD"),
    "Isolation Forest": lambda rows, seed: IsolationForest(random_state=seed),
    "kNN": lambda rows, seed: KNN(min(5, rows), normalize=False),
    "LOF": lambda rows, seed: LocalOutlierFactor(min(20, rows - 1), novelty=True),
    "one-class SVM": lambda rows, seed: OneClassSVM(),
}


def detect(name: str, train: _Array, test: _Array, seed: int) -> _Array:
    """Fit a detector to rows and return how odd each of the others is (N,), higher = odder.

    Columns are standardised by the mean and deviation of the rows of the fit.

    Raises
    ------
    MissingExtraError
        where pyod is not installed
    """
    mean, std = train.mean(0), train.std(0)
    train, test = ((rows - mean) / np.where(std > 0, std, 1.0) for rows in (train, test))
    scores: _Array = -DETECTORS[name](len(train), seed).fit(train).score_samples(test)
    return scores
