"""Near-duplicates: the groups are those of all pairs at once, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probjepa.errors import ConfigError, DataError
from probjepa.metrics import duplicate_groups, nearest_twins


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


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 64]))
def test_twins_are_the_nearest_of_all(seed, count, others, chunk):
    rng = np.random.default_rng(seed)
    rows, bank = rng.normal(size=(count, 5)), rng.normal(size=(others, 5))
    similarity = unit(rows) @ unit(bank).T
    found, which = nearest_twins(rows, bank, chunk_size=chunk)
    np.testing.assert_allclose(found, similarity.max(1), atol=1e-6)
    np.testing.assert_allclose(similarity[np.arange(count), which], similarity.max(1), atol=1e-6)


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
