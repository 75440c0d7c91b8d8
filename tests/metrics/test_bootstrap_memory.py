"""Every bootstrap draws one resample at a time: its memory is a few copies of the values."""

import tracemalloc

import numpy as np
import pytest

from probjepa import metrics

VALUES = np.random.default_rng(0).normal(size=200_000)


def interval(rows, n_bootstrap):
    return metrics.bootstrap_interval(VALUES[:rows], n_bootstrap=n_bootstrap)


def detection(rows, n_bootstrap):
    return metrics.ood_metrics(VALUES[:rows] + 1, VALUES[-rows:], n_bootstrap=n_bootstrap)


def geometry(rows, n_bootstrap):
    means = np.stack([VALUES[:rows], VALUES[-rows:]], 1)
    return metrics.uncertainty_geometry(
        means, VALUES[:rows] > 0, {"radius": VALUES[:rows] ** 2}, n_bootstrap=n_bootstrap
    )


def peak(bootstrap, rows, n_bootstrap):
    tracemalloc.start()
    try:
        bootstrap(rows, n_bootstrap)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bootstrap", [interval, detection, geometry])
def test_memory_does_not_grow_with_the_number_of_resamples(bootstrap):
    # of a million rows, five times that: 200 MB
    assert peak(bootstrap, 200_000, 1) < 40e6
    bootstrap(10_000, 1)  # what is imported and kept on first use is not counted
    few, many = peak(bootstrap, 10_000, 2), peak(bootstrap, 10_000, 200)
    # what stays of a resample is five floats at most
    assert many - few < 200 * 5 * 8 + 2 * 10_000 * 8
