"""Uncertainty geometry against loops over the definitions and SciPy's rank correlation."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from probjepa.errors import ConfigError, DataError
from probjepa.metrics import uncertainty_geometry


def clusters(n=60, dim=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return rng.normal(size=(classes, dim))[labels] * 2 + rng.normal(size=(n, dim)), labels


def by_hand(mean, labels):
    x = [row / np.sqrt(sum(v * v for v in row)) for row in mean]
    centroid = {
        c: np.mean([r for r, k in zip(x, labels, strict=True) if k == c], axis=0) for c in set(labels)
    }
    margin, radius = [], []
    for row, own in zip(x, labels, strict=True):
        distance = {c: np.sqrt(sum((row - centre) ** 2)) for c, centre in centroid.items()}
        radius.append(distance.pop(own))
        margin.append(min(distance.values()) - radius[-1])
    return np.array(margin), np.array(radius)


def test_everything_agrees_with_loops_and_scipy():
    mean, labels = clusters()
    margin, radius = by_hand(mean, labels)
    rng = np.random.default_rng(1)
    measures = {
        "falls": -margin + 0.3 * rng.normal(size=60),
        "tied": rng.integers(3, size=60),
        "exactly the margin": margin,
    }
    found = uncertainty_geometry(mean, labels, measures, n_bootstrap=200)

    assert found["classes"] == 4
    assert found["margin"] == pytest.approx(
        {"mean": margin.mean(), "std": margin.std(), "negative": np.mean(margin < 0)}
    )
    assert 0 < found["margin"]["negative"] < 1
    thirds = np.argsort(margin)
    for name, values in measures.items():
        for place, against in (("margin", margin), ("radius", radius)):
            rho = found["spearman"][name][place]
            assert rho["value"] == pytest.approx(stats.spearmanr(values, against).statistic)
            assert -1 <= rho["low"] <= rho["value"] <= rho["high"] <= 1
        expected = [values[thirds[at : at + 20]].mean() for at in (0, 20, 40)]
        assert found["tertiles"][name] == pytest.approx(expected)
    assert found["spearman"]["exactly the margin"]["margin"] == pytest.approx(
        {"value": 1, "low": 1, "high": 1}
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_interval_is_the_percentile_bootstrap_of_scipys_correlation():
    mean, labels = clusters(n=40)
    margin, _ = by_hand(mean, labels)
    values = np.round(2 * margin + np.random.default_rng(2).normal(size=40))
    found = uncertainty_geometry(mean, labels, {"m": values}, n_bootstrap=300, seed=5)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(300):
        rows = rng.integers(40, size=40)
        drawn.append(stats.spearmanr(values[rows], margin[rows]).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    rho = found["spearman"]["m"]["margin"]
    assert (rho["low"], rho["high"]) == pytest.approx((low, high))


def test_only_directions_count_and_labels_may_be_words():
    mean, labels = clusters()
    scale = np.random.default_rng(3).uniform(0.1, 50, (60, 1))
    words = np.array(["cat", "dog", "eel", "fox"])[labels]
    measures = {"m": np.arange(60.0)}
    a = uncertainty_geometry(mean, labels, measures, n_bootstrap=20)
    b = uncertainty_geometry(torch.from_numpy(mean * scale), words, measures, n_bootstrap=20)
    assert a["margin"] == pytest.approx(b["margin"])
    assert a["spearman"]["m"]["margin"] == pytest.approx(b["spearman"]["m"]["margin"])


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e160, 1e307])
def test_the_unit_of_the_means_does_not_matter(scale):
    mean, labels = clusters()
    expected = uncertainty_geometry(mean, labels, {}, n_bootstrap=2)["margin"]
    assert expected["std"] > 0.1
    assert uncertainty_geometry(mean * scale, labels, {}, n_bootstrap=2)["margin"] == pytest.approx(expected)


def test_small_radii_are_told_apart():
    """The rows of a class lie within 10⁻⁹ of one another."""
    labels = np.arange(60) % 3
    mean = np.eye(3, 5)[labels] + 1e-9 * np.random.default_rng(0).normal(size=(60, 5))
    _, radius = by_hand(mean, labels)
    found = uncertainty_geometry(mean, labels, {"radius": radius}, n_bootstrap=2)
    assert found["spearman"]["radius"]["radius"]["value"] > 0.999


def test_blocks_of_rows_join_seamlessly(monkeypatch):
    mean, labels = clusters()
    measures = {"m": np.arange(60.0)}
    whole = uncertainty_geometry(mean, labels, measures, n_bootstrap=5)
    monkeypatch.setattr("probjepa.metrics.geometry._ROWS_AT_A_TIME", 7)
    assert uncertainty_geometry(mean, labels, measures, n_bootstrap=5)["margin"] == pytest.approx(
        whole["margin"]
    )


def test_a_constant_measure_has_no_correlation():
    mean, labels = clusters()
    found = uncertainty_geometry(mean, labels, {"anisotropy": np.zeros(60)}, n_bootstrap=10)
    assert found["spearman"]["anisotropy"]["margin"] == {"value": None, "low": None, "high": None}
    assert found["tertiles"]["anisotropy"] == [0, 0, 0]


def test_the_seed_decides():
    mean, labels = clusters()
    measures = {"m": np.random.default_rng(0).normal(size=60)}
    one, again, other = (
        uncertainty_geometry(mean, labels, measures, n_bootstrap=50, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(60, int)}, "all 60 labels are '0': a margin needs at least two"),
        ({"labels": np.zeros(59, int)}, r"the labels has shape \(59,\) for 60 rows"),
        ({"labels": np.full(60, np.nan)}, "the labels name no class in any of 60 rows"),
        ({"measures": {"kl": np.zeros(3)}}, "the measure 'kl' has 3 values for 60 rows"),
        ({"measures": {"kl": np.r_[np.nan, np.zeros(59)]}}, "the measure 'kl' has 1 NaN among 60"),
        ({"measures": {"kl": np.r_[np.inf, np.zeros(59)]}}, "the measure 'kl' has 1 infinite among 60"),
        ({"mean": np.r_[[[np.nan] * 5], np.ones((59, 5))]}, "NaN or Inf in 1 of 60 rows"),
        ({"mean": np.r_[np.zeros((1, 5)), np.ones((59, 5))]}, "1 of 60 posterior means are zero"),
        ({"mean": np.ones((2, 5)), "labels": [0, 1]}, "2 labelled rows: give at least 3"),
        ({"mean": np.ones(60)}, "give one row a sample"),
    ],
)
def test_geometry_errors(change, message):
    mean, labels = clusters()
    given = {"mean": mean, "labels": labels, "measures": {"m": np.ones(60)}} | change
    with pytest.raises(DataError, match=message) as caught:
        uncertainty_geometry(given["mean"], given["labels"], given["measures"], n_bootstrap=2)
    assert "\n" not in str(caught.value)


def test_no_resamples_are_refused():
    mean, labels = clusters()
    with pytest.raises(ConfigError, match="n_bootstrap is 0"):
        uncertainty_geometry(mean, labels, {}, n_bootstrap=0)


def test_measures_have_names():
    with pytest.raises(ConfigError, match="the measures are a list: give a mapping"):
        uncertainty_geometry(np.eye(4), [0, 0, 1, 1], [1])
