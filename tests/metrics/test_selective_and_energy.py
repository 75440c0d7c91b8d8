"""Risk–coverage against brute force over orders; the energy score against loops, SciPy and propriety."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from probjepa.errors import ConfigError, DataError
from probjepa.metrics import energy_score, risk_coverage


def curve(order, right):
    return [1 - np.mean([right[i] for i in order[: n + 1]]) for n in range(len(order))]


def test_curve_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    confidence, right = rng.normal(size=37), rng.random(37) < 0.7
    found = risk_coverage(confidence, right)
    expected = curve(np.argsort(-confidence), right)
    np.testing.assert_allclose(found.risk, expected, atol=1e-12)
    np.testing.assert_allclose(found.coverage, np.arange(1, 38) / 37)
    assert found.aurc == pytest.approx(np.mean(expected))
    perfect = np.mean(curve(np.argsort(~right, kind="stable"), right))
    assert found.excess_aurc == pytest.approx(np.mean(expected) - perfect)
    assert found.accuracy_at == pytest.approx(
        {0.9: 1 - expected[33], 0.8: 1 - expected[29], 0.5: 1 - expected[18]}
    )


def test_the_perfect_order_is_the_best_of_all():
    right = [True, False, True, True, False]
    best = min(np.mean(curve(order, right)) for order in itertools.permutations(range(5)))
    found = risk_coverage(right, right)
    assert found.aurc == pytest.approx(best)
    assert found.excess_aurc == pytest.approx(0)


def test_ties_take_the_mean_over_their_orders():
    confidence, right = np.array([1, 2, 2, 2, 3, 1]), np.array([1, 0, 1, 1, 0, 0], dtype=bool)
    orders = [
        (4, *middle, *last)
        for middle in itertools.permutations((1, 2, 3))
        for last in itertools.permutations((0, 5))
    ]
    found = risk_coverage(confidence, right)
    np.testing.assert_allclose(found.risk, np.mean([curve(order, right) for order in orders], axis=0))


def test_accuracy_takes_whole_samples():
    right = np.arange(10) < 9
    found = risk_coverage(-np.arange(10), right)
    assert found.accuracy_at == {0.9: 1.0, 0.8: 1.0, 0.5: 1.0}
    assert risk_coverage([2, 1], [True, False]).accuracy_at == {0.9: 0.5, 0.8: 0.5, 0.5: 1.0}


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        ([1.0, np.nan], [0, 1], "1 NaN among 2"),
        ([1.0, 2.0, 3.0], [0, 1], "3 values and the mask of right answers 2"),
        ([1.0, 2.0], [0, 3], "1 values other than 0 and 1"),
        ([], [], "empty"),
    ],
)
def test_risk_coverage_errors(confidence, right, message):
    with pytest.raises(DataError, match=message) as caught:
        risk_coverage(confidence, right)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
def test_energy_score_agrees_with_loops(chunk_size):
    rng = np.random.default_rng(0)
    samples, target = rng.normal(size=(30, 7, 3)), rng.normal(size=(7, 3))
    expected = []
    for n in range(7):
        draws = samples[:, n]
        apart = [np.linalg.norm(a - b) for a, b in itertools.permutations(draws, 2)]
        expected.append(np.linalg.norm(draws - target[n], axis=1).mean() - 0.5 * np.mean(apart))
    found = energy_score(samples, target, chunk_size=chunk_size)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e160, 1e307])
def test_energy_score_is_in_the_unit_of_each_target(scale):
    rng = np.random.default_rng(0)
    samples, target = rng.normal(size=(9, 4, 3)), rng.normal(size=(4, 3))
    units = np.array([scale, 1.0, scale, 1e-3])
    found = energy_score(samples * units[:, None], target * units[:, None]).numpy()
    np.testing.assert_allclose(found / units, energy_score(samples, target), rtol=1e-10)


def test_energy_score_in_one_dimension_is_half_scipys_squared_energy_distance():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=400)
    # SciPy's distance keeps the pairs of a draw with itself: its square is 2·E|X−y| − E|X−X'| over all pairs
    spread = np.abs(draws[:, None] - draws).sum()
    biased = stats.energy_distance(draws, [0.3]) ** 2 / 2
    expected = biased + 0.5 * spread / 400**2 - 0.5 * spread / (400 * 399)
    assert energy_score(draws[:, None, None], [[0.3]]).item() == pytest.approx(expected)


def test_energy_score_is_least_for_the_true_distribution():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4000, 2, generator=generator)
    noise = torch.randn(8, 4000, 2, generator=generator)
    score = {
        (loc, scale): energy_score(loc + scale * noise, target).mean()
        for loc in (0, 0.5)
        for scale in (0.6, 1, 1.6)
    }
    assert min(score, key=score.get) == (0, 1)


@pytest.mark.parametrize(
    ("samples", "target", "options", "error", "message"),
    [
        (np.zeros((1, 4, 2)), np.zeros((4, 2)), {}, DataError, "at least two"),
        (np.zeros((4, 2)), np.zeros((4, 2)), {}, DataError, r"\(S, N, D\)"),
        (np.zeros((3, 4, 2)), np.zeros((4, 3)), {}, DataError, "for a target"),
        (np.full((3, 4, 2), np.nan), np.zeros((4, 2)), {}, DataError, "NaN or Inf in 12 of 12"),
        (np.zeros((3, 4, 2)), np.zeros((4, 2)), {"chunk_size": 0}, ConfigError, "chunk_size"),
    ],
)
def test_energy_score_errors(samples, target, options, error, message):
    with pytest.raises(error, match=message) as caught:
        energy_score(samples, target, **options)
    assert "\n" not in str(caught.value)
