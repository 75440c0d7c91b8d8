"""The Gaussian mixture against SciPy and scikit-learn, of arrays and of mapped files."""

import math
from functools import partial

import numpy as np
import pytest
from detector_rows import AWAY, FIT, RNG, TEST
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture

from probjepa.detectors import GaussianMixture, base, mixture
from probjepa.errors import ConfigError


@pytest.mark.parametrize(("options", "added"), [({}, 1e-6), ({"reg_covar": 0.5}, 0.5)])
def test_gaussian_mixture_of_one_is_scipys_normal(options, added):
    density = stats.multivariate_normal(FIT.mean(0), np.cov(FIT.T, bias=True) + added * np.eye(5))
    found = GaussianMixture(**options).fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(found, density.logpdf(TEST), rtol=1e-9)


def test_gaussian_mixture_is_scikit_learns():
    found = GaussianMixture(3, seed=5).fit(FIT).score_samples(TEST)
    own = SklearnGaussianMixture(3, random_state=5).fit(FIT)
    np.testing.assert_array_equal(found, own.score_samples(TEST))
    assert np.isfinite(GaussianMixture(2).fit(FIT[:2]).score_samples(TEST)).all()


def test_gaussian_mixture_may_have_a_component_a_row():
    rows = np.arange(4.0)[:, None]
    found = GaussianMixture(4).fit(rows).score_samples(rows)
    np.testing.assert_allclose(found, stats.norm(0, 1e-3).logpdf(0) - math.log(4))


def test_gaussian_mixture_finds_two_clusters_and_is_seeded():
    rows = np.concatenate([RNG.normal(-20, 1, (3000, 1)), RNG.normal(20, 2, (1000, 1))])
    at = np.array([[-20.0], [-18.0], [0.0], [20.0]])
    truth = np.logaddexp(
        stats.norm(-20, 1).logpdf(at) + np.log(0.75), stats.norm(20, 2).logpdf(at) + np.log(0.25)
    )
    found = GaussianMixture(2).fit(rows).score_samples(at)
    np.testing.assert_allclose(found[[0, 1, 3]], truth[[0, 1, 3], 0], atol=0.1)
    assert found.argmin() == 2
    several = {seed: GaussianMixture(6, seed=seed).fit(FIT).score_samples(TEST) for seed in (1, 2)}
    np.testing.assert_array_equal(GaussianMixture(6, seed=1).fit(FIT).score_samples(TEST), several[1])
    assert not np.allclose(several[1], several[2])


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_em_over_blocks_is_scikit_learns(kind, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", 35)
    rows, options = np.concatenate([FIT, AWAY, 3 * TEST]), {"covariance_type": kind, "seed": 3}
    expected = GaussianMixture(3, **options).fit(rows).score_samples(TEST)
    for origin in (np.zeros(5), np.array([100, 1e4, 0, -1e4, 3])):  # where scikit-learn's squares lose digits
        found = GaussianMixture(3, **options).fit(mapped(rows + origin)).score_samples(TEST + origin)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_mixture_that_cannot_be_fitted(mapped):
    rows = np.repeat(FIT[:2], 40, 0)
    for kind in ("full", "tied", "diag", "spherical"):
        for given in (rows, mapped(rows)):
            with pytest.raises(ConfigError, match=r"be fitted: \w.*[^.]; try fewer components, a") as error:
                GaussianMixture(2, reg_covar=0.0, covariance_type=kind).fit(given)
            assert "\n" not in str(error.value)


def test_k_means_starts_from_16384_of_the_mapped_rows(mapped, monkeypatch):
    started, fit = [], SklearnGaussianMixture.fit
    monkeypatch.setattr(
        SklearnGaussianMixture, "fit", lambda self, rows: started.append(rows) or fit(self, rows)
    )
    GaussianMixture().fit(mapped(np.arange(20_000, dtype=np.float32)[:, None]))
    (rows,) = started
    assert rows.shape == (16_384, 1) and rows.dtype == np.float64
    assert rows[0] == 0 and rows[-1] == 19_999 and set(np.diff(rows[:, 0])) == {1, 2}


def test_em_that_does_not_converge_says_so_where_it_was_called(mapped, monkeypatch):
    monkeypatch.setattr(mixture, "SklearnGaussianMixture", partial(SklearnGaussianMixture, max_iter=2))
    with pytest.warns(ConvergenceWarning, match="EM did not converge in 2 steps: use fewer") as said:
        found = GaussianMixture(6).fit(mapped(FIT)).score_samples(TEST)
    assert [warning.filename for warning in said] == [__file__]
    with pytest.warns(ConvergenceWarning):
        np.testing.assert_allclose(found, GaussianMixture(6).fit(FIT).score_samples(TEST), rtol=1e-6)


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("scale", [1e80, 1e160, 1e300])
def test_gaussian_mixture_in_a_large_unit(scale, kind, mapped):
    """A density in D dimensions is per unit to the D; ``reg_covar`` is nothing beside such a scale."""
    options = {"n_components": 2, "covariance_type": kind}
    expected = GaussianMixture(reg_covar=0.0, **options).fit(FIT).score_samples(TEST) - 5 * math.log(scale)
    for rows in (FIT * scale, mapped(FIT * scale)):
        found = GaussianMixture(**options).fit(rows).score_samples(TEST * scale)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e-50])
def test_in_a_small_unit_the_variance_is_what_is_added_to_it(scale):
    found = GaussianMixture(reg_covar=1e-6).fit(FIT * scale).score_samples(TEST * scale)
    np.testing.assert_allclose(found, stats.multivariate_normal(np.zeros(5), 1e-6).logpdf(np.zeros(5)))


def test_a_mixture_takes_seeds_that_scikit_learn_does_not():
    found = GaussianMixture(3, seed=2**32 + 5).fit(FIT).score_samples(TEST)
    np.testing.assert_array_equal(found, GaussianMixture(3, seed=5).fit(FIT).score_samples(TEST))
    with pytest.raises(ConfigError, match="the setting seed takes a whole number from 0"):
        GaussianMixture(3, seed=-1).fit(FIT)
