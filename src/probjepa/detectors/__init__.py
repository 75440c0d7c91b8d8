"""Detectors of atypical embeddings, as scikit-learn has outlier detectors.

``score_samples`` is higher for more typical rows. Rows of the fit can be scored, but such scores say nothing
of held-out rows: a row is its own nearest neighbour, and a covariance fitted on fewer rows than dimensions
separates those rows from all others whatever they hold. ``probjepa.data.overlap.refuse_fitted_rows`` finds
them; every score of ``probjepa.scores`` that a detector gives refuses them.

Embeddings larger than memory are a ``numpy.memmap`` of float32 or float64 (``numpy.load(mmap_mode="r")``, or
``probjepa.data.bank.open_bank`` of shards). They are read a block at a time, with the results of an array.
"""

from probjepa.detectors.base import NotFittedError
from probjepa.detectors.knn import KNN
from probjepa.detectors.mahalanobis import Mahalanobis
from probjepa.detectors.mixture import GaussianMixture

__all__ = ["KNN", "GaussianMixture", "Mahalanobis", "NotFittedError"]
