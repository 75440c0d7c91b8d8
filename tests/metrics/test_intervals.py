"""Intervals of an accuracy, of a statistic and of a figure over seeds, against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from probjepa.errors import DataError
from probjepa.metrics import accuracy_interval, bootstrap_interval, mcnemar, seed_interval


def test_a_statistic_that_a_resample_lacks_is_one_line():
    def in_the_upper_half(values):
        above = values[values > 2]
        return above.mean() if len(above) else math.nan

    with pytest.raises(DataError, match=r"the statistic is NaN in \d+ of 1000 resamples: give"):
        bootstrap_interval([1.0, 2.0, 3.0], in_the_upper_half)


def test_bootstrap_interval_of_a_mean_and_a_median():
    values = np.random.default_rng(0).exponential(size=400)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=1000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    median = bootstrap_interval(values, np.median)
    assert (median.value, median.low, median.high) == pytest.approx((np.median(values), *expected), abs=0.02)
    # the same seed gives the same resamples, hence the same limits
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=1000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert (median.low, median.high) == pytest.approx(tuple(expected), rel=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (950, 1000), (1000, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_accuracy_interval_is_wilsons(right, n, confidence):
    expected = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    found = accuracy_interval(np.arange(n) < right, confidence=confidence)
    assert (found.value, found.low, found.high) == pytest.approx((right / n, *expected), abs=1e-9)


def test_accuracy_interval_wants_right_or_wrong():
    with pytest.raises(DataError, match="2 values other than 0 and 1"):
        accuracy_interval([0, 1, 2, 0.5])


def test_three_seeds_have_students_interval():
    values = [0.3, 0.5, 0.9]
    found = seed_interval(values, own=(0.0, 1.0))
    mean, error = np.mean(values), stats.sem(values)
    assert found["value"] == pytest.approx(mean)
    assert (found["low"], found["high"]) == pytest.approx(stats.t.interval(0.95, 2, mean, error))
    assert found["seeds"] == values
    cut = seed_interval(values, limits=(0, 1))
    assert found["low"] < 0 and found["high"] > 1
    assert (cut["value"], cut["low"], cut["high"]) == (found["value"], 0, 1)
    assert seed_interval(values, limits=(0, None)) == {**found, "low": 0}
    assert seed_interval(values, limits=(None, 1)) == {**found, "high": 1}


@pytest.mark.parametrize("n", [4, 9, 30])
def test_a_seed_without_a_figure_is_left_out(n):
    values = np.random.default_rng(n).normal(size=n)
    found = seed_interval([None, *values.tolist(), None])
    expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["seeds"][0] is None and found["seeds"][-1] is None


def test_one_seed_has_its_own_interval_and_two_or_any_that_agree_have_none():
    nothing = {"value": None, "low": None, "high": None}
    assert seed_interval([0.3, None], (0.2, 0.4)) == {
        "value": 0.3, "low": 0.2, "high": 0.4, "seeds": [0.3, None]
    }  # fmt: skip
    assert seed_interval([0.3])["low"] is None
    two = seed_interval([0.3, 0.5], own=(0.2, 0.4))
    assert two == {"value": pytest.approx(0.4), "low": None, "high": None, "seeds": [0.3, 0.5]}
    agreed = {"value": 0.5, "low": None, "high": None, "seeds": [0.5] * 3}
    assert seed_interval([0.5] * 3, (0.2, 0.8)) == agreed  # of no width it would look like certainty
    assert seed_interval([None], (0.2, 0.4)) == {**nothing, "seeds": [None]}
    assert seed_interval([]) == {**nothing, "seeds": []}


@pytest.mark.parametrize(("gained", "lost"), [(4, 1), (0, 6), (7, 7), (30, 12), (0, 0)])
def test_mcnemar_counts_every_way_that_the_coins_may_fall(gained, lost):
    one = np.repeat([1, 0, 0, 1], [5, 3, gained, lost])
    other = np.repeat([1, 0, 1, 0], [5, 3, gained, lost])
    found = mcnemar(one.astype(bool), torch.from_numpy(other))
    n = gained + lost
    ways = [math.comb(n, k) for k in range(n + 1)]
    as_unlikely = sum(of for of in ways if of <= ways[gained])
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p == pytest.approx(as_unlikely / 2**n)


def test_mcnemar_needs_the_same_rows():
    with pytest.raises(DataError, match="answers 3 rows, the other 2: give the same rows"):
        mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(DataError, match="other than 0 and 1"):
        mcnemar([1, 0, 2], [1, 0, 1])


def test_an_interval_of_infinite_values_has_ends():
    found = bootstrap_interval([1.0, 2.0, -math.inf], np.median, n_bootstrap=200)
    assert (found.low, found.high) == (-math.inf, 2.0)
