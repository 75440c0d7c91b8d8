"""Detectors of atypical embeddings, as scikit-learn has outlier detectors.

``score_samples`` is higher for more typical rows. Rows of the fit can be scored, but such scores say nothing
of held-out rows: a row is its own nearest neighbour, and a covariance fitted on fewer rows than dimensions
separates those rows from all others whatever they hold. ``probjepa.data.overlap.refuse_fitted_rows`` finds
them; every command that scores calls it.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from probjepa._arrays import ArrayInput, as_features, as_float_tensor, as_labels
from probjepa.errors import ConfigError, DataError
from probjepa.registry import importing

with importing():
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.covariance import ledoit_wolf
    from sklearn.exceptions import NotFittedError as SklearnNotFittedError
    from sklearn.mixture import GaussianMixture as SklearnGaussianMixture
    from sklearn.neighbors import NearestNeighbors
    from sklearn.utils import gen_batches
    from sklearn.utils.validation import validate_data

__all__ = ["KNN", "GaussianMixture", "Mahalanobis", "NotFittedError"]

_Matrix = npt.NDArray[np.float64]
_THRESHOLD_ROWS = 1024  # of the fit, whose scores set the threshold: all of them would cost kNN N² distances


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
    return np.unique(np.linspace(0, rows - 1, _THRESHOLD_ROWS).astype(np.int64))[:rows]


class _Detector(Thresholded, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The contract of all detectors; a sub-class gives ``_fit`` and ``_score`` on checked float64 rows.

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
        self._check_contamination()
        rows = self._checked(X, "the embeddings to fit", reset=True)
        codes = np.zeros(len(rows), dtype=np.int64)
        if y is not None:
            labels, labelled = as_labels(y, "the labels", rows=len(rows))
            codes = np.full(len(rows), -1)
            codes[labelled] = np.unique(labels, return_inverse=True)[1]
        self._fit(rows, codes)
        scores = self._score(rows[threshold_sample(len(rows))])
        self.offset_ = float(np.quantile(scores, self.contamination))
        return self

    def score_samples(self, X: ArrayInput) -> npt.NDArray[np.float64]:
        """Return a score (N,) for each embedding (N, D): higher = more typical.

        Raises
        ------
        DataError
            for embeddings that are no (N, D), of another width, or with NaN or Inf (counted)
        NotFittedError
            before ``fit``
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit(embeddings) first")
        return self._score(self._checked(X, "the embeddings to score", reset=False))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def _checked(self, X: Any, what: str, *, reset: bool) -> _Matrix:
        if isinstance(X, torch.Tensor):
            X = as_float_tensor(X, what).cpu().numpy()
        try:
            # scikit-learn's words on types and names; the shape, and NaN by their count, in ours below
            rows = validate_data(
                self, X, reset=reset, dtype=np.float64, ensure_2d=False, allow_nd=True,
                ensure_all_finite=False, ensure_min_samples=0,
            )  # fmt: skip
        except ValueError as error:
            raise DataError(f"{what}: {error}; give numbers, one row a sample, (N, D)") from error
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
        checked: _Matrix = as_features(rows, what).numpy()
        return checked

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        raise NotImplementedError


def _counted(rows: int) -> str:
    return "1 sample" if rows == 1 else f"{rows} embeddings"


class KNN(_Detector):
    """Score = −(Euclidean distance to the k-th nearest row of the fit).

    Reference: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, on
    L2-normalised embeddings, whose distance √(2 − 2·cosine) has the order of the cosine distance. The search
    is scikit-learn's.

    Parameters
    ----------
    k
        which neighbour; at most the number of rows of the fit
    normalize
        whether embeddings are L2-normalised first
    chunk_size
        rows to score at a time: chunk_size × k neighbours are held
    contamination
        share of the fit that ``predict`` calls outliers, in (0, 0.5]. A row of the fit is its own nearest
        neighbour, so that with a small ``k`` a larger share of new rows is

    Examples
    --------
    >>> KNN(k=1, normalize=False).fit([[0.0, 0.0], [4.0, 0.0]]).score_samples([[0.0, 3.0]])
    array([-3.])
    """

    def __init__(
        self, k: int = 50, *, normalize: bool = True, chunk_size: int = 4096, contamination: float = 0.1
    ) -> None:
        self.k = k
        self.normalize = normalize
        self.chunk_size = chunk_size
        self.contamination = contamination

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        if not 1 <= self.k <= len(rows):
            raise ConfigError(f"KNN: k is {self.k} with {_counted(len(rows))} to fit: use 1 to {len(rows)}")
        if self.chunk_size < 1:
            raise ConfigError(f"KNN: chunk_size is {self.chunk_size}: use at least 1")
        bank = self._directions(rows)
        # distances do not depend on the origin, and their rounding does
        self._centre = bank.mean(0)
        self._bank = bank - self._centre
        self._search = NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(self._bank)

    def leave_one_out(self) -> npt.NDArray[np.float64]:
        """Return the score (N,) of each row of the fit among the others.

        Raises
        ------
        NotFittedError
            before ``fit``
        ConfigError
            for k above the number of the others
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("KNN is not fitted: call fit(embeddings) first")
        if self.k >= len(self._bank):
            others = len(self._bank) - 1
            raise ConfigError(f"KNN: k is {self.k}, and a row of the fit has {others} others: fit more rows")
        kth = self._search.kneighbors(return_distance=False)[:, -1]  # without queries, no row is its own
        scores: _Matrix = -np.linalg.norm(self._bank - self._bank[kth], axis=1)
        return scores

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        queries = self._directions(rows) - self._centre
        scores = np.empty(len(queries))
        for of in gen_batches(len(queries), self.chunk_size):
            kth = self._search.kneighbors(queries[of], return_distance=False)[:, -1]
            # from the difference itself: the search's own distance loses small ones to cancellation
            scores[of] = -np.linalg.norm(queries[of] - self._bank[kth], axis=1)
        return scores

    def _directions(self, rows: _Matrix) -> _Matrix:
        if not self.normalize:
            return rows
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1.0)


class Mahalanobis(_Detector):
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

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        rows, codes = rows[codes >= 0], codes[codes >= 0]
        n, dim = rows.shape
        counts = np.bincount(codes)
        means = np.zeros((len(counts), dim))
        np.add.at(means, codes, rows)
        means /= counts[:, None]
        residuals = rows - means[codes]
        covariance = self._covariance(residuals, n_classes=len(counts))
        eigenvalues, vectors = np.linalg.eigh(covariance)
        eps = np.finfo(np.float64).eps
        # the mean of n equal numbers may miss them by rounding of this size
        if eigenvalues[-1] <= (n * eps * np.abs(rows).max()) ** 2:
            raise DataError(
                f"Mahalanobis: the {_counted(n)} to fit do not vary: the encoder collapsed, train it anew"
            )
        if eigenvalues[0] <= dim * eps * eigenvalues[-1]:
            raise ConfigError(
                f"Mahalanobis: the covariance of these {n} embeddings is singular (constant or "
                "dependent features): use shrinkage='ledoit-wolf', or drop those features"
            )
        self._whitening = vectors / np.sqrt(eigenvalues)
        self._origin = means[0]
        self._means = (means - self._origin) @ self._whitening

    def _covariance(self, residuals: _Matrix, n_classes: int) -> _Matrix:
        n, dim = residuals.shape
        shrinkage = self.shrinkage
        if shrinkage == "ledoit-wolf":
            covariance: _Matrix = ledoit_wolf(residuals, assume_centered=True)[0]
            return covariance
        if isinstance(shrinkage, str) or (shrinkage is not None and not 0 <= shrinkage <= 1):
            raise ConfigError(
                f"Mahalanobis: shrinkage is {shrinkage!r}: use None, a number from 0 to 1, or 'ledoit-wolf'"
            )
        if not shrinkage and n - n_classes < dim:
            means = "their mean" if n_classes == 1 else f"their {n_classes} class means"
            raise ConfigError(
                f"Mahalanobis: {_counted(n)} around {means} give no covariance in {dim} dimensions: "
                f"fit on at least {dim + n_classes} rows, or use shrinkage='ledoit-wolf'"
            )
        sample: _Matrix = residuals.T @ residuals / n
        alpha = shrinkage or 0.0
        shrunk: _Matrix = (1 - alpha) * sample + alpha * np.trace(sample) / dim * np.eye(dim)
        return shrunk

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        whitened = (rows - self._origin) @ self._whitening
        scores = np.full(len(rows), -np.inf)
        for mean in self._means:
            np.maximum(scores, -np.square(whitened - mean).sum(1), out=scores)
        return scores


class GaussianMixture(_Detector):
    """Score = log-density under a mixture of Gaussians, fitted by scikit-learn's EM.

    Parameters
    ----------
    n_components
        at most the number of rows of the fit
    covariance_type
        "full", "tied", "diag" or "spherical"
    reg_covar
        added to the diagonal of every covariance; with few rows and many dimensions raise it, or use "diag"
    seed
        of the k-means start
    contamination
        share of the fit that ``predict`` calls outliers, in (0, 0.5]
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        reg_covar: float = 1e-6,
        seed: int = 0,
        contamination: float = 0.1,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.seed = seed
        self.contamination = contamination

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        if len(rows) < 2:
            raise DataError("GaussianMixture needs at least 2 embeddings to fit and got 1 sample: give more")
        if not 1 <= self.n_components <= len(rows):
            raise ConfigError(
                f"GaussianMixture: n_components is {self.n_components} with {_counted(len(rows))} to fit: "
                f"use 1 to {len(rows)}"
            )
        mixture = SklearnGaussianMixture(
            self.n_components,
            covariance_type=self.covariance_type,
            reg_covar=self.reg_covar,
            random_state=self.seed,
        )
        try:
            self._mixture = mixture.fit(rows)
        except ValueError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"GaussianMixture cannot be fitted: {reason}; try fewer components, a larger reg_covar, "
                "or covariance_type='diag'"
            ) from error

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        return np.asarray(self._mixture.score_samples(rows), dtype=np.float64)
