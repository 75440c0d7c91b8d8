"""Conformal p-values and thresholds: against plain loops, and by what they promise."""

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import probjepa as pj
from probjepa.errors import ConfigError, DataError
from probjepa.metrics.conformal import Combination, Rule, combined_p_values

small = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@given(small, small)
def test_plain_p_values_are_counted(scores, calibration):
    p = pj.conformal_p_values(scores, calibration)
    n = len(calibration)
    assert p.dtype == np.float64
    assert p.tolist() == [(1 + sum(c <= s for c in calibration)) / (n + 1) for s in scores]


@given(small, small, st.integers(0, 5))
def test_smoothed_p_values_lie_between_their_ranks_and_need_a_seed(scores, calibration, seed):
    p = pj.conformal_p_values(scores, calibration, smoothed=True, seed=seed)
    n = len(calibration)
    for s, value in zip(scores, p, strict=True):
        below, ties = sum(c < s for c in calibration), sum(c == s for c in calibration)
        assert below / (n + 1) < value <= (below + ties + 1) / (n + 1)
    assert np.array_equal(p, pj.conformal_p_values(scores, calibration, smoothed=True, seed=seed))


@given(small, small, st.sampled_from([0.1, 0.2, 0.25, 0.29, 0.5, 0.7, 0.9]))
def test_a_row_is_flagged_where_its_plain_p_value_is_at_most_alpha(scores, calibration, alpha):
    if len(calibration) + 1 < 1 / alpha - 1e-9:
        with pytest.raises(DataError, match="too few for alpha"):
            pj.threshold(calibration, alpha)
        return
    flagged = np.asarray(scores) < pj.threshold(calibration, alpha)
    # compared as whole numbers: p ≤ α is k ≤ α(n + 1)
    p = np.rint(pj.conformal_p_values(scores, calibration) * (len(calibration) + 1))
    assert np.array_equal(flagged, p * 100 <= round(alpha * 100) * (len(calibration) + 1))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_least_number_of_calibration_rows_is_named_and_is_enough(alpha):
    least = round(1 / alpha) - 1
    with pytest.raises(DataError, match=f"give at least {least}"):
        pj.threshold(np.arange(least - 1), alpha)
    assert pj.threshold(np.arange(least), alpha) == 0


@pytest.mark.parametrize("n", [2, 5, 8, 299, 2999])
@pytest.mark.parametrize("third", [1, 2])
def test_a_rate_that_no_decimal_writes_flags_where_p_is_at_most_it(n, third):
    scores = np.arange(n + 1) - 0.5
    p = pj.conformal_p_values(scores, np.arange(n))
    assert np.array_equal(scores < pj.threshold(np.arange(n), third / 3), p <= third / 3)
    assert (p <= third / 3).sum() == (n + 1) * third // 3
    with pytest.raises(DataError, match="give at least 2,"):
        pj.threshold([1.0], 1 / 3)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_false_alarm_rate_is_beta_binomial(alpha):
    """Over 200 splits of heavy-tailed scores: the pooled false alarms lie in the exact band."""
    rng = np.random.default_rng(3)
    n, m, splits = 400, 50, 200
    alarms = []
    for _ in range(splits):
        scores = rng.standard_t(2, n + m)
        alarms.append(int((scores[n:] < pj.threshold(scores[:n], alpha)).sum()))
    rank = math.floor(alpha * (n + 1) + 1e-9)
    # given the calibration rows, the rate is Beta(k, n + 1 − k)
    law = stats.betabinom(m, rank, n + 1 - rank)
    assert law.ppf(0.0001) <= min(alarms) and max(alarms) <= law.ppf(0.9999)
    spread = 4 * law.std() / math.sqrt(splits)
    assert abs(np.mean(alarms) - law.mean()) < spread
    assert abs(law.mean() / m - rank / (n + 1)) < 1e-12 and rank / (n + 1) <= alpha


def test_p_values_of_typical_rows_are_uniform():
    rng = np.random.default_rng(5)
    pooled = []
    for seed in range(200):
        scores = rng.standard_normal(201).round(1)  # with ties
        pooled += list(pj.conformal_p_values(scores[200:], scores[:200], smoothed=True, seed=seed))
    assert stats.kstest(pooled, "uniform").pvalue > 0.01


@given(small, small, st.sampled_from([0.1, 0.2, 0.25, 0.29, 0.5, 0.7, 0.9]))
def test_a_list_is_cut_where_benjamini_and_hochberg_cut_it(scores, calibration, fdr):
    if len(calibration) + 1 < 1 / fdr - 1e-9:
        with pytest.raises(DataError, match="too few for fdr"):
            Rule(fdr=fdr).decide(scores, calibration)
        return
    found = Rule(fdr=fdr).decide(scores, calibration)
    n, m = len(calibration), len(scores)
    ranks = sorted(round(p * (n + 1)) for p in found["p_value"])
    # the largest k whose k-th smallest p-value is at most fdr · k/m, in whole numbers
    cut = max((r for k, r in enumerate(ranks, 1) if r * m * 100 <= round(fdr * 100) * k * (n + 1)), default=0)
    assert found["flagged"].tolist() == [round(p * (n + 1)) <= cut for p in found["p_value"]]
    assert np.array_equal(found["flagged"], found["q_value"] <= fdr + 1e-9)


def test_of_a_list_few_of_the_flagged_are_typical():
    """Over 200 lists of 90 typical rows and 10 others: the mean false discovery proportion is within the rate."""
    rng, share = np.random.default_rng(17), []
    for _ in range(200):
        scores = np.concatenate([rng.standard_normal(90), rng.standard_normal(10) - 4])
        flagged = Rule(fdr=0.2).decide(scores, rng.standard_normal(500))["flagged"]
        share.append(flagged[:90].sum() / max(flagged.sum(), 1))
        assert flagged[90:].any()
    assert 0.1 < np.mean(share) < 0.2 * 0.9 + 4 * np.std(share) / math.sqrt(200)


# of whole ranks, without rounding: lower for rows that look odd
_EXACT = {
    "fisher": math.prod,
    "bonferroni": min,
    "harmonic": lambda ranks: -sum(Fraction(1, rank) for rank in ranks),
}


@pytest.mark.parametrize("combine", get_args(Combination))
def test_each_row_in_turn_against_the_others_takes_every_rank_once(combine):
    """What exchangeability needs, exactly: the p-values of n + 1 rows are 1, …, n + 1 over n + 1."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((24, 3))
    rows[:, 1] += rows[:, 0]  # scores depend on each other
    p = [combined_p_values(rows[[i]], np.delete(rows, i, 0), combine=combine)[0] for i in range(24)]
    ranks = (rows <= rows[:, None]).sum(1)
    exact = [_EXACT[combine](list(map(int, row))) for row in ranks]
    assert np.allclose(p, [sum(other <= own for other in exact) / 24 for own in exact])
    assert combine == "bonferroni" or len(set(exact)) > 20  # and equal ones share the larger rank


@pytest.mark.parametrize("combine", get_args(Combination))
def test_combined_p_values_against_a_plain_loop(combine):
    rng = np.random.default_rng(11)
    scores, calibration = rng.integers(0, 6, (9, 2)).astype(float), rng.integers(0, 6, (13, 2)).astype(float)

    def statistic(p):
        return {"fisher": -2 * np.log(p).sum(), "bonferroni": -min(p), "harmonic": (1 / np.asarray(p)).sum()}[
            combine
        ]

    expected = []
    for row in scores:
        everyone = np.vstack([row, calibration])
        odd = [statistic([(everyone[:, j] <= each[j]).sum() / 14 for j in range(2)]) for each in everyone]
        expected.append(sum(other >= odd[0] - 1e-9 for other in odd) / 14)
    assert np.allclose(combined_p_values(scores, calibration, combine=combine), expected)


def test_one_score_combined_is_its_own_p_value():
    rng = np.random.default_rng(13)
    scores, calibration = rng.standard_normal(50), rng.standard_normal(80)
    for combine in get_args(Combination):
        found = combined_p_values(scores[:, None], calibration[:, None], combine=combine)
        assert np.allclose(found, pj.conformal_p_values(scores, calibration))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda: pj.conformal_p_values([], [1.0]), DataError, "scores is empty"),
        (lambda: pj.conformal_p_values([1.0], []), DataError, "calibration scores is empty"),
        (lambda: pj.conformal_p_values([float("nan")], [1.0]), DataError, "1 NaN"),
        (lambda: pj.threshold([1.0], 0), ConfigError, "alpha is 0"),
        (lambda: pj.threshold([1.0], 1.0), ConfigError, "alpha is 1.0"),
        (lambda: pj.threshold([1.0], float("nan")), ConfigError, "alpha takes a finite number, got 'nan'"),
        (lambda: Rule(fdr=1.5).check(9), ConfigError, "fdr is 1.5"),
        (lambda: Rule("much").check(9), ConfigError, "alpha is much"),
        (lambda: Rule("much").decide([1.0], [2.0]), ConfigError, "alpha is much"),
        (lambda: Rule(fdr=True).check(9), ConfigError, "fdr is True"),
        (
            lambda: Rule(fdr=0.05).check(9),
            DataError,
            "9 calibration rows are too few for fdr = 0.05: give at least 19",
        ),
        (lambda: pj.threshold([1.0], 1e-300), DataError, r"give more than 10\^12, or a larger alpha$"),
        (lambda: combined_p_values([1.0], [[1.0]]), DataError, "shape"),
        (lambda: combined_p_values([[1.0, 2.0]], [[1.0]]), DataError, "give the same ones"),
        (lambda: combined_p_values([[1.0]], [[1.0]], combine="fischer"), ConfigError, "fisher"),
    ],
)
def test_what_cannot_be_used_is_one_line(wrong, error, says):
    with pytest.raises(error, match=says) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@given(st.integers(1, 300), st.floats(1e-16, 1e-9))
def test_a_rate_near_one_is_the_largest_score(rows, short):
    known = np.arange(float(rows))
    alpha = 1 - short
    assert alpha == 1 or pj.threshold(known, alpha) >= rows - 2
    assert pj.threshold(known, math.nextafter(1, 0)) == rows - 1
