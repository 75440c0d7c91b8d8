"""What several processes draw together is what one draws."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probjepa.data.masks import MultiBlockMasks
from probjepa.data.views import RECIPES, views
from probjepa.draws import drawn, drawn_rows, forked, sample_rows, shared_draws


def joined(parts, dim=0):
    """The rows of all processes in the order in which the loader deals them."""
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.data(),
    st.integers(0, 2**63 - 1),
)
def test_the_rows_of_all_processes_are_one_s(world, shape, data, seed):
    dim = data.draw(st.integers(0, len(shape) - 1))
    whole = [size * (world if axis == dim else 1) for axis, size in enumerate(shape)]
    torch.manual_seed(seed)
    alone = [
        drawn(torch.randn, whole),
        drawn(torch.rand, (3,), None),
        drawn(partial(torch.randint, 9), whole),
    ]
    before = torch.get_rng_state()
    parts = []
    for rank in range(world):
        torch.manual_seed(seed)
        with shared_draws(seed, rank, world):
            parts.append(
                [
                    drawn(torch.randn, shape, dim),
                    drawn(torch.rand, (3,), None),
                    drawn(partial(torch.randint, 9), shape, dim),
                ]
            )
    for exact, found in zip(
        alone[::2], (list(of) for of in list(zip(*parts, strict=True))[::2]), strict=True
    ):
        assert torch.equal(joined(found, dim), exact)
    assert all(torch.equal(part[1], alone[1]) for part in parts)
    assert world > 1 or torch.equal(torch.get_rng_state(), before)


def test_what_threads_draw_is_what_each_draws_alone():
    def draw(seed):
        with forked(seed=seed):
            numbers = [torch.rand(3)]
            time.sleep(0.01)
            return torch.stack([*numbers, torch.rand(3)])

    before = torch.get_rng_state()
    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(8)))
    assert all(map(torch.equal, alone, together))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_views_of_all_processes_are_one_s(recipe):
    size, channels = (28, 1) if recipe == "digits" else (32, 3)
    make = views(recipe, size=size, channels=channels, mean=[0.5] * channels, std=[0.2] * channels)
    images = torch.randint(0, 256, (12, channels, size, size), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    alone = make(images, 7)
    parts = []
    for rank in range(3):
        with shared_draws(7, rank, 3):
            parts.append(make(images[rank::3], 1000 + rank))
    for view, *found in zip(alone, *parts, strict=True):
        torch.testing.assert_close(joined(found), view, rtol=1e-4, atol=1e-4)


def test_masks_of_all_processes_are_one_s():
    masks = MultiBlockMasks(8)
    torch.manual_seed(3)
    alone = drawn_rows(masks, 12)
    parts = []
    for rank in range(3):
        with shared_draws(3, rank, 3):
            parts.append(drawn_rows(masks, 4))
    for exact, *found in zip(alone, *parts, strict=True):
        assert torch.equal(joined(found), exact)


def test_other_draws_of_the_processes_are_their_own():
    seen = []
    for rank in range(2):
        torch.manual_seed(rank)
        with shared_draws(0, rank, 2):
            seen.append(torch.randn(5))
    assert not torch.equal(*seen)


def test_the_state_of_an_mps_device_is_put_back(monkeypatch):
    states = [torch.tensor([1], dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: states.append(torch.tensor([seed])))
    before = torch.get_rng_state()
    with forked(torch.device("mps"), seed=7):
        assert states[-1].item() == torch.initial_seed() == 7
    assert states[-1] is states[0] and torch.equal(torch.get_rng_state(), before)


def test_sampled_rows_are_seeded_and_within_bounds():
    assert sample_rows(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(100, 10, 3)
    assert len(set(rows.tolist())) == 10
    assert torch.equal(rows, sample_rows(100, 10, 3))
    assert not torch.equal(rows, sample_rows(100, 10, 4))
