"""Detectors of atypical embeddings in scikit-learn's manner: ``fit``, ``score_samples`` (higher = typical).

All of them refuse to score a row that they were fitted on: it is its own nearest neighbour, and a covariance
fitted on fewer rows than dimensions separates those rows from all others whatever they hold, so such an
evaluation reports an AUROC of 1 for any encoder.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture

from probjepa._arrays import ArrayInput, as_features, as_labels, fingerprints, iter_top_k
from probjepa.errors import ConfigError, DataError

__all__ = ["KNN", "GaussianMixture", "Mahalanobis"]

_Matrix = npt.NDArray[np.float64]


def _fingerprints(rows: _Matrix) -> npt.NDArray[np.uint64]:
    return fingerprints(rows + 0.0)  # -0.0 becomes 0.0


class _Detector(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The contract of all detectors; a sub-class gives ``_fit`` and ``_score`` on checked float64 rows."""

    def fit(self, embeddings: ArrayInput, labels: ArrayInput | None = None) -> Self:
        """Fit to typical embeddings (N, D); ``labels`` (N,) are used by ``Mahalanobis`` alone.

        Raises
        ------
        DataError
            for embeddings that are no (N, D), or hold NaN or Inf (counted), or for labels that do not match
        ConfigError
            for a setting out of its range, or one that these embeddings do not allow
        """
        rows = as_features(embeddings, "the embeddings to fit").double().cpu().numpy()
        codes = np.zeros(len(rows), dtype=np.int64)
        if labels is not None:
            codes = np.unique(as_labels(labels, "the labels", rows=len(rows)), return_inverse=True)[1]
        self._fit(rows, codes)
        self.n_features_in_ = rows.shape[1]
        self._fitted_on = np.unique(_fingerprints(rows))
        return self

    def score_samples(self, embeddings: ArrayInput) -> npt.NDArray[np.float64]:
        """Return a score (N,) for each embedding (N, D): higher = more typical.

        Raises
        ------
        DataError
            for embeddings that are no (N, D), of another width or with NaN or Inf (counted), or if any row is
            one that the detector was fitted on (counted; ``was_fitted_on`` gives the mask)
        ConfigError
            before ``fit``
        """
        rows = self._checked(embeddings)
        seen = int(np.isin(_fingerprints(rows), self._fitted_on).sum())
        if seen:
            raise DataError(
                f"{seen} of {len(rows)} embeddings to score are among those that {type(self).__name__} was "
                "fitted on: score held-out rows, or drop the ones that was_fitted_on(embeddings) marks"
            )
        return self._score(rows)

    def was_fitted_on(self, embeddings: ArrayInput) -> npt.NDArray[np.bool_]:
        """Return a mask (N,) of the embeddings (N, D) that equal, bit for bit, a row of the fit.

        Raises
        ------
        DataError, ConfigError
            as ``score_samples``
        """
        return np.isin(_fingerprints(self._checked(embeddings)), self._fitted_on)

    def _checked(self, embeddings: ArrayInput) -> _Matrix:
        if not hasattr(self, "n_features_in_"):
            raise ConfigError(f"{type(self).__name__} is not fitted: call fit(embeddings) first")
        rows: _Matrix = as_features(embeddings, "the embeddings to score").double().cpu().numpy()
        if rows.shape[1] != self.n_features_in_:
            raise DataError(
                f"the embeddings to score are {rows.shape[1]}-dimensional and {type(self).__name__} was "
                f"fitted on {self.n_features_in_} dimensions: embed both with the same encoder"
            )
        return rows

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        raise NotImplementedError


class KNN(_Detector):
    """Score = −(Euclidean distance to the k-th nearest row of the fit).

    Reference: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, on
    L2-normalised embeddings, whose distance √(2 − 2·cosine) has the order of the cosine distance.

    Parameters
    ----------
    k
        which neighbour; at most the number of rows of the fit
    normalize
        whether embeddings are L2-normalised first
    chunk_size
        rows of a block: at most chunk_size² similarities are held at a time

    >>> KNN(k=1, normalize=False).fit([[0.0, 0.0], [4.0, 0.0]]).score_samples([[0.0, 3.0]])
    array([-3.])
    """

    def __init__(self, k: int = 50, *, normalize: bool = True, chunk_size: int = 4096) -> None:
        self.k = k
        self.normalize = normalize
        self.chunk_size = chunk_size

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        if not 1 <= self.k <= len(rows):
            raise ConfigError(f"KNN: k is {self.k} with {len(rows)} embeddings to fit: use 1 to {len(rows)}")
        if self.chunk_size < 1:
            raise ConfigError(f"KNN: chunk_size is {self.chunk_size}: use at least 1")
        bank = self._directions(rows)
        # distances do not depend on the origin, and their rounding does
        self._centre = bank.mean(0)
        self._bank = bank - self._centre

    def _score(self, rows: _Matrix) -> npt.NDArray[np.float64]:
        queries, bank = torch.from_numpy(self._directions(rows) - self._centre), torch.from_numpy(self._bank)
        half_squares = 0.5 * bank.square().sum(1)

        def similarity(of: slice, to: slice) -> torch.Tensor:
            # ½(‖q‖² − ‖q − b‖²): falls with the distance
            return queries[of] @ bank[to].T - half_squares[to]

        scores = torch.empty(len(queries), dtype=torch.float64)
        for of, _, nearest in iter_top_k(similarity, len(queries), len(bank), self.k, self.chunk_size):
            # from the difference itself: the similarity above loses small distances to cancellation
            scores[of] = -torch.linalg.vector_norm(queries[of] - bank[nearest[:, -1]], dim=1)
        return scores.numpy()

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
    """

    def __init__(self, shrinkage: float | Literal["ledoit-wolf"] | None = None) -> None:
        self.shrinkage = shrinkage

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
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
                f"Mahalanobis: the {n} embeddings to fit do not vary: the encoder collapsed, train it anew"
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
                f"Mahalanobis: {n} embeddings around {means} give no covariance in {dim} dimensions: "
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
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        reg_covar: float = 1e-6,
        seed: int = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.seed = seed

    def _fit(self, rows: _Matrix, codes: npt.NDArray[np.int64]) -> None:
        if len(rows) < 2:
            raise DataError("GaussianMixture needs at least 2 embeddings to fit and got 1: give more")
        if not 1 <= self.n_components <= len(rows):
            raise ConfigError(
                f"GaussianMixture: n_components is {self.n_components} with {len(rows)} embeddings to fit: "
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
