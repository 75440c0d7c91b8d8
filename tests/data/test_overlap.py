"""Rows in two sets, against a comparison of every pair."""

import numpy as np
import pytest
import torch
from PIL import Image

from probjepa.data import ImageSet, open_images
from probjepa.data.overlap import (
    overlap,
    refuse_fitted_rows,
    refuse_overlap,
    same_images,
    was_fitted_on,
)
from probjepa.errors import DataError


def pixels(n, seed, levels=256, shape=(1, 2, 2)):
    return torch.randint(
        0, levels, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_every_pair(dtype):
    # two levels and four pixels: many rows are equal by chance
    images, reference = pixels(40, 0, levels=2).to(dtype), pixels(6, 1, levels=2).to(dtype)
    pairs = (images[:, None] == reference[None]).flatten(2).all(2).any(1)
    assert 0 < pairs.sum() < 40
    found = overlap(images, reference)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, pairs.numpy())


def test_one_bit_makes_another_image():
    reference = pixels(5, 0)
    images = reference.clone()
    images[2, 0, 1, 1] ^= 1
    np.testing.assert_array_equal(overlap(images, reference), [True, True, False, True, True])
    assert overlap(pixels(3, 4), reference[:0]).tolist() == [False] * 3
    assert overlap(images[:0], reference).tolist() == []


def test_views_of_memory_are_compared_by_value():
    base = pixels(6, 0, shape=(3, 4, 4))
    turned = base.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert overlap(turned, base).all()
    assert overlap(base[::2].requires_grad_(False), base).all()


def test_refusal_counts():
    reference = pixels(5, 0, shape=(1, 4, 4))
    images = torch.cat([pixels(4, 1, shape=(1, 4, 4)), reference[1:3]])
    with pytest.raises(DataError, match="2 of 6 images to score are in the reference set") as error:
        refuse_overlap(images, reference)
    assert "\n" not in str(error.value)
    refuse_overlap(images[:4], reference)


def test_refusal_names_the_rows():
    reference = pixels(9, 0, shape=(1, 8, 8))
    images = torch.cat([pixels(4, 1, shape=(1, 8, 8)), reference[1:2]])
    with pytest.raises(DataError, match=r"1 of 5 .* in the reference set \(row 4\)"):
        refuse_overlap(images, reference)
    named = ImageSet(images, None, ["a", "b", "c", "d", "cat/e.png"])
    with pytest.raises(DataError, match=r"\(cat/e\.png\)"):
        refuse_overlap(named, reference)
    with pytest.raises(DataError, match=r"9 of 9 .* \(row 0, row 1, row 2, row 3, row 4, …\)"):
        refuse_overlap(reference, reference)


FIT, TEST = (np.random.default_rng(seed).normal(size=(n, 5)) for seed, n in ((0, 400), (1, 20)))


def test_refuses_the_rows_of_a_fit():
    mixed = np.concatenate([TEST[:10], FIT[[3, 3, 77]], TEST[10:20]])
    with pytest.raises(
        DataError,
        match=r"3 of 23 embeddings to score are among those that KNN was fitted on \(row 10, row 11, row 12\)",
    ) as error:
        refuse_fitted_rows("KNN", FIT, mixed)
    assert "\n" not in str(error.value)
    mask = was_fitted_on(mixed, FIT)
    np.testing.assert_array_equal(np.flatnonzero(mask), [10, 11, 12])
    refuse_fitted_rows("KNN", FIT, mixed[~mask])
    refuse_fitted_rows("KNN", FIT, np.nextafter(FIT, np.inf))


def test_rows_of_a_fit_are_known_in_another_type():
    rows = np.concatenate([FIT.astype(np.float32), np.zeros((1, 5), dtype=np.float32)])
    for same in (torch.from_numpy(rows), rows.astype(np.float64), np.asfortranarray(rows), rows[::-1]):
        assert was_fitted_on(same, rows).all() and was_fitted_on(rows, same).all()
    assert was_fitted_on(np.full((1, 5), -0.0), rows).all()


def test_embeddings_with_holes_are_counted():
    holes = np.where(np.arange(20)[:, None] < 7, np.nan, TEST)
    with pytest.raises(DataError, match="to score has NaN or Inf in 7 of 20 rows"):
        was_fitted_on(holes, FIT)
    with pytest.raises(DataError, match="to fit has NaN or Inf in 7 of 20 rows"):
        was_fitted_on(TEST, holes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_grey_image_among_colour_ones_is_the_same(tmp_path, dtype, streamed):
    # a set of grey images has one channel, a mixed one repeats its grey ones over three
    grey = pixels(150, 0, shape=(1, 8, 8))
    for row, image in enumerate(grey):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{row:03d}.png")
    alone = open_images(tmp_path, memory_limit=1 if streamed else None)
    Image.fromarray(pixels(1, 1, shape=(8, 8, 3))[0].numpy()).save(tmp_path / "colour.png")
    mixed = open_images(tmp_path, memory_limit=1 if streamed else None)
    assert (alone.channels, mixed.channels) == (1, 3)
    of = {name: found.get(slice(None)).to(dtype) for name, found in {"alone": alone, "mixed": mixed}.items()}
    for one, other in ((alone, mixed), (of["alone"], of["mixed"])):
        assert overlap(one, other).all()
        assert overlap(other, one).tolist() == [True] * 150 + [False]
    assert same_images(alone, mixed.subset(range(150)))
    nearly = of["mixed"][:150].clone()
    nearly[:, 1, 3, 3] = 255 - nearly[:, 1, 3, 3]
    assert not overlap(nearly, alone).any()
    with pytest.raises(DataError, match="150 of 151 images to score"):
        refuse_overlap(mixed, alone)


def test_an_empty_set_overlaps_with_nothing():
    images = ImageSet(pixels(4, 0, shape=(1, 8, 8)), None, list("abcd"))
    none = images.subset([])
    assert overlap(none, images).shape == (0,) and not overlap(images, none).any()
    assert same_images(none, none.subset([])) and not same_images(none, images)
    refuse_overlap(images, none)
