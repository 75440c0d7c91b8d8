"""Splits, hashes of rows, and tables whose ambiguity is known."""

import numpy as np
import pandas as pd
import pytest

from probjepa.errors import DataError
from probjepa.tabular.overlap import row_hashes
from probjepa.tabular.splits import split_rows
from probjepa_experiments.simulated_tables import ambiguity_figures, blended_digits, simulate


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.875, 0.125)])
def test_a_split_is_a_stratified_partition(shares):
    labels = np.repeat([0, 1, 2, 3], [100, 40, 3, 1])
    parts = split_rows(labels, 0, shares)
    joined = np.concatenate(parts)
    assert len(joined) == len(labels)
    assert set(joined) == set(range(len(labels)))
    for code, count in ((0, 100), (1, 40)):
        for part, share in zip(parts, shares, strict=True):
            assert abs((labels[part] == code).sum() - share * count) <= 1
    assert set(labels[parts[0]]) == {0, 1, 2, 3}  # the rarest class too
    assert any((a != b).any() for a, b in zip(parts, split_rows(labels, 1, shares), strict=True))
    assert all((a == b).all() for a, b in zip(parts, split_rows(labels, 0, shares), strict=True))


def test_rows_are_equal_whatever_their_types():
    ints = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    floats = pd.DataFrame({"b": ["x", np.nan], "a": [1.0, 2.0]})
    np.testing.assert_array_equal(row_hashes(ints), row_hashes(floats))
    assert row_hashes(ints.assign(a=[1, 3]))[1] != row_hashes(ints)[1]


def test_sim_lies_where_its_ambiguity_says():
    drawn = simulate(3000, seed=5)
    frame = drawn.table
    numbers = frame[[f"n{i}" for i in range(28)]].to_numpy()
    sure = drawn.ambiguity < 0.3
    means = np.array([numbers[sure & (frame["label"] == k)].mean(0) for k in range(3)])
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(distances, 10, atol=0.5)
    gap = np.sort(np.linalg.norm(numbers[:, None] - means[None], axis=2), axis=1)
    margin = gap[:, 1] - gap[:, 0]
    assert ambiguity_figures(-margin, drawn.ambiguity)["spearman"] > 0.65
    assert ambiguity_figures(-margin, drawn.ambiguity)["auc"] > 0.9
    nearest = np.linalg.norm(numbers[:, None] - means[None], axis=2).argmin(1)
    assert (nearest[sure] == frame["label"][sure]).all()
    assert frame[[f"c{i}" for i in range(4)]].nunique().tolist() == [5] * 4


def test_blended_digits_stay_in_their_part():
    pixels = np.eye(40) * 10
    labels = np.arange(40) % 2
    parts = blended_digits(0, pixels, labels)
    used = [set(np.flatnonzero((of.table.drop(columns="label") > 0).any(axis=0))) for of in parts]
    assert not used[0] & used[1] | used[0] & used[2] | used[1] & used[2]
    for of in parts:
        weights = np.sort(of.table.drop(columns="label").to_numpy() / 10, axis=1)[:, -2:]
        np.testing.assert_allclose(weights[:, 0], of.ambiguity / 2)
        np.testing.assert_allclose(weights[:, 1], 1 - of.ambiguity / 2)
    with pytest.raises(DataError, match="one class"):
        blended_digits(0, pixels, np.zeros(40))
    with pytest.raises(DataError, match="give"):
        blended_digits(0, pixels, labels[:3])


def test_auc_of_the_most_ambiguous_fifth_by_counting():
    random = np.random.default_rng(0)
    ambiguity, uncertainty = random.random(50), random.random(50)
    most = ambiguity >= np.sort(ambiguity)[40]
    pairs = [(uncertainty[i] > uncertainty[j]) for i in np.flatnonzero(most) for j in np.flatnonzero(~most)]
    assert ambiguity_figures(uncertainty, ambiguity)["auc"] == pytest.approx(np.mean(pairs))
