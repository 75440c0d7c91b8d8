"""The Mahalanobis detector against SciPy and scikit-learn."""

import math

import numpy as np
import pandas as pd
import pytest
from detector_rows import FIT, TEST
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf, ShrunkCovariance

from probjepa.detectors import KNN, Mahalanobis
from probjepa.errors import ConfigError, DataError


def test_mahalanobis_is_scipys_distance():
    covariance = np.cov(FIT.T, bias=True)
    expected = -(
        cdist(TEST, FIT.mean(0, keepdims=True), "mahalanobis", VI=np.linalg.inv(covariance))[:, 0] ** 2
    )
    np.testing.assert_allclose(Mahalanobis().fit(FIT).score_samples(TEST), expected, rtol=1e-9)
    # the score does not depend on the units or the origin of the features
    moved = [rows * [1, 10, 1e3, 1e-3, 1] + 1e3 for rows in (FIT, TEST)]
    np.testing.assert_allclose(Mahalanobis().fit(moved[0]).score_samples(moved[1]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shrinkage", "oracle"),
    [
        (0.3, ShrunkCovariance(shrinkage=0.3)),
        (1.0, ShrunkCovariance(shrinkage=1.0)),
        ("ledoit-wolf", LedoitWolf()),
    ],
)
@pytest.mark.parametrize("n", [4, 400])
def test_mahalanobis_shrinkage_is_scikit_learns(shrinkage, oracle, n):
    expected = -oracle.fit(FIT[:n]).mahalanobis(TEST)
    found = Mahalanobis(shrinkage=shrinkage).fit(FIT[:n]).score_samples(TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_mahalanobis_with_labels_ties_the_covariance():
    labels = np.array(["a", "b", "c"])[np.arange(400) % 3]
    rows = FIT + 10 * (labels == "b")[:, None] - 5 * (labels == "c")[:, None]
    means = np.stack([rows[labels == name].mean(0) for name in "abc"])
    pooled = sum((labels == name).mean() * np.cov(rows[labels == name].T, bias=True) for name in "abc")
    expected = -(cdist(TEST, means, "mahalanobis", VI=np.linalg.inv(pooled)).min(1) ** 2)
    np.testing.assert_allclose(Mahalanobis().fit(rows, labels).score_samples(TEST), expected, rtol=1e-9)


@pytest.mark.parametrize("none", [-1, None, math.nan])
def test_mahalanobis_leaves_rows_in_no_class_out(none):
    known = np.arange(400) % 4 < 3
    labels = np.array([0, 1, 2, none], dtype=object)[np.arange(400) % 4]
    rows = FIT + 10 * np.eye(5)[np.arange(400) % 4]
    expected = Mahalanobis().fit(rows[known], labels[known].astype(int)).score_samples(TEST)
    for found in (Mahalanobis().fit(rows, labels), Mahalanobis().partial_fit(rows, labels)):
        np.testing.assert_allclose(found.score_samples(TEST), expected, rtol=1e-10)


def test_mahalanobis_makes_its_covariance_once(monkeypatch):
    made, settle = [], Mahalanobis._settle
    monkeypatch.setattr(Mahalanobis, "_settle", lambda *given: made.append(1) or settle(*given))
    for fit, before in ((Mahalanobis().partial_fit, 0), (Mahalanobis().fit, 1)):
        detector = fit(FIT)
        assert len(made) == before
        for _ in range(2):
            detector.score_samples(TEST)
        assert len(made) == 1
        made.clear()


@pytest.mark.parametrize("classes", [1, 3])
def test_mahalanobis_needs_more_rows_than_dimensions(classes):
    enough = 5 + classes
    labels = np.arange(enough) % classes
    Mahalanobis().fit(FIT[:enough], labels)
    for shrinkage in (None, 0.0):
        means = "their mean" if classes == 1 else "their 3 class means"
        with pytest.raises(
            ConfigError,
            match=rf"{enough - 1} embeddings around {means} give .* at least {enough} rows, or use shrinkage=",
        ) as error:
            Mahalanobis(shrinkage).fit(FIT[: enough - 1], labels[:-1])
        assert "\n" not in str(error.value)
    Mahalanobis("ledoit-wolf").fit(FIT[: enough - 1], labels[:-1])


def test_mahalanobis_refuses_a_singular_covariance():
    twice = np.concatenate([FIT, FIT[:, :1]], axis=1)
    with pytest.raises(ConfigError, match="singular"):
        Mahalanobis().fit(twice)
    for shrinkage in (None, 0.5, "ledoit-wolf"):
        for shape, value in (((10, 3), 0.1), ((10, 1), 0.0), ((1000, 3), 1e6 / 3)):
            with pytest.raises(DataError, match="do not vary"):
                Mahalanobis(shrinkage).fit(np.full(shape, value))
    # rows on a line vary; features of very different sizes hide the zero in rounding
    for seed in range(6):
        large, small = np.random.default_rng(seed).normal(size=(2, 50))
        for columns in ((large, 2 * large, 3 * large), (1e6 * large, 1e6 * large, small)):
            with pytest.raises(ConfigError, match="singular"):
                Mahalanobis().fit(np.stack(columns, 1))
    assert np.isfinite(Mahalanobis(0.1).fit(twice).score_samples(twice + 1)).all()


def test_mahalanobis_of_rows_that_hardly_vary():
    """Neither the size of the numbers nor that of their differences matters, down to rounding."""
    expected = Mahalanobis().fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(Mahalanobis().fit(1e-6 * FIT).score_samples(1e-6 * TEST), expected, rtol=1e-8)
    found = Mahalanobis().fit(1 + 1e-10 * FIT).score_samples(1 + 1e-10 * TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shrinkage", [None, 0.3, "ledoit-wolf"])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-100, 1e80, 1e160, 1e300])
def test_mahalanobis_has_no_unit(scale, shrinkage):
    expected, found = Mahalanobis(shrinkage).fit(FIT), Mahalanobis(shrinkage).fit(FIT * scale)
    np.testing.assert_allclose(found.score_samples(TEST * scale), expected.score_samples(TEST), rtol=1e-9)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-9)
    parts = Mahalanobis(shrinkage).partial_fit(FIT[:200] * scale).partial_fit(FIT[200:] * scale)
    np.testing.assert_allclose(parts.score_samples(TEST * scale), expected.score_samples(TEST), rtol=1e-9)
    with pytest.raises(DataError, match="do not vary"):
        Mahalanobis(shrinkage).fit(np.full((9, 2), scale))


@pytest.mark.filterwarnings("error")
def test_a_row_too_far_for_float64_has_the_lowest_score():
    detector = Mahalanobis().fit(FIT)
    for far in (1e160, 1e307):
        assert detector.score_samples(FIT[:3] * far).tolist() == [-np.inf] * 3


def test_mahalanobis_says_what_helps():
    with pytest.raises(DataError, match="the 1 sample to fit do not vary: give more"):
        Mahalanobis("ledoit-wolf").fit(FIT[:1])
    pair = np.array([[0.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ConfigError, match=r"singular .*: use shrinkage='ledoit-wolf'"):
        Mahalanobis(0.0).fit(np.concatenate([pair, pair]))
    with pytest.raises(ConfigError, match=r"singular .*: give more different rows"):
        Mahalanobis("ledoit-wolf").fit(np.concatenate([pair, pair]))


def test_mahalanobis_in_parts_takes_what_fit_takes():
    with pytest.raises(ConfigError, match="the setting contamination takes a number"):
        Mahalanobis(contamination="x").partial_fit(FIT)
    with pytest.raises(ConfigError, match="merge takes another Mahalanobis, got a KNN"):
        Mahalanobis().fit(FIT).merge(KNN().fit(FIT))


def test_a_merge_is_of_the_same_columns_in_the_same_order():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    half = Mahalanobis().fit(frame[:30])
    with pytest.raises(DataError, match="other feature names, or in another order"):
        half.merge(Mahalanobis().fit(frame[30:][["b", "a"]]))
    new = Mahalanobis()
    with pytest.raises(DataError, match="labels"):
        new.partial_fit(frame[["b", "a"]], np.zeros(7))
    assert not hasattr(new, "feature_names_in_")  # of nothing that it has seen
    whole = new.merge(half).merge(Mahalanobis().fit(frame[30:]))
    assert whole.feature_names_in_.tolist() == ["a", "b"]
    np.testing.assert_allclose(
        whole.score_samples(frame), Mahalanobis().fit(frame).score_samples(frame), rtol=1e-9
    )
