"""What reads a class from features: logistic regression, a small network, boosted trees; and raw features."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probjepa.draws import sklearn_seed
from probjepa.registry import required
from probjepa.tabular.schema import ColumnType, TableSchema

Features: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.int64]
#: features (N, F) → probabilities (N, K) of the classes 0 … K − 1
Probabilities: TypeAlias = Callable[[Features], npt.NDArray[np.float64]]

_MOST_EPOCHS = 200
_PATIENCE = 10
_EPOCHS_UNWATCHED = 30  # of a network without validation rows


class RawFeatures:
    """A table as plain numbers (N, F): standardised numbers, missing indicators, one-hot categories.

    A missing number is the mean; missing and unknown categories have places of their own. Columns that are
    constant over the rows of the fit are left out.
    """

    def __init__(self, column_types: Mapping[str, ColumnType] | None = None) -> None:
        self.column_types = column_types

    def fit(self, table: Any) -> Self:
        """Read the schema and the standardisation off a table; raises DataError as ``TableSchema.infer``."""
        self.schema_ = TableSchema.infer(table, column_types=self.column_types)
        wide = self._wide(table)
        varies = wide.min(0) < wide.max(0)
        self._kept = varies if varies.any() else np.arange(wide.shape[1]) == 0
        return self

    def transform(self, table: Any) -> Features:
        """Return the features (N, F) of a table; raises DataError as ``TableSchema.encode``."""
        return self._wide(table)[:, self._kept]

    def _wide(self, table: Any) -> Features:
        encoded = self.schema_.encode(table)
        parts = [encoded.numeric, encoded.missing.astype(np.float32)]
        for codes, size in zip(encoded.codes.T, self.schema_.layout.cardinalities, strict=True):
            parts.append((codes[:, None] == np.arange(size + 2)).astype(np.float32))
        return np.concatenate(parts, 1)


def logistic_regression(x: Features, y: Codes, x_val: Features, y_val: Codes, seed: int) -> Probabilities:
    """Fit multinomial logistic regression (C = 1, at most 300 steps of L-BFGS) on standardised features."""
    regression = LogisticRegression(max_iter=300, random_state=sklearn_seed(seed))
    model = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return _probabilities(model)


def mlp(x: Features, y: Codes, x_val: Features, y_val: Codes, seed: int) -> Probabilities:
    """Fit a network of two layers of 128 on standardised features, stopped early by the validation rows.

    The weights of the epoch with the lowest validation log-loss are kept, and 10 epochs without a lower one
    end the fit; without validation rows, 30 epochs.
    """
    scaler = StandardScaler().set_output(transform="default").fit(x)
    x = scaler.transform(x)
    classes = np.arange(int(y.max()) + 1)
    # a generator, not a number: each epoch's shuffle is another
    network = MLPClassifier((128, 128), random_state=np.random.RandomState(sklearn_seed(seed)))
    watched = np.flatnonzero(y_val < len(classes))
    best, kept, since = np.inf, None, 0
    watched_x = scaler.transform(x_val[watched]) if len(watched) else None
    for _ in range(_MOST_EPOCHS if len(watched) else _EPOCHS_UNWATCHED):
        network.partial_fit(x, y, classes=classes)
        if not len(watched):
            continue
        found = network.predict_proba(watched_x)
        of_truth = found[np.arange(len(watched)), y_val[watched]].astype(np.float64)
        loss = float(-np.log(np.maximum(of_truth, 1e-12)).mean())
        since += 1
        if loss < best:
            best, since = loss, 0
            kept = copy.deepcopy((network.coefs_, network.intercepts_))
        if since >= _PATIENCE:
            break
    if kept is not None:
        network.coefs_, network.intercepts_ = kept
    read = _probabilities(network)
    return lambda features: read(scaler.transform(features))


def xgboost(x: Features, y: Codes, x_val: Features, y_val: Codes, seed: int) -> Probabilities:
    """Fit 100 boosted trees of depth 3 with a learning rate of 0.1.

    Raises
    ------
    MissingExtraError
        where xgboost is not installed
    """
    library = required("xgboost", "xgboost")
    import torch

    model = library.XGBClassifier(
        n_estimators=100, max_depth=3, learning_rate=0.1, random_state=sklearn_seed(seed),
        n_jobs=torch.get_num_threads(),
    )  # fmt: skip
    return _probabilities(model.fit(x, y))


def _probabilities(model: Any) -> Probabilities:
    return lambda features: np.asarray(model.predict_proba(features), dtype=np.float64)


#: name → (features and classes of the fit, of the validation rows, seed) → probabilities
PREDICTORS: Mapping[str, Callable[[Features, Codes, Features, Codes, int], Probabilities]] = {
    "logistic regression": logistic_regression,
    "MLP": mlp,
    "XGBoost": xgboost,
}
