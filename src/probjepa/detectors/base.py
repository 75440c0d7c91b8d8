"""The contract of all detectors, and how embeddings larger than memory are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from probjepa._arrays import (
    ArrayInput,
    as_features,
    as_float_tensor,
    as_labels,
    power_of_two,
    refuse_masked,
)
from probjepa.errors import ConfigError, DataError, short
from probjepa.registry import importing
from probjepa.typed import check_arguments, types_of

with importing():
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.exceptions import NotFittedError as SklearnNotFittedError
    from sklearn.utils import gen_batches
    from sklearn.utils.validation import validate_data

Matrix = npt.NDArray[np.float64]
_BLOCK = 2**22  # numbers of the rows that are looked at together
THRESHOLD_ROWS = 1024  # of the fit, whose scores set the threshold: all of them would cost kNN N² distances


class NotFittedError(ConfigError, SklearnNotFittedError):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator was used before ``fit``."""


class Thresholded(OutlierMixin):  # type: ignore[misc]  # scikit-learn has no types
    """``predict`` by a threshold of ``score_samples``, the ``offset_`` that ``fit`` sets."""

    contamination: float
    score_samples: Any

    def _check_contamination(self) -> None:
        if not 0 < self.contamination <= 0.5:
            raise ConfigError(
                f"{type(self).__name__}: contamination is {self.contamination}: "
                "use a share of the rows above 0 and up to 0.5"
            )

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return ``score_samples`` − ``offset_`` (N,): negative for outliers. Errors as there."""
        decision: npt.NDArray[np.float64] = self.score_samples(X) - self.offset_
        return decision

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return 1 for typical rows and −1 for outliers (N,). Errors as ``score_samples``."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def threshold_sample(rows: int) -> npt.NDArray[np.int64]:
    """Return which of so many rows of a fit set its threshold: all, or 1,024, evenly spaced."""
    return spaced(rows, THRESHOLD_ROWS)


def spaced(rows: int, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of ``count`` of so many rows, evenly spaced, or of all."""
    return np.unique(np.linspace(0, rows - 1, count).astype(np.int64))[:rows]


def row_blocks(rows: Matrix) -> Iterator[slice]:
    """Return slices of rows (N, D) of bounded memory."""
    return gen_batches(len(rows), max(_BLOCK // rows.shape[1], 1))  # type: ignore[no-any-return]


def in_blocks(rows: Matrix) -> Iterator[tuple[slice, Matrix]]:
    """Yield rows (N, D), which may be mapped, in float64, a block at a time."""
    for of in row_blocks(rows):
        yield of, np.asarray(rows[of], dtype=np.float64)


def unit_of(rows: Matrix) -> float:
    """Return what to divide rows (N, D) by, which may be mapped, so that their squares do not overflow."""
    return float(power_of_two(max(float(np.abs(block).max()) for _, block in in_blocks(rows))))


def in_unit(rows: Matrix, unit: float) -> Matrix:
    """Return rows over what ``unit_of`` gave: the rows themselves, and no copy, where that is 1."""
    return rows if unit == 1 else rows / unit


def threshold_rows(rows: Matrix) -> Matrix:
    """Return the rows that set the threshold of a fit to ``rows``."""
    return np.asarray(rows[threshold_sample(len(rows))], dtype=np.float64)


class Detector(Thresholded, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The contract of all detectors; a sub-class gives ``_fit`` and ``_score`` on checked float64 rows.

    Those of the fit are in float64, or a ``numpy.memmap``.

    Attributes
    ----------
    n_features_in_, feature_names_in_
        of the fit; the names only where they were given (a DataFrame)
    offset_
        the threshold: the quantile ``contamination`` of the scores of the fit (of 1,024 of its rows, evenly
        spaced, where there are more). For a share of new rows, take a quantile of held-out typical ones
    """

    def fit(self, X: ArrayInput, y: ArrayInput | None = None) -> Self:
        """Fit to typical embeddings (N, D); the labels ``y`` (N,) are used by ``Mahalanobis`` alone.

        Rows labelled −1, None or NaN, which are in no class, are then left out of its fit.

        Raises
        ------
        DataError
            for embeddings that are no (N, D), or hold NaN or Inf (counted), or for labels that do not match
        ConfigError
            for a setting out of its range, or one that these embeddings do not allow
        """
        check_arguments(self.get_params(), types_of(type(self)))
        self._check_contamination()
        with self._whole():
            rows = self._checked(X, "the embeddings to fit", reset=True)
            self._fit(rows, *classes_of(y, len(rows)))
            scores = self._score(threshold_rows(rows))
        self.offset_ = float(np.quantile(scores, self.contamination))
        return self

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Leave the fit before where the block fails: half of another would look like one."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def score_samples(self, X: ArrayInput) -> npt.NDArray[np.float64]:
        """Return a score (N,) for each embedding (N, D): higher = more typical.

        Raises
        ------
        DataError
            for embeddings that are no (N, D), of another width, or with NaN or Inf (counted)
        NotFittedError
            before ``fit``
        """
        self._check_is_fitted()
        rows = self._checked(X, "the embeddings to score", reset=False)
        return np.concatenate([self._score(block) for _, block in in_blocks(rows)])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def _check_is_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit(embeddings) first")

    def _checked(self, X: Any, what: str, *, reset: bool) -> Matrix:
        if isinstance(X, torch.Tensor):
            X = as_float_tensor(X, what).cpu().numpy()
        refuse_masked(X, what)
        mapped = isinstance(X, np.memmap) and X.dtype in (np.float32, np.float64)
        try:
            # scikit-learn's words on types and names; the shape, and NaN by their count, in ours below
            rows = validate_data(
                self, X[:1] if mapped else X, reset=reset, dtype=np.float64, ensure_2d=False, allow_nd=True,
                ensure_all_finite=False, ensure_min_samples=0,
            )  # fmt: skip
        except ValueError as error:
            said = short(" ".join(str(error).split()), 300)
            advice = "" if "feature names" in said else "; give numbers, one row a sample, (N, D)"
            raise DataError(f"{what}: {said}{advice}") from error
        rows = X if mapped else rows
        if rows.ndim != 2:
            raise DataError(
                f"{what} has shape {rows.shape}: give one row a sample, (N, D). Reshape your data"
            )
        if reset:
            self.n_features_in_ = rows.shape[1]
        elif rows.shape[1] != self.n_features_in_:
            raise DataError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: embed {what} with the encoder of the fit"
            )
        checked: Matrix = as_features(rows, what).numpy()
        return rows if mapped else checked

    def _fit(self, rows: Matrix, codes: npt.NDArray[np.int64], labels: npt.NDArray[Any]) -> None:
        raise NotImplementedError

    def _score(self, rows: Matrix) -> npt.NDArray[np.float64]:
        raise NotImplementedError


def classes_of(y: ArrayInput | None, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return the class number of each row (N,), −1 for none, and the classes, which without ``y`` are one."""
    if y is None:
        return np.zeros(rows, dtype=np.int64), np.array([""])
    known, labelled = as_labels(y, "the labels", rows=rows)
    codes = np.full(rows, -1)
    labels, codes[labelled] = np.unique(known, return_inverse=True)
    return codes, labels


def counted(rows: int) -> str:
    """Return so many rows in words; scikit-learn's checks look for the first ones."""
    return "1 sample" if rows == 1 else f"{rows} embeddings"
