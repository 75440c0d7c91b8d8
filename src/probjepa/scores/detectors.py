"""Scores of embeddings by a detector that is fitted to a reference set: any encoder has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from probjepa.scores.base import Features, Score

if TYPE_CHECKING:
    from probjepa.scores.base import Values


class Detector(Score):
    """A detector in scikit-learn's manner: ``fit(h)``, ``score_samples(h)``, higher = more typical.

    ``kind`` makes one; it is given the seed if it takes ``seed`` or ``random_state``.
    """

    needs = frozenset({"reference"})
    kind: ClassVar[Callable[..., Any]]
    detector: Any = None

    def make(self, count: int) -> Any:
        """Return an unfitted detector for ``count`` rows."""
        from probjepa.draws import sklearn_seed  # with torch, which the table of scores does without

        known = inspect.signature(self.kind).parameters
        seeds = {"seed": self.seed, "random_state": sklearn_seed(self.seed)}
        return self.kind(**{name: seed for name, seed in seeds.items() if name in known})

    def fit(self, reference: Features) -> Self:
        """Fit to the embeddings of a reference set."""
        import numpy as np

        from probjepa.data.overlap import FittedRows

        known = np.asanyarray(reference["h"])  # a map of a file stays one
        self.detector = self.make(len(known)).fit(known)
        self.fitted_rows = FittedRows(known)
        return self

    def score(self, features: Features) -> Values:
        """Return the detector's score (N,).

        Raises
        ------
        DataError
            if any input has the embedding of a reference row, which different inputs may
        """
        import numpy as np

        if self.detector is None:
            raise self.unfitted()
        h = np.asanyarray(features["h"])
        self.fitted_rows.refuse(type(self.detector).__name__, h)
        return np.asarray(self.detector.score_samples(h), dtype=np.float64)


def knn_neighbour(count: int) -> int:
    """Return which neighbour the kNN detector takes for ``count`` rows: 0.1 % of them, at least 1.

    The share that Sun et al. (2022) use for CIFAR-10 (50 of 50,000) and ImageNet (1,000 of 1.28 million).
    """
    return max(1, round(count / 1000))


class KNNScore(Detector):
    """Negative distance to the k-th nearest embedding, by ``detectors.KNN``."""

    name = "knn"
    summary = "negative distance to the k-th nearest reference embedding, k = 0.1 % of the set"
    paper = "https://arxiv.org/abs/2204.06507"

    def make(self, count: int) -> Any:
        """Return the detector with k for ``count`` rows."""
        from probjepa.detectors import KNN

        return KNN(knn_neighbour(count))

    def left_out(self) -> Values:
        """Return the score of each row of the reference among the others."""
        values: Values = self.detector.leave_one_out()
        return values


class MahalanobisScore(Detector):
    """Negative squared Mahalanobis distance, by ``detectors.Mahalanobis``."""

    name = "mahalanobis"
    summary = "negative squared Mahalanobis distance, Ledoit-Wolf covariance"
    paper = "https://arxiv.org/abs/1807.03888"

    def make(self, count: int) -> Any:
        """Return the detector."""
        from probjepa.detectors import Mahalanobis

        return Mahalanobis(shrinkage="ledoit-wolf")


class MixtureScore(Detector):
    """Log-density under a Gaussian mixture, by ``detectors.GaussianMixture``."""

    name = "gmm"
    summary = "log-density under a Gaussian mixture of 10 diagonal components"

    def make(self, count: int) -> Any:
        """Return the detector: a component for ten rows, 10 at most."""
        from probjepa.detectors import GaussianMixture

        components = min(10, max(1, count // 10))
        return GaussianMixture(n_components=components, covariance_type="diag", seed=self.seed)
