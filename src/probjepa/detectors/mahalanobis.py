"""The distance to class means by a covariance, from sums that add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from probjepa._arrays import ArrayInput
from probjepa.detectors.base import (
    THRESHOLD_ROWS,
    Detector,
    Matrix,
    NotFittedError,
    classes_of,
    counted,
    in_blocks,
    in_unit,
    spaced,
    threshold_rows,
)
from probjepa.errors import ConfigError, DataError
from probjepa.metrics.moments import Moments
from probjepa.typed import check_arguments, types_of


class Mahalanobis(Detector):
    """Score = −min over classes c of (x − μ_c)ᵀ Σ⁻¹ (x − μ_c), Σ the covariance around the class means.

    Without labels there is one class. Reference: Lee et al., "A Simple Unified Framework for Detecting
    Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018 (Σ divides by N). Computed in float64.

    Parameters
    ----------
    shrinkage
        None: Σ as it is, which needs more rows than dimensions; a number α in [0, 1]:
        (1 − α)·Σ + α·(tr Σ/D)·I; "ledoit-wolf": the α of Ledoit & Wolf 2004
    contamination
        share of the fit that ``predict`` calls outliers, in (0, 0.5]
    """

    def __init__(
        self, shrinkage: float | Literal["ledoit-wolf"] | None = None, *, contamination: float = 0.1
    ) -> None:
        self.shrinkage = shrinkage
        self.contamination = contamination

    def _fit(self, rows: Matrix, codes: npt.NDArray[np.int64], labels: npt.NDArray[Any]) -> None:
        moments = self._moments_of(rows, codes, labels)
        self._settle(moments)
        self._moments, self._sample = moments, threshold_rows(rows)

    def partial_fit(self, X: ArrayInput, y: ArrayInput | None = None) -> Self:
        """Add embeddings (N, D) to those that it is fitted to: parts in any order are ``fit`` of all of them.

        Kept are counts, means and the scatter around these, in float64, and 1,024 rows for the threshold. The
        covariance is made when the next rows are scored, so that a part may be small.

        Raises
        ------
        DataError, ConfigError
            as ``fit``; and where some parts have labels and others have none
        """
        check_arguments(self.get_params(), types_of(type(self)))
        self._check_contamination()
        with self._whole():
            rows = self._checked(X, "the embeddings to fit", reset=not self.__sklearn_is_fitted__())
            self._join(self._moments_of(rows, *classes_of(y, len(rows))), threshold_rows(rows))
        return self

    def merge(self, other: Mahalanobis) -> Self:
        """Add the embeddings that another was fitted to, by another process say; errors as there."""
        if not isinstance(other, Mahalanobis):
            raise ConfigError(f"merge takes another Mahalanobis, got a {type(other).__name__}")
        if not other.__sklearn_is_fitted__():
            raise NotFittedError("the Mahalanobis to merge is not fitted: call fit(embeddings) first")
        if self.__sklearn_is_fitted__() and self.n_features_in_ != other.n_features_in_:
            raise DataError(
                f"this Mahalanobis has {self.n_features_in_} features and the one to merge "
                f"{other.n_features_in_}: fit both to embeddings of one encoder"
            )
        names, theirs = (getattr(of, "feature_names_in_", None) for of in (self, other))
        if names is not None and theirs is not None and list(names) != list(theirs):
            raise DataError(
                "this Mahalanobis and the one to merge have other feature names, or in another order: "
                "fit both to the same columns, in the same order"
            )
        if not self.__sklearn_is_fitted__() and theirs is not None:
            self.feature_names_in_ = theirs
        self.n_features_in_ = other.n_features_in_
        self._join(other._moments, other._sample)
        return self

    def score_samples(self, X: ArrayInput) -> npt.NDArray[np.float64]:
        """Return the score (N,) of embeddings (N, D); errors as above, and those of ``fit``'s covariance."""
        if self.__sklearn_is_fitted__() and not hasattr(self, "offset_"):
            self._settle(self._moments)
            self.offset_ = float(np.quantile(self._score(self._sample), self.contamination))
        return super().score_samples(X)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_moments")

    def _join(self, moments: Moments, sample: Matrix) -> None:
        if self.__sklearn_is_fitted__():
            known = self._moments
            if (known.labels.tolist() == [""]) != (moments.labels.tolist() == [""]):
                raise ConfigError("Mahalanobis: one part has labels and another has none: give all, or none")
            here, there = known.counts.sum(), moments.counts.sum()
            moments = known + moments
            if len(self._sample) + len(sample) > THRESHOLD_ROWS:  # of each its share
                kept = round(THRESHOLD_ROWS * here / (here + there))
                kept = min(max(kept, THRESHOLD_ROWS - len(sample)), len(self._sample))
                thinned = zip((self._sample, sample), (kept, THRESHOLD_ROWS - kept), strict=True)
                sample = np.concatenate([rows[spaced(len(rows), count)] for rows, count in thinned])
            else:
                sample = np.concatenate([self._sample, sample])
        self._moments, self._sample = moments, sample
        self.__dict__.pop("offset_", None)

    def _moments_of(self, rows: Matrix, codes: npt.NDArray[np.int64], labels: npt.NDArray[Any]) -> Moments:
        def blocks() -> Iterator[tuple[Matrix, npt.NDArray[np.int64]]]:
            for of, block in in_blocks(rows):
                known = codes[of] >= 0
                yield (block, codes[of]) if known.all() else (block[known], codes[of][known])

        return Moments.of(blocks, labels, rows.shape[1])

    def _settle(self, moments: Moments) -> None:
        """Set what scores need; errors as ``fit``."""
        n, dim = int(moments.counts.sum()), len(moments.scatter)
        covariance = self._covariance(moments)
        eigenvalues, vectors = np.linalg.eigh(covariance)
        eps = np.finfo(np.float64).eps
        # the mean of n equal numbers may miss them by rounding of this size
        if eigenvalues[-1] <= (n * eps * moments.largest) ** 2:
            why = "give more, different ones" if n == 1 else "the encoder collapsed, train it again"
            raise DataError(f"Mahalanobis: the {counted(n)} to fit do not vary: {why}")
        if eigenvalues[0] <= dim * eps * eigenvalues[-1]:
            given = self.shrinkage == "ledoit-wolf"  # of few rows it may shrink nothing
            advice = "give more different rows" if given else "use shrinkage='ledoit-wolf'"
            raise ConfigError(
                f"Mahalanobis: the covariance of these {n} embeddings is singular (constant or "
                f"dependent features): {advice}, or drop those features"
            )
        self._whitening = vectors / np.sqrt(eigenvalues)
        self._origin, self._unit = moments.means[0], moments.unit
        self._means = (moments.means - self._origin) @ self._whitening

    def _covariance(self, moments: Moments) -> Matrix:
        n, dim, n_classes = int(moments.counts.sum()), len(moments.scatter), len(moments.counts)
        shrinkage = self.shrinkage
        if shrinkage == "ledoit-wolf":
            if moments.fourth is None:
                raise ConfigError(
                    "Mahalanobis: 'ledoit-wolf' of several classes cannot be put together from parts: use a "
                    "number for shrinkage, leave the labels out, or fit all rows at once"
                )
            shrinkage = moments.ledoit_wolf()
        elif isinstance(shrinkage, str) or (shrinkage is not None and not 0 <= shrinkage <= 1):
            raise ConfigError(
                f"Mahalanobis: shrinkage is {shrinkage!r}: use None, a number from 0 to 1, or 'ledoit-wolf'"
            )
        if self.shrinkage in (None, 0) and n - n_classes < dim:
            means = "their mean" if n_classes == 1 else f"their {n_classes} class means"
            raise ConfigError(
                f"Mahalanobis: {counted(n)} around {means} give no covariance in {dim} dimensions: "
                f"fit on at least {dim + n_classes} rows, or use shrinkage='ledoit-wolf'"
            )
        sample = moments.scatter / n
        alpha = shrinkage or 0.0
        shrunk: Matrix = (1 - alpha) * sample + alpha * np.trace(sample) / dim * np.eye(dim)
        return shrunk

    def _score(self, rows: Matrix) -> npt.NDArray[np.float64]:
        scores = np.full(len(rows), -np.inf)
        with np.errstate(over="ignore", invalid="ignore"):  # too far for float64: −inf, which fmax keeps
            whitened = (in_unit(rows, self._unit) - self._origin) @ self._whitening
            for mean in self._means:
                np.fmax(scores, -np.square(whitened - mean).sum(1), out=scores)
        return scores
