"""OOD metrics against scikit-learn, their intervals against their coverage and the closed form."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from probjepa.errors import ConfigError, DataError
from probjepa.metrics import ood_metrics


def scikit_learn(inside, outside):
    scores = np.concatenate([inside, outside])
    is_in = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])

    def fpr_at_95(positive, score):
        fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
        return fpr[np.argmax(tpr >= 0.95)]

    return {
        "auroc": roc_auc_score(1 - is_in, -scores),
        "aupr_out": average_precision_score(1 - is_in, -scores),
        "aupr_in": average_precision_score(is_in, scores),
        "fpr_at_95_tpr_out": fpr_at_95(1 - is_in, -scores),
        "fpr_at_95_tpr_in": fpr_at_95(is_in, scores),
    }


@pytest.mark.parametrize("sizes", [(1, 1), (20, 20), (40, 7), (500, 800)])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_values_agree_with_scikit_learn_ties_included(sizes, decimals):
    rng = np.random.default_rng(sum(sizes))
    inside, outside = (
        np.round(rng.normal(loc, size=n), decimals) for loc, n in zip((1, 0), sizes, strict=True)
    )
    found = ood_metrics(inside, outside, n_bootstrap=5)
    expected = scikit_learn(inside, outside)
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(expected, abs=1e-12)


def test_resampled_metrics_agree_with_scikit_learn():
    # the same draws, one resample: the interval collapses onto scikit-learn's value for it
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 50).round(1)
    found = ood_metrics(inside, outside, n_bootstrap=1, seed=8)
    draws = np.random.default_rng(8)
    expected = scikit_learn(inside[draws.integers(60, size=60)], outside[draws.integers(50, size=50)])
    assert {name: interval.low for name, interval in found.items()} == pytest.approx(expected, abs=1e-12)
    assert all(interval.low == interval.high for interval in found.values())


def test_perfect_and_reversed_separation():
    perfect = {name: i.value for name, i in ood_metrics([3, 4, 5], [0, 1], n_bootstrap=10).items()}
    assert perfect == {
        "auroc": 1, "aupr_out": 1, "aupr_in": 1, "fpr_at_95_tpr_out": 0, "fpr_at_95_tpr_in": 0
    }  # fmt: skip
    worst = ood_metrics([0, 1], [3, 4, 5], n_bootstrap=10)
    assert worst["auroc"].value == worst["auroc"].low == 0
    assert worst["fpr_at_95_tpr_out"].value == worst["fpr_at_95_tpr_in"].value == 1


def test_infinite_scores_are_ranked():
    found = ood_metrics([1.0, np.inf], [-np.inf, 0.5], n_bootstrap=5)
    assert found["auroc"].value == 1


def test_interval_covers_the_true_auroc_as_often_as_it_says():
    truth = stats.norm.cdf(1 / math.sqrt(2))  # P(X > Y) for N(1, 1) and N(0, 1)
    covered, widths = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        auroc = ood_metrics(rng.normal(1, 1, 100), rng.normal(0, 1, 100), n_bootstrap=100, seed=seed)["auroc"]
        covered.append(auroc.low <= truth <= auroc.high)
        widths.append(auroc.high - auroc.low)
    assert 0.89 <= np.mean(covered) <= 0.99
    # variance of the AUROC of equal-variance normals (Hanley & McNeil's formula, its moments by quadrature)
    grid = np.linspace(-9, 10, 4001)
    q1 = np.trapezoid(stats.norm.pdf(grid, 1) * stats.norm.cdf(grid) ** 2, grid)
    variance = (truth * (1 - truth) + 2 * 99 * (q1 - truth**2)) / 100**2
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.05)


def test_seeded_and_frozen():
    rng = np.random.default_rng(0)
    sets = torch.from_numpy(rng.normal(1, 1, 50)), torch.from_numpy(rng.normal(0, 1, 50))
    assert ood_metrics(*sets, seed=1) == ood_metrics(*sets, seed=1)
    assert ood_metrics(*sets, seed=1) != ood_metrics(*sets, seed=2)
    wide, narrow = (ood_metrics(*sets, confidence=level)["auroc"] for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    with pytest.raises(dataclasses.FrozenInstanceError):
        wide.value = 0.0


def test_sets_that_are_apart_are_no_certainty():
    found = ood_metrics(np.arange(30) + 100.0, np.arange(50.0), n_bootstrap=50)
    ten = ood_metrics(np.arange(10) + 100.0, np.arange(50.0), n_bootstrap=50)["auroc"]
    limit = 30 / (30 + stats.norm.ppf(0.975) ** 2)  # Wilson's, of 30 of 30
    for name in ("auroc", "aupr_in", "aupr_out"):
        np.testing.assert_allclose(dataclasses.astuple(found[name]), (1, limit, 1))
    np.testing.assert_allclose(dataclasses.astuple(found["fpr_at_95_tpr_in"]), (0, 0, 1 - limit), atol=1e-12)
    assert ten.low < found["auroc"].low
    swapped = ood_metrics(np.arange(50.0), np.arange(30) + 100.0, n_bootstrap=50)["auroc"]
    np.testing.assert_allclose(dataclasses.astuple(swapped), (0, 0, 1 - limit), atol=1e-12)


def test_intervals_of_sets_that_are_often_apart_cover():
    truth = stats.norm.cdf(4 / math.sqrt(2))
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        of = ood_metrics(rng.normal(4, 1, 30), rng.normal(0, 1, 30), n_bootstrap=100, seed=seed)["auroc"]
        covered.append(of.low <= truth <= of.high)
    assert np.mean(covered) > 0.9  # half of the intervals were [1, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1, np.nan, np.nan], [0]), {}, DataError, "in-distribution scores has 2 NaN among 3"),
        (([1], [np.nan]), {}, DataError, "out-of-distribution scores has 1 NaN"),
        (([], [0.0]), {}, DataError, "empty"),
        (([[1.0]], [0.0]), {}, DataError, r"\(N,\)"),
        (([1.0], [0.0]), {"n_bootstrap": 0}, ConfigError, "n_bootstrap is 0"),
        (([1.0], [0.0]), {"confidence": 95}, ConfigError, "confidence is 95"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        ood_metrics(*arguments, **options)
    assert "\n" not in str(caught.value)
