"""The kNN detector against brute force."""

import warnings

import numpy as np
import pytest
from detector_rows import FIT, TEST
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError

from probjepa.detectors import KNN, base
from probjepa.errors import ConfigError


@pytest.mark.parametrize("k", [1, 4, 400])
@pytest.mark.parametrize("chunk_size", [11, 160, 4096])
@pytest.mark.parametrize("normalize", [True, False])
def test_knn_is_the_distance_to_the_kth_neighbour(k, chunk_size, normalize):
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows for rows in (TEST, FIT)]
    expected = -np.sort(cdist(*unit), axis=1)[:, k - 1]
    found = KNN(k, normalize=normalize, chunk_size=chunk_size).fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 5, 350, 400])
def test_knn_looks_through_blocks_that_hold_fewer_rows_than_k(k, monkeypatch):
    expected = KNN(k).fit(FIT).score_samples(TEST[:6])
    for rows, chunk_size in ((300, 40), (300, 4096), (130, 4096)):  # the last block has 100 rows, or 10
        monkeypatch.setattr(base, "_BLOCK", rows * 5)
        found = KNN(k, chunk_size=chunk_size).fit(FIT).score_samples(TEST[:6])
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_row_of_zeros_has_no_direction():
    """It stays where it is, at distance 1 of all others."""
    rows = np.concatenate([np.zeros((1, 5)), 1e-3 * FIT])
    np.testing.assert_allclose(KNN(1).fit(rows[1:]).score_samples(rows[:1]), -1)
    np.testing.assert_allclose(KNN(1).fit(rows).score_samples(rows[:1]), 0)


@pytest.mark.parametrize("k", [1, 3, 29])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk_size", [7, 4096])
def test_knn_leaves_each_row_of_the_fit_out(k, normalize, chunk_size):
    rows = np.random.default_rng(0).normal(size=(30, 4))
    rows[7] = rows[3]  # a copy is another row
    found = KNN(k, normalize=normalize, chunk_size=chunk_size).fit(rows).leave_one_out()
    for row in range(30):
        others = KNN(k, normalize=normalize).fit(np.delete(rows, row, 0))
        np.testing.assert_allclose(found[row], others.score_samples(rows[[row]])[0], atol=1e-12)
    with pytest.raises(ConfigError, match="30, and a row of the fit has 29 others"):
        KNN(30).fit(rows).leave_one_out()
    with pytest.raises(NotFittedError):
        KNN(30).leave_one_out()


def test_a_row_is_told_from_one_that_is_nearer_than_the_search_can_tell():
    """Of two rows 2·10⁻⁹ apart each is as likely to be found first."""
    rows = np.random.default_rng(0).normal(size=(20, 4))
    pairs = np.concatenate([rows, rows + 1e-9])
    for chunk_size in (7, 4096):
        found = KNN(1, normalize=False, chunk_size=chunk_size).fit(pairs).leave_one_out()
        np.testing.assert_allclose(found, -2e-9, rtol=1e-6)


def test_knn_keeps_tiny_distances_far_from_the_origin():
    steps = np.arange(1, 6)[:, None] * 1e-4
    bank = np.concatenate([1e6 + steps, 1e6 - steps], axis=0).repeat(3, axis=1)
    found = KNN(k=2, normalize=False).fit(bank).score_samples(np.full((1, 3), 1e6))
    assert found.item() == pytest.approx(-1e-4 * np.sqrt(3), rel=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e160, 1e306])
def test_knn_in_any_unit(scale, normalize, mapped):
    expected, unit = KNN(3, normalize=normalize).fit(FIT), 1.0 if normalize else scale
    for rows in (FIT * scale, mapped(FIT * scale)):
        found = KNN(3, normalize=normalize).fit(rows)
        np.testing.assert_allclose(
            found.score_samples(TEST * scale) / unit, expected.score_samples(TEST), rtol=1e-9
        )
        assert found.offset_ / unit == pytest.approx(expected.offset_, rel=1e-9)
        np.testing.assert_allclose(found.leave_one_out() / unit, expected.leave_one_out(), rtol=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-200, 1.0])
def test_knn_of_a_row_far_from_the_fit_is_its_distance(scale):
    """Whichever row of the fit is found, the distance is the same to all digits."""
    found = KNN(3, normalize=False).fit(FIT * scale).score_samples(TEST * 1e200)
    np.testing.assert_allclose(found, -1e200 * np.linalg.norm(TEST, axis=1))


@pytest.mark.parametrize("k", [0, len(FIT) + 1])
def test_a_k_that_is_set_after_the_fit_is_checked(k):
    detector = KNN(5).fit(FIT)
    with pytest.raises(ConfigError, match=f"KNN: k is {k}"):
        detector.set_params(k=k).score_samples(TEST)
    expected = KNN(7).fit(FIT).score_samples(TEST)
    np.testing.assert_array_equal(detector.set_params(k=7).score_samples(TEST), expected)


@pytest.mark.parametrize("size", [1.7e308, 1e308, 4e307, 1e301])
def test_the_largest_numbers_are_told_apart(size):
    rows = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.9]])
    plain, large = (KNN(1, normalize=False).fit(rows * of) for of in (1.0, size))
    queries = np.array([[1.0, -0.9], [-1.0, 1.0], [0.9, 0.9]])
    np.testing.assert_allclose(large.score_samples(queries * size), plain.score_samples(queries) * size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = KNN(2, normalize=False).fit(rows * size)
        assert np.isfinite(detector.decision_function(rows * size)).all()
    far = detector.leave_one_out()
    with np.errstate(over="ignore"):  # farther than any number: the largest
        expected = KNN(2, normalize=False).fit(rows).leave_one_out() * size
    np.testing.assert_allclose(far, np.maximum(expected, np.finfo(float).min))
