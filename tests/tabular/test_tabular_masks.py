"""Masks: shares, disjointness, independence, and the special cases."""

import numpy as np
import pytest
import torch

from probjepa.errors import ConfigError
from probjepa.tabular.masks import check_share, draw_masks


def drawn(n_rows, n_features, context=(0.1, 0.3), target=(0.1, 0.6), n_targets=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw_masks(
        n_rows,
        n_features,
        context_share=context,
        target_share=target,
        n_targets=n_targets,
        generator=generator,
    )


def test_counts_lie_in_the_shares_and_all_are_reached():
    counts = {(m.context.shape[1], m.targets.shape[2]) for m in (drawn(2, 20, seed=s) for s in range(400))}
    assert {c for c, _ in counts} == set(range(2, 7))
    assert {t for _, t in counts} == set(range(2, 13))


@pytest.mark.parametrize("n_features", [2, 3, 8, 14, 40])
def test_a_rows_masks_are_distinct_features_and_targets_are_not_in_the_context(n_features):
    for seed in range(20):
        masks = drawn(7, n_features, context=(0.15, 0.6), target=(0.15, 0.9), seed=seed)
        assert masks.context.shape[1] >= 1
        assert masks.targets.shape[2] >= 1
        for row in range(7):
            context = masks.context[row].tolist()
            for target in masks.targets[:, row].tolist():
                both = context + target
                assert len(set(both)) == len(both)
                assert set(both) <= set(range(n_features))


def test_targets_are_independent_of_one_another_and_uniform_outside_the_context():
    masks = drawn(20_000, 6, context=(0.3, 0.3), target=(0.3, 0.3), n_targets=2)  # 2 of 6, then 2 of 4
    shown = torch.zeros(2, 20_000, 6).scatter(2, masks.targets, 1.0).numpy()
    # whether a feature outside the context is in one mask says nothing of the other
    outside = torch.ones(20_000, 6).scatter(1, masks.context, 0.0).numpy().astype(bool)
    for feature in range(6):
        a, b = shown[0, outside[:, feature], feature], shown[1, outside[:, feature], feature]
        assert a.mean() == pytest.approx(0.5, abs=0.02)
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=0.03)
    assert np.bincount(masks.context.flatten(), minlength=6) / 40_000 == pytest.approx(
        np.full(6, 1 / 6), abs=0.01
    )


def test_rows_have_masks_of_their_own():
    assert len({tuple(row) for row in drawn(50, 14).targets[0].sort(1).values.tolist()}) > 10


def test_one_feature_is_a_target_without_context():
    masks = drawn(3, 1)
    assert masks.context.shape == (3, 0)
    assert masks.targets.tolist() == [[[0]] * 3] * 4


def test_shares_that_do_not_fit_together():
    masks = drawn(3, 10, context=(0.9, 0.9), target=(0.9, 0.9))
    assert masks.context.shape[1] == 9
    assert masks.targets.shape[2] == 1


def test_the_generator_alone_decides():
    a, b, c = drawn(9, 14, seed=5), drawn(9, 14, seed=5), drawn(9, 14, seed=6)
    assert torch.equal(a.targets, b.targets)
    assert not (a.targets.shape == c.targets.shape and torch.equal(a.targets, c.targets))


@pytest.mark.parametrize("share", [(0, 0.5), (0.5, 0.2), (0.2, 1.5), (0.1,), (0.1, float("nan"))])
def test_bad_shares(share):
    with pytest.raises(ConfigError, match=r"context_share is .*0 < low <= high <= 1"):
        check_share("context_share", share)


@pytest.mark.parametrize(
    ("n_features", "context_share", "target_share", "sizes"),
    [
        (10, (0.01, 0.01), (0.1, 0.1), (1, 1)),  # never none
        (10, (0.3, 0.3), (0.6, 0.6), (3, 6)),
        (10, (1.0, 1.0), (0.1, 0.1), (9, 1)),  # never all
        (4, (0.4, 0.4), (0.6, 0.6), (2, 2)),  # rounded
        (2, (0.9, 1.0), (0.9, 1.0), (1, 1)),
    ],
)
def test_counts_are_the_rounded_shares_but_neither_none_nor_all(
    n_features, context_share, target_share, sizes
):
    masks = drawn(5, n_features, context_share, target_share, n_targets=3)
    assert masks.context.shape == (5, sizes[0])
    assert masks.targets.shape == (3, 5, sizes[1])
