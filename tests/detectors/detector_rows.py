"""Rows that detectors are fitted to and asked about, and the detectors that keep one contract."""

import numpy as np
import pytest

from probjepa.detectors import KNN, GaussianMixture, Mahalanobis

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(5, 5))
FIT, TEST, AWAY = (RNG.normal(shift, 1, (n, 5)) @ MIXING for n, shift in ((400, 0), (150, 0), (150, 2)))
DETECTORS = [
    KNN(k=5),
    KNN(k=3, normalize=False),
    Mahalanobis(),
    Mahalanobis(shrinkage="ledoit-wolf"),
    GaussianMixture(n_components=2),
]
every_detector = pytest.mark.parametrize("detector", DETECTORS, ids=repr)
