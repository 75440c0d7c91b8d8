"""Near-duplicates: the groups are those of all pairs at once, whatever the blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probjepa.errors import ConfigError, DataError
from probjepa.metrics import duplicate_groups, duplicates, nearest_twins


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(seed, count, dim=4):
    """Random rows, of which some are near copies of others, and some are scaled ones."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dim))
    near = rng.integers(count, size=count // 2)
    rows[: len(near)] = rows[near] * rng.uniform(0.5, 2, (len(near), 1)) + 0.05 * rng.normal(
        size=(len(near), dim)
    )
    return rows


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.sampled_from([1, 3, 7, 64]),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_groups_are_the_connected_components_of_all_pairs(seed, count, chunk, threshold):
    rows = planted(seed, count)
    copies = np.random.default_rng(seed).integers(3 * count, size=count)
    near = (unit(rows) @ unit(rows).T >= threshold) | (copies[:, None] == copies) | np.eye(count, dtype=bool)
    for _ in range(count):  # the transitive closure
        near = (near.astype(int) @ near) > 0
    found = duplicate_groups(rows, threshold, copies=copies, chunk_size=chunk)
    np.testing.assert_array_equal(found, near.argmax(1))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 64]))
def test_twins_are_the_nearest_of_all(seed, count, others, chunk):
    rng = np.random.default_rng(seed)
    rows, bank = rng.normal(size=(count, 5)), rng.normal(size=(others, 5))
    similarity = unit(rows) @ unit(bank).T
    found, which = nearest_twins(rows, bank, chunk_size=chunk)
    np.testing.assert_allclose(found, similarity.max(1), atol=1e-6)
    np.testing.assert_allclose(similarity[np.arange(count), which], similarity.max(1), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_of_equally_similar_rows_the_first_is_the_twin(chunk):
    bank = np.eye(2)[[1, 0, 0, 1, 0]]
    assert nearest_twins(np.eye(2), bank, chunk_size=chunk)[1].tolist() == [1, 0]


@settings(max_examples=20)
@given(
    st.integers(0, 2**31), st.sampled_from([1, 7, 64]), st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.booleans()
)
def test_bounds_of_few_axes_change_no_group(seed, chunk, threshold, few_pairs):
    rng = np.random.default_rng(seed)
    rows = planted(seed, 60, dim=16) * 0.7 ** np.arange(16)  # the first axes hold most
    rows[rng.integers(60, size=5)] = rows[0]
    expected = duplicate_groups(rows, threshold, chunk_size=chunk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_FEW", 0)
        patch.setattr(duplicates, "_PAIR", 0)  # they always pay
        patch.setattr(duplicates, "_HELD", 40 if few_pairs else 4_000_000)
        assert duplicates._bounding(torch.tensor(unit(rows)).float(), threshold) is not None
        np.testing.assert_array_equal(duplicate_groups(rows, threshold, chunk_size=chunk), expected)


def test_a_bound_is_one_and_is_left_out_where_it_does_not_pay(monkeypatch):
    monkeypatch.setattr(duplicates, "_FEW", 0)
    rows = torch.tensor(unit(np.random.default_rng(0).normal(size=(300, 24)))).float()
    bounds = duplicates._bounding(rows, 0.96)
    assert bounds is not None and 4 <= bounds.shape[1] <= 13
    assert bool((bounds @ bounds.T >= rows @ rows.T - 1e-6).all())
    assert duplicates._bounding(torch.nn.functional.normalize(rows.abs() + 5), 0.5) is None  # all are near


def test_every_copy_is_found_at_a_threshold_of_one():
    rows = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    found = duplicate_groups(np.concatenate([rows, 3 * rows]), 1.0, chunk_size=16)
    np.testing.assert_array_equal(found, np.tile(np.arange(50), 2))


@pytest.mark.parametrize(("kind", "scale"), [("f4", 1e37), ("f4", 1e-30), ("f8", 1e300), ("f8", 1e-200)])
def test_directions_do_not_depend_on_lengths(kind, scale):
    rows = np.array([[1, 0], [2, 0.1], [0, 1]], dtype=kind) * np.array(scale, dtype=kind)
    assert duplicate_groups(rows).tolist() == [0, 0, 2]
    assert nearest_twins(rows, np.eye(2))[1].tolist() == [0, 0, 1]


def test_a_chain_is_one_group_and_zero_has_no_direction():
    angles = np.linspace(0, np.pi, 60)
    chain = np.stack([np.cos(angles), np.sin(angles)], 1)[np.random.default_rng(1).permutation(60)]
    assert set(duplicate_groups(chain, 0.99, chunk_size=7)) == {0}
    np.testing.assert_array_equal(duplicate_groups(np.zeros((3, 2))), np.arange(3))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: duplicate_groups(np.eye(3), 0.0), ConfigError),
        (lambda: duplicate_groups(np.eye(3), 1.1), ConfigError),
        (lambda: duplicate_groups(np.eye(3), chunk_size=0), ConfigError),
        (lambda: duplicate_groups([[np.nan, 1.0]]), DataError),
        (lambda: duplicate_groups(np.eye(3), copies=[1]), DataError),
        (lambda: nearest_twins(np.eye(3), np.eye(2)), DataError),
    ],
)
def test_bad_input_is_one_line(call, error):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_autocast_leaves_similarities_alone(monkeypatch):
    monkeypatch.setattr(duplicates, "_FEW", 0)
    rows, bank = (np.random.default_rng(seed).normal(size=(200, 16)).astype(np.float32) for seed in (0, 1))
    rows[100:] = rows[:100] + 0.05 * bank[:100]
    twins, groups = nearest_twins(rows, bank), duplicate_groups(rows, 0.998)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(nearest_twins(rows, bank), twins)
        np.testing.assert_array_equal(duplicate_groups(rows, 0.998), groups)
    assert 100 < len(set(groups)) < 200
