"""Detectors of rows in a mapped file: an array in all but memory."""

import pickle
import tracemalloc

import numpy as np
import pytest
from detector_rows import FIT, TEST, every_detector
from sklearn.base import clone

from probjepa.detectors import KNN, GaussianMixture, base, mixture
from probjepa.errors import DataError


@every_detector
@pytest.mark.parametrize("block", [350, 10**6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mapped_file_is_an_array(detector, block, dtype, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", block)  # 70 rows, or all
    rows, queries = FIT.astype(dtype), TEST.astype(dtype)
    # the squares of a mixture are summed around another point
    tolerance = 1e-9 if isinstance(detector, GaussianMixture) else 0
    twin, whole = clone(detector).fit(mapped(rows)), clone(detector).fit(rows)
    for asked in (queries, mapped(queries)):
        np.testing.assert_allclose(twin.score_samples(asked), whole.score_samples(queries), rtol=tolerance)
    assert twin.offset_ == pytest.approx(whole.offset_, rel=tolerance) and twin.n_features_in_ == 5
    if isinstance(detector, KNN):
        np.testing.assert_array_equal(twin.leave_one_out(), whole.leave_one_out())
    copied = pickle.loads(pickle.dumps(twin)).score_samples(queries)
    np.testing.assert_allclose(copied, twin.score_samples(queries), rtol=1e-9)
    # blocks are a matter of memory alone
    monkeypatch.setattr(base, "_BLOCK", 2**22)
    again = clone(detector).fit(rows).score_samples(queries)
    np.testing.assert_allclose(twin.score_samples(queries), again, rtol=1e-6 if dtype == np.float32 else 1e-9)


@every_detector
def test_a_mapped_file_is_checked(detector, mapped):
    holes = np.where(np.arange(400)[:, None] < 7, np.nan, FIT)
    for message, call in {
        "to fit has NaN or Inf in 7 of 400 rows": lambda: clone(detector).fit(mapped(holes)),
        r"give one row a sample, \(N, D\)": lambda: clone(detector).fit(mapped(FIT)[0]),
        "expecting 5 features as input: embed": lambda: (
            clone(detector).fit(FIT).score_samples(mapped(TEST)[:, :4])
        ),
    }.items():
        with pytest.raises(DataError, match=message):
            call()


@every_detector
def test_memory_does_not_grow_with_a_mapped_file(detector, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", 2**14)
    monkeypatch.setattr(mixture, "_START_ROWS", 2000)
    rows = np.random.default_rng(0).normal(size=(40_000, 16)).astype(np.float32)
    file = mapped(rows)
    clone(detector).fit(rows[:100]).score_samples(rows[:10])
    tracemalloc.start()
    clone(detector).fit(file).score_samples(rows[:64])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000 * 16 * 8 / 3
