"""Effective rank and RankMe against closed forms and their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from probjepa.errors import DataError
from probjepa.metrics import collapse_summary, effective_rank, rank_me
from probjepa.metrics.collapse import collapse_advice


def with_spectrum(sigma, n=40, centred=True):
    """Rows whose singular values are ``sigma``, with zero mean or not."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(n, len(sigma)))
    if centred:
        columns -= columns.mean(0)
    left, _ = np.linalg.qr(columns)
    return left * sigma @ ortho_group.rvs(len(sigma), random_state=0)


def exp_entropy(sigma):
    p = np.array(sigma) / np.sum(sigma)
    return math.exp(-sum(q * math.log(q) for q in p if q > 0))


@pytest.mark.parametrize("sigma", [[1, 1, 1, 1], [5, 3, 1, 0.5], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1e-9, 0, 0]])
def test_ranks_of_a_known_spectrum(sigma):
    rows = with_spectrum(sigma)
    assert effective_rank(rows) == pytest.approx(exp_entropy(sigma), rel=1e-6)
    assert rank_me(rows) == pytest.approx(exp_entropy(sigma), rel=1e-5)


def test_only_the_effective_rank_is_centred():
    rows = with_spectrum([2, 2, 1])
    moved = rows + 1000
    assert effective_rank(moved) == pytest.approx(exp_entropy([2, 2, 1]), rel=1e-6)
    assert rank_me(moved) < 1.01
    uncentred = with_spectrum([2, 2, 1], centred=False)
    assert rank_me(uncentred) == pytest.approx(exp_entropy([2, 2, 1]), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_embeddings_have_collapsed(value):
    rows = torch.full((50, 8), value)
    assert effective_rank(rows) == 0
    summary = collapse_summary(rows)
    assert summary["std_mean"] == pytest.approx(0, abs=1e-12)
    assert summary["rank_me"] == pytest.approx(1, abs=1e-4)


def test_summary_of_the_whole_sphere_and_of_a_dead_feature():
    rows = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    summary = collapse_summary(rows)
    assert summary["std_mean"] == pytest.approx(1 / 4, rel=0.01)
    assert summary["std_min"] == pytest.approx(1 / 4, rel=0.03)
    assert summary["effective_rank"] == effective_rank(rows) == pytest.approx(16, rel=1e-3)
    assert summary["rank_me"] == rank_me(rows)
    rows[:, 3] = 0
    assert collapse_summary(rows)["std_min"] == 0
    # the length of an embedding does not matter to its direction
    scaled = collapse_summary(rows * torch.rand(20_000, 1).add(0.5))
    assert scaled["std_mean"] == pytest.approx(collapse_summary(rows)["std_mean"], rel=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e160, 1e307])
def test_the_unit_of_the_embeddings_does_not_matter(scale):
    rows = with_spectrum([5, 3, 1, 0.5]) + 0.1
    expected = collapse_summary(rows)
    assert expected["std_mean"] > 0.1
    assert collapse_summary(rows * scale) == pytest.approx(expected, rel=1e-9)
    lengths = np.geomspace(1 / scale, scale, len(rows))[:, None] if 1e-150 < scale < 1e200 else scale
    assert collapse_summary(rows * lengths)["std_mean"] == pytest.approx(expected["std_mean"], rel=1e-9)


@pytest.mark.parametrize("measure", [effective_rank, rank_me, collapse_summary])
def test_errors(measure):
    with pytest.raises(DataError, match="NaN or Inf in 2 of 3 rows"):
        measure([[1.0, np.nan], [np.inf, np.nan], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({}, None),
        ({"mean_variance": 1e-5}, "raise kl_weight"),
        ({"mean_variance": 1.0, "kl_per_dim": 1e-5}, "lower kl_weight"),
        ({"mean_variance": 1.0, "kl_per_dim": 0.5}, None),
        ({"mean_variance": 0.995, "kl_per_dim": 1e-5}, "lower kl_weight"),
        ({"mean_variance": 0.985, "kl_per_dim": 1e-5}, None),
        ({"mean_variance": 1.015, "kl_per_dim": 1e-5}, None),
        ({"effective_rank": 1.2}, "lower df or the learning rate"),
        ({"std_mean": 1e-3}, "lower df or the learning rate"),
    ],
)
def test_advice_for_each_collapse(change, advice):
    healthy = {
        "effective_rank": 40.0,
        "std_mean": 0.12,
        "std_min": 0.1,
        "mean_variance": 0.6,
        "kl_per_dim": 0.3,
    }
    text = collapse_advice(healthy | change, 64, epochs=10, settings=["df", "kl_weight"])
    assert text is None if advice is None else advice in text


@pytest.mark.parametrize(
    ("values", "early", "late"),
    [
        ({"effective_rank": 1.5, "std_mean": 0.1}, False, True),
        ({"effective_rank": 1.0, "std_mean": 0.1}, True, True),
        ({"effective_rank": 20.0, "std_mean": 0.087 / 8}, False, True),  # Barlow Twins after its first epoch
        ({"effective_rank": 20.0, "std_mean": 0.009 / 8}, True, True),
        ({"mean_variance": 1.0, "kl_per_dim": 0.0}, False, True),
        ({"mean_variance": 1e-4, "kl_per_dim": 5.0}, True, True),
    ],
)
def test_the_first_epochs_are_judged_by_what_no_start_looks_like(values, early, late):
    assert (collapse_advice(values, 64, epochs=1) is not None) == early
    assert (collapse_advice(values, 64, epochs=9) is not None) == early
    assert (collapse_advice(values, 64, epochs=10) is not None) == late
    assert (collapse_advice(values, 64) is not None) == late


@pytest.mark.parametrize(("epochs", "rank", "share"), [(1, 1.1, 0.01), (10, 2.0, 0.1)])
def test_a_value_at_its_limit_is_no_collapse(epochs, rank, share):
    at = {"effective_rank": rank, "std_mean": share * 64**-0.5}
    assert collapse_advice(at, 64, epochs=epochs) is None
    for name in at:
        assert collapse_advice(at | {name: 0.999 * at[name]}, 64, epochs=epochs) is not None


def test_advice_says_what_was_measured_and_no_more():
    assert collapse_advice({"effective_rank": 1.25, "std_mean": 1e-3}, 64) == (
        "the embeddings have collapsed (effective rank 1.2 of 64, mean spread 1.0e-03 of 1.2e-01): lower the "
        "learning rate, or use larger batches"
    )
    assert "(effective rank 1.2)" in collapse_advice({"effective_rank": 1.25, "std_mean": None})
    assert "(mean spread 5.0e-04)" in collapse_advice({"std_mean": 5e-4, "effective_rank": float("nan")})
    assert collapse_advice({"std_mean": 2e-3}) is None  # judged as if D were 10,000
    assert collapse_advice({"std_mean": 2e-3}, 64) is not None
    assert collapse_advice({}) is None
    assert collapse_advice({"effective_rank": 1.0, "std_mean": 0.0}, rows=9) is None
    assert collapse_advice({"effective_rank": 1.0, "std_mean": 0.0}, rows=10) is not None
    assert "to a point" in collapse_advice({"mean_variance": 1e-5}, rows=1)
