"""Multi-block masks against sets drawn in plain loops, and where they may lie."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from probjepa.data.masks import MultiBlockMasks
from probjepa.errors import ConfigError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def box_of(patches, grid):
    """Top, left, height and width of a set of patches, which must fill its bounding box."""
    rows, columns = zip(*(divmod(p, grid) for p in patches), strict=True)
    top, left = min(rows), min(columns)
    height, width = max(rows) - top + 1, max(columns) - left + 1
    assert set(patches) == {
        r * grid + c for r, c in itertools.product(range(top, top + height), range(left, left + width))
    }
    return top, left, height, width


@pytest.mark.parametrize("grid", [4, 8, 12, 14])
def test_masks_are_blocks_apart(grid):
    masks = MultiBlockMasks(grid)
    for seed in range(20):
        context, targets = masks(16, seeded(seed))
        assert targets.shape[:2] == (16, 4) and context.shape[1] >= 8
        shapes = set()
        for seen, blocks in zip(context.tolist(), targets.tolist(), strict=True):
            assert seen == sorted(set(seen)) and set(seen) <= set(range(grid**2))
            assert not set(seen) & {p for block in blocks for p in block}
            for block in blocks:
                assert block == sorted(set(block))
                shapes.add(box_of(block, grid)[2:])
        assert len(shapes) == 1  # one shape a batch


@pytest.mark.parametrize("grid", [8, 11, 14, 16])
def test_shapes_are_all_those_within_the_ranges(grid):
    masks = MultiBlockMasks(grid)
    found = {"target": set(), "context": set()}
    for seed in range(300):
        generator = seeded(seed)
        for block in found:
            found[block].add(masks._shape(block, generator))
    expected = {
        block: {
            (h, w)
            for h, w in itertools.product(range(1, grid + 1), repeat=2)
            if low <= h * w / grid**2 <= high and flat <= h / w <= tall
        }
        for block, low, high, flat, tall in [
            ("target", 0.15, 0.2, 0.75, 1.5),
            ("context", 0.85, 1.0, 0.85, 1 / 0.85),
        ]
    }
    assert found == expected


def test_the_shape_is_the_one_nearest_to_a_uniform_scale_and_aspect():
    grid, masks = 14, MultiBlockMasks(14)
    counts = dict.fromkeys(map(tuple, masks.shapes["target"].tolist()), 0)
    generator = seeded()
    for _ in range(2000):
        counts[masks._shape("target", generator)] += 1
    # the same by a fine lattice of scales and aspects
    expected = dict.fromkeys(counts, 0)
    for i, j in itertools.product(range(100), repeat=2):
        area, aspect = (0.15 + 0.05 * (i + 0.5) / 100) * grid**2, 0.75 + 0.75 * (j + 0.5) / 100
        near = min(
            counts, key=lambda s: abs(math.log(s[0] * s[1] / area)) + abs(math.log(s[0] / s[1] / aspect))
        )
        expected[near] += 2000 / 100**2
    assert stats.chisquare(list(counts.values()), list(expected.values())).pvalue > 1e-3


def test_no_admissible_shape_takes_the_nearest_to_the_middle():
    # 4 × 4: areas 2.4…3.2, and no 1 × 3 or 3 × 1 has an aspect in 0.75…1.5
    assert MultiBlockMasks(4).shapes["target"].tolist() == [[2, 2]]


@pytest.mark.parametrize(("grid", "scale"), [(8, (0.1875, 0.1875)), (14, (0.15, 0.2))])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_location_is_as_likely(grid, scale, batch):
    masks = MultiBlockMasks(grid, targets=1, target_scale=scale, context_scale=(1, 1), context_aspect=(1, 1))
    corners = {}
    generator = seeded(1)
    for _ in range(4000 // batch):
        blocks = masks(batch, generator)[1].flatten(0, 1)
        _, _, height, width = box_of(blocks[0].tolist(), grid)
        corners.setdefault((height, width), []).extend(blocks[:, 0].tolist())
    for (height, width), found in corners.items():
        places = list(itertools.product(range(grid - height + 1), range(grid - width + 1)))
        counts = [found.count(top * grid + left) for top, left in places]
        assert sum(counts) == len(found)
        if len(found) > 20 * len(places):
            assert min(counts) > 0  # the last row and column, too
        assert stats.chisquare(counts).pvalue > 1e-3


def test_context_blocks_reach_every_place():
    masks = MultiBlockMasks(14, context_scale=(0.85, 0.9), context_aspect=(1, 1))  # 13 × 13
    seen = torch.zeros(14**2)
    corners = torch.zeros(4)
    generator = seeded(2)
    for _ in range(50):
        context, targets = masks(32, generator)
        seen.index_add_(0, context.flatten(), torch.ones(context.numel()))
        for row, hidden in zip(context.tolist(), targets.flatten(1).tolist(), strict=True):
            known = {*row, *hidden}
            rows, columns = zip(*(divmod(p, 14) for p in known), strict=True)
            corners[2 * (max(rows) == 13) + (max(columns) == 13)] += 1
    assert (seen > 0).all()
    assert (corners > 0).all()


@pytest.mark.parametrize("batch", [1, 32])
def test_the_context_is_its_block_less_the_targets(batch):
    for grid, seed in itertools.product([8, 14], range(10)):
        masks = MultiBlockMasks(grid, context_scale=(1, 1), context_aspect=(1, 1))
        for seen, hidden in zip(*(x.flatten(1).tolist() for x in masks(batch, seeded(seed))), strict=True):
            assert set(seen) == set(range(grid**2)) - set(hidden)


def lengths(masks, batch, count, seed):
    """Context lengths and unions of targets of ``count`` images, in batches."""
    generator = seeded(seed)
    seen, hidden = [], []
    for _ in range(count):
        context, targets = masks(batch, generator)
        seen.append(context.shape[1])  # of one image a batch: all have it
        hidden.append(len(set(targets[-1].flatten().tolist())))
    return np.array(seen), np.array(hidden)


@pytest.mark.parametrize("grid", [8, 10, 12])
def test_what_is_seen_does_not_depend_on_the_batch_size(grid):
    masks = MultiBlockMasks(grid)
    alone, among = lengths(masks, 1, 400, 3), lengths(masks, 64 if grid == 8 else 32, 150, 4)
    for one, other in zip(alone, among, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3
        error = np.hypot(*(of.std() / np.sqrt(len(of)) for of in (one, other)))
        assert abs(one.mean() - other.mean()) < 4 * error


@pytest.mark.parametrize("grid", [8, 9, 10, 11, 12, 14])
def test_the_contexts_scale_acts(grid):
    shares = MultiBlockMasks(grid).shapes["context"].prod(1) / grid**2
    assert len(set(shares.tolist())) > 1
    assert ((shares >= 0.85) & (shares <= 1)).all()
    wide, narrow = (
        np.mean(lengths(MultiBlockMasks(grid, context_scale=scale), 4, 60, 5)[0])
        for scale in ((0.98, 1.0), (0.85, 0.92))
    )
    assert wide > narrow + 0.02 * grid**2


def test_images_of_a_batch_have_layouts_of_their_own():
    context, targets = MultiBlockMasks(8)(64, seeded(6))
    assert len({tuple(row) for row in targets.flatten(1).tolist()}) > 32
    assert len({tuple(row) for row in context.tolist()}) > 32


def test_small_grids_keep_eight_patches():
    masks = MultiBlockMasks(4)
    context, targets = masks(500, seeded())
    unions = [len(set(row)) for row in targets.flatten(1).tolist()]
    assert context.shape[0] == 500 and context.shape[1] >= 8 and max(unions) <= 8
    # 3 × 3 with 1 patch hidden: only targets upon one another leave 8
    context, targets = MultiBlockMasks(3)(200, seeded())
    assert context.shape == (200, 8)
    assert (targets == targets[:, :1]).all()
    assert len(targets.unique()) == 9


def test_same_seed_same_masks():
    masks = MultiBlockMasks(8)
    first, again, other = masks(8, seeded(5)), masks(8, seeded(5)), masks(8, seeded(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    torch.manual_seed(7)
    unseeded = masks(8)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(unseeded, masks(8), strict=True))


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        (2, {}, "2×2 patches may keep 3 .* smaller patches"),
        (8, {"min_context": 60}, "keep 44 context patches"),
        (8, {"target_scale": (0.2, 0.15)}, "scale"),
        (8, {"context_scale": (0.85, 1.2)}, "scale"),
        (8, {"target_aspect": (0, 1)}, "aspect"),
        (8, {"targets": 0}, "one target"),
    ],
)
def test_wrong_settings(grid, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        MultiBlockMasks(grid, **settings)
    assert "\n" not in str(error.value)
