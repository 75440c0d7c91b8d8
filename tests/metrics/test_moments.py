"""Sums over blocks against NumPy and scikit-learn on all rows at once."""

import warnings

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.mixture import GaussianMixture

from probjepa.metrics.moments import Moments, mixture_step

LABELS = np.array(["a", "b", "c"])
CODES = np.random.default_rng(0).integers(3, size=70)
ROWS = np.random.default_rng(1).gamma(2, size=(70, 4)) * [1, 2, 3, 4] + 10 * CODES[:, None] - 25


def moments(rows, codes=None, labels=LABELS, block=9):
    if codes is None:
        codes, labels = np.zeros(len(rows), dtype=int), np.array([""])
    parts = [slice(start, start + block) for start in range(0, len(rows), block)]
    return Moments.of(lambda: ((rows[of], codes[of]) for of in parts), labels, rows.shape[1])


def test_moments_are_numpys():
    found = moments(ROWS, CODES)
    means = np.stack([ROWS[code == CODES].mean(0) for code in range(3)])
    residuals = ROWS - means[CODES]
    lengths = (residuals**2).sum(1)
    assert found.labels.tolist() == ["a", "b", "c"]
    assert found.counts.tolist() == [(code == CODES).sum() for code in range(3)]
    np.testing.assert_allclose(found.means, means)
    np.testing.assert_allclose(found.scatter, residuals.T @ residuals)
    assert found.largest == np.abs(ROWS).max()
    np.testing.assert_allclose(found.third, (lengths[:, None] * residuals).sum(0), rtol=1e-6)
    assert found.fourth == pytest.approx((lengths**2).sum())


@pytest.mark.parametrize("cut", [1, 20, 35])
def test_the_sum_of_two_parts_is_of_all_rows(cut):
    whole, found = moments(ROWS), moments(ROWS[:cut]) + moments(ROWS[cut:])
    assert found.counts.tolist() == [70] and found.largest == whole.largest
    for name in ("means", "scatter", "third", "fourth"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, err_msg=name)


def test_parts_of_classes_are_joined_by_their_labels():
    """The first part has the classes a and c, the second b and c."""
    first = np.flatnonzero((CODES == 0) | ((CODES == 2) & (np.arange(70) < 40)))
    second = np.setdiff1d(np.arange(70), first)
    one = moments(ROWS[first], CODES[first] // 2, LABELS[[0, 2]])
    other = moments(ROWS[second], CODES[second] - 1, LABELS[[1, 2]])
    whole = moments(ROWS, CODES)
    for found in (one + other, other + one):
        assert found.labels.tolist() == ["a", "b", "c"]
        assert found.counts.tolist() == whole.counts.tolist()
        np.testing.assert_allclose(found.means, whole.means)
        np.testing.assert_allclose(found.scatter, whole.scatter)
        assert found.largest == whole.largest
        assert found.third is None and found.fourth is None


@pytest.mark.parametrize("rows", [ROWS, ROWS[:3], ROWS[:, :1], np.full((5, 3), 2.0)], ids=len)
def test_the_shrinkage_is_scikit_learns(rows):
    assert moments(rows).ledoit_wolf() == pytest.approx(ledoit_wolf_shrinkage(rows))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-100, 1e80, 1e160, 1e306])
def test_the_shrinkage_has_no_unit(scale):
    assert moments(ROWS * scale).ledoit_wolf() == pytest.approx(ledoit_wolf_shrinkage(ROWS))


@pytest.mark.parametrize("scale", [1e-60, 1e39, 1e200])
def test_parts_of_different_units_are_of_all_rows(scale):
    """The unit of the sum is that of the larger part."""
    rows = ROWS * np.where(np.arange(70) < 30, 1, scale)[:, None]
    for found in (moments(rows[:30]) + moments(rows[30:]), moments(rows[30:]) + moments(rows[:30])):
        whole = moments(rows)
        assert found.unit == whole.unit and found.largest == pytest.approx(whole.largest)
        for name in ("means", "scatter", "third", "fourth"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_step_is_scikit_learns(kind):
    """Two steps from k-means: the density before each, and all that the step leaves."""
    options = {"covariance_type": kind, "reg_covar": 0.01, "random_state": 0, "tol": 0.0}
    found = GaussianMixture(3, max_iter=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.fit(ROWS)
        expected = [GaussianMixture(3, max_iter=steps, **options).fit(ROWS) for steps in (1, 2)]
    for after in expected:
        before = found.score(ROWS)
        density = mixture_step(found, (ROWS[of : of + 9] for of in range(0, 70, 9)), ROWS[:20].mean(0))
        assert density == pytest.approx(before)
        for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
            wanted = getattr(after, name)
            np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_covariance_that_is_not_positive_definite_is_refused(kind):
    mixture = GaussianMixture(1, covariance_type=kind).fit(ROWS)
    mixture.reg_covar = 0.0
    with pytest.raises(ValueError, match="not positive definite"):
        mixture_step(mixture, [np.ones((8, 4))], np.ones(4))
