"""The mixture of polar Student-t densities against the densities themselves, one pair at a time."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from probjepa._arrays import as_features
from probjepa.distributions import PolarStudentT, PolarStudentTMixture, mixture
from probjepa.scores.own import Predictive


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(m=9, n=7, dim=6, low=-1.0, high=1.0, seed=0):
    """Centers and queries of the same kind, log10 σ² uniform in (low, high)."""
    uniform = torch.rand(m, dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return randn(m, dim, seed=seed), 10 ** (low + (high - low) * uniform), randn(n, dim, seed=seed + 2)


def brute_force(centers, variance, df, scale, h):
    """log of the mean density, every pair (N, M) from the likelihood's own class."""
    each = PolarStudentT(centers, scale * variance, df).log_prob(h[:, None])
    return each.logsumexp(1) - math.log(len(centers))


@pytest.mark.parametrize(("df", "scale"), [*itertools.product([0.5, 1.0, 7.0], [1.0, 1e-4, 5.0])])
@pytest.mark.parametrize("dim", [2, 3, 33])
def test_log_prob_is_the_mean_of_the_densities(dim, df, scale):
    centers, variance, h = problem(dim=dim)
    found = PolarStudentTMixture(centers, variance, df, scale).log_prob(h)
    torch.testing.assert_close(found, brute_force(centers, variance, df, scale, h), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("low", "high"), [(-6, -5), (-6, 1), (3, 4)])
def test_tight_and_wide_variances(low, high):
    centers, variance, h = problem(dim=16, low=low, high=high)
    found = PolarStudentTMixture(centers, variance, 1.0).log_prob(h)
    torch.testing.assert_close(found, brute_force(centers, variance, 1.0, 1.0, h), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 0.1, math.pi - 0.1, math.pi - 1e-3, math.pi - 1e-5])
def test_near_a_center_and_near_its_antipode(angle):
    center = torch.tensor([[1.0, 0, 0, 0, 0]], dtype=torch.float64)
    variance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]], dtype=torch.float64)
    h = 3 * torch.tensor([[math.cos(angle), 0, math.sin(angle), 0, 0]], dtype=torch.float64)
    found = PolarStudentTMixture(center, variance, 1.0).log_prob(h)
    torch.testing.assert_close(found, brute_force(center, variance, 1.0, 1.0, h), rtol=1e-6, atol=1e-6)


def test_the_antipode_itself():
    for seed in range(20):  # with one σ² the direction that the log-map loses there does not matter
        center, variance = randn(1, 5, seed=seed), torch.full((1, 5), 0.3, dtype=torch.float64)
        found = PolarStudentTMixture(center, variance, 1.0).log_prob(-2 * center)
        torch.testing.assert_close(found, brute_force(center, variance, 1.0, 1.0, -2 * center))


@pytest.mark.parametrize("skip", [0, 2, 10])
def test_blocks_do_not_matter(monkeypatch, skip):
    centers, variance, h = problem(m=11, n=23)

    def found():
        density = PolarStudentTMixture(centers, variance, skip=skip).fit_scale(5)
        alone = density.leave_one_out() if skip < 10 else torch.zeros(1, dtype=torch.float64)
        return density.log_prob(h), alone, torch.tensor(density.scale)

    whole = found()
    # of components one, four and ten at a time, of points four, 23 and seven, of those one or two in a block
    for block, points, pairs in ((1, 24, 2), (25, 138, 8), (60, 42, 10)):
        monkeypatch.setattr(mixture, "_BLOCK", block)
        monkeypatch.setattr(mixture, "_POINTS", points)
        monkeypatch.setattr(mixture, "_PAIRS", pairs)
        torch.testing.assert_close(found(), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", [None, "turned"])
def test_one_variance_of_all_centers_is_used_once(axes):
    centers, variance, h = problem(m=11, n=23)
    axes = None if axes is None else orthogonal(6)
    shared = variance[:1].expand(centers.shape)
    found = PolarStudentTMixture(centers, shared, skip=1, rotation=axes).fit_scale()
    each = PolarStudentTMixture(centers, shared.clone(), skip=1, rotation=axes).fit_scale()
    assert found.scale == each.scale
    torch.testing.assert_close(found.log_prob(h), each.log_prob(h), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.leave_one_out(), each.leave_one_out(), rtol=0, atol=1e-12)
    assert {of.precision.shape for of in found._components()} == {(1, 6)}  # no second product with it


def test_mapped_centers_are_read_in_blocks(tmp_path, monkeypatch):
    centers, h = randn(60, 6).float(), randn(9, 6, seed=1)
    np.save(tmp_path / "bank.npy", centers.numpy())
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    monkeypatch.setattr(mixture, "_BLOCK", 200)
    density = PolarStudentTMixture.of_neighbours(as_features(bank, "the bank"), skip=1)
    assert density.centers.data_ptr() == bank.ctypes.data
    # nothing that is kept is of the centers' size, but for views
    kept = [x for x in vars(density).values() if isinstance(x, torch.Tensor)]
    assert sum(x.untyped_storage().nbytes() for x in kept if x is not density.centers) < centers.nbytes
    held = PolarStudentTMixture.of_neighbours(centers, skip=1)
    assert torch.equal(density.log_prob(h), held.log_prob(h))
    assert torch.equal(density.leave_one_out(), held.leave_one_out())
    score = Predictive(torch.nn.Identity()).fit({"h": bank})
    assert score.score({"h": h}).shape == (9,)


def test_shapes_and_types():
    centers, variance, h = problem(n=12)
    density = PolarStudentTMixture(centers.float(), variance.float())
    assert (density.batch_shape, density.event_shape) == ((), (6,))
    flat = density.log_prob(h.float())
    assert flat.dtype == torch.float64
    torch.testing.assert_close(density.log_prob(h.float().reshape(3, 4, 6)), flat.reshape(3, 4))
    torch.testing.assert_close(density.log_prob(h.float()[0]), flat[0])
    assert density.log_prob(h[:0]).shape == (0,)


def test_gradients():
    centers, variance, h = problem(m=4, n=3, dim=4)
    density = PolarStudentTMixture(centers, variance, 2.0)
    assert gradcheck(density.log_prob, h.requires_grad_())


# --- the scale ------------------------------------------------------------------------------------------

SCALES = [10 ** (x / 4) for x in range(-24, 5)]


def leave_one_out(centers, variance, df, scale, rows):
    total = 0.0
    for i in rows:
        others = [j for j in range(len(centers)) if not torch.equal(centers[j], centers[i])]
        total += brute_force(centers[others], variance[others], df, scale, centers[i : i + 1]).item()
    return total


def clustered(m=30, dim=5, spread=0.05, seed=0):
    means = 3 * randn(3, dim, seed=seed)
    centers = means.repeat(m // 3, 1) + spread * randn(m, dim, seed=seed + 1)
    return centers, problem(m=m, dim=dim, seed=seed)[1]


@cache
def maximiser(spread):
    centers, variance = clustered(spread=spread)
    return max(SCALES, key=lambda t: leave_one_out(centers, variance, 1.0, t, range(30)))


@pytest.mark.parametrize("spread", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("block", [60, 150, 4_000_000])
def test_scale_is_the_leave_one_out_maximiser(spread, block, monkeypatch):
    monkeypatch.setattr(mixture, "_BLOCK", block)
    monkeypatch.setattr(mixture, "_PAIRS", block)
    centers, variance = clustered(spread=spread)
    expected = maximiser(spread)
    assert 1e-6 < expected < 10  # inside the grid: an end would be found by mistake
    density = PolarStudentTMixture(centers, variance, 1.0)
    assert density.fit_scale() is density
    assert density.scale == pytest.approx(expected)


def test_scale_from_some_of_the_rows():
    centers, variance = clustered()
    variance[:15] *= 100
    found = set()
    for seed in range(6):
        rows = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:3].tolist()
        expected = max(SCALES, key=lambda t: leave_one_out(centers, variance, 1.0, t, rows))
        density = PolarStudentTMixture(centers, variance, 1.0).fit_scale(max_rows=3, seed=seed)
        assert density.scale == pytest.approx(expected)
        found.add(expected)
    assert len(found) > 1


def test_copies_of_a_center_do_not_shrink_the_scale():
    centers, variance = clustered(dim=24)
    alone = PolarStudentTMixture(centers, variance, 1.0).fit_scale().scale
    copied = torch.cat([centers, centers]), torch.cat([variance, variance])
    assert PolarStudentTMixture(*copied, 1.0).fit_scale().scale == alone > 1e-6


@pytest.mark.parametrize("centers", [torch.ones(1, 3), torch.ones(5, 3)])
def test_scale_needs_two_centers_that_differ(centers):
    with pytest.raises(ValueError, match="at least 2 that differ"):
        PolarStudentTMixture(centers, torch.ones_like(centers)).fit_scale()


@pytest.mark.parametrize(
    ("centers", "variance", "options", "message"),
    [
        (torch.ones(3), torch.ones(3), {}, "share a shape"),
        (torch.ones(3, 4), torch.ones(3, 1), {}, "share a shape"),
        (torch.ones(3, 1), torch.ones(3, 1), {}, "D ≥ 2"),
        (torch.ones(3, 4), torch.ones(3, 4), {"df": math.inf}, "finite"),
        (torch.ones(3, 4), torch.ones(3, 4), {"df": 0.0}, "positive"),
        (torch.ones(3, 4), torch.ones(3, 4), {"scale": 0.0}, "positive"),
    ],
)
def test_wrong_arguments(centers, variance, options, message):
    with pytest.raises(ValueError, match=message):
        PolarStudentTMixture(centers, variance, **options)


@pytest.mark.parametrize("skip", [1, 3, 6])
def test_skip_leaves_the_largest_components_out(skip):
    generator = torch.Generator().manual_seed(skip)
    centers, h = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (7, 9))
    variance = torch.rand(7, 5, generator=generator, dtype=torch.float64) + 0.1
    pairs = PolarStudentT(centers, variance, 1.0).log_prob(h[:, None])
    expected = torch.stack([row.sort().values[: 7 - skip].exp().mean().log() for row in pairs])
    found = PolarStudentTMixture(centers, variance, skip=skip).log_prob(h)
    torch.testing.assert_close(found, expected)


def test_skip_must_leave_a_component():
    with pytest.raises(ValueError, match="must leave a component"):
        PolarStudentTMixture(torch.eye(3), torch.ones(3, 3), skip=3)


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("block", [4_000_000, 40])
def test_each_center_under_the_others(skip, block, monkeypatch):
    monkeypatch.setattr(mixture, "_BLOCK", block)
    monkeypatch.setattr(mixture, "_PAIRS", block)
    centers, variance, _ = problem(m=13)
    found = PolarStudentTMixture(centers, variance, 1.0, 0.3, skip).leave_one_out()
    for row in range(13):
        keep = [other for other in range(13) if other != row]
        others = PolarStudentTMixture(centers[keep], variance[keep], 1.0, 0.3, skip)
        torch.testing.assert_close(found[row], others.log_prob(centers[row]), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="no center is left but itself"):
        PolarStudentTMixture(centers[:3], variance[:3], 1.0, skip=2).leave_one_out()


# --- the scale of neighbours --------------------------------------------------------------------------------


def orthogonal(dim, seed=7):
    return torch.linalg.qr(randn(dim, dim, seed=seed))[0]


def test_a_rotation_gives_the_variances_of_other_axes():
    centers, variance, h = problem(dim=5)
    axes = orthogonal(5)
    found = PolarStudentTMixture(centers, variance, 2.0, 0.3, rotation=axes).log_prob(h)
    wanted = brute_force(centers @ axes, variance, 2.0, 0.3, h @ axes)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="rotation must be"):
        PolarStudentTMixture(centers, variance, rotation=torch.eye(4))


@pytest.mark.parametrize("block", [None, 12])
def test_the_covariance_of_neighbours_is_the_mean_over_the_nearest_others(block, monkeypatch):
    if block:
        monkeypatch.setattr(mixture, "_BLOCK", block)
    directions = torch.nn.functional.normalize(randn(12, 4), dim=1)
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    for i, s in enumerate(directions):
        order = (directions - s).norm(dim=1).argsort()
        for j in order[order != i][:3]:
            wanted += torch.outer(s - directions[j], s - directions[j]) / 2
    found = mixture.neighbour_covariance(torch.cat([directions, directions[:5]]), 3)  # copies do not count
    torch.testing.assert_close(found, wanted / (12 * 3))


def test_the_density_of_neighbours_does_not_depend_on_the_axes():
    centers, _, h = problem(m=40, dim=6)
    axes = orthogonal(6)
    plain = PolarStudentTMixture.of_neighbours(centers, 1.5, neighbours=4)
    turned = PolarStudentTMixture.of_neighbours(centers @ axes, 1.5, neighbours=4)
    assert plain.scale == turned.scale
    torch.testing.assert_close(plain.log_prob(h), turned.log_prob(h @ axes), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(plain.leave_one_out(), turned.leave_one_out(), rtol=1e-8, atol=1e-8)


def test_the_density_of_neighbours_knows_in_which_directions_they_vary():
    """Rows that vary along one axis around many places: a step across it is odd, one along it is not."""
    places = torch.nn.functional.normalize(randn(30, 8, seed=3), dim=1)
    spread = torch.cat([randn(300, 1, seed=4) * 0.3, randn(300, 7, seed=5) * 0.01], 1)
    centers = places.repeat(10, 1) + spread
    density = PolarStudentTMixture.of_neighbours(centers)
    along, across = torch.zeros(2, 8, dtype=torch.float64)
    along[0], across[1] = 0.3, 0.3
    assert density.log_prob(places + along).mean() > density.log_prob(places + across).mean() + 3


@pytest.mark.parametrize("count", [2, 3, 200])
def test_the_density_of_neighbours_is_finite_for_few_rows_and_many_features(count):
    centers = randn(count, 64)
    density = PolarStudentTMixture.of_neighbours(centers, skip=0)
    assert bool(density.log_prob(torch.cat([centers, randn(5, 64, seed=9) * 1e6])).isfinite().all())
    with pytest.raises(ValueError, match="at least 2 that differ"):
        PolarStudentTMixture.of_neighbours(centers[:1].repeat(count, 1))


@pytest.mark.parametrize("scale", [1e149, 1e151, 1e200, 1e300])
def test_lengths_whose_squares_overflow_have_the_densities_of_the_pairs(scale):
    centers, variance, h = problem()
    for near in (1.0, scale):
        found = PolarStudentTMixture(near * centers, variance).log_prob(scale * h)
        torch.testing.assert_close(found, brute_force(near * centers, variance, 1.0, 1.0, scale * h))


def test_bad_arguments_are_refused():
    centers, variance, h = problem()
    for bad in (-variance, 0 * variance, math.nan * variance, math.inf * variance):
        with pytest.raises(ValueError, match="variance must be positive and finite"):
            PolarStudentTMixture(centers, bad)
    for bad in ({"scale": math.inf}, {"scale": 0.0}, {"scale": math.nan}, {"df": math.inf}, {"df": 0.0}):
        with pytest.raises(ValueError, match="df and scale must be positive and finite"):
            PolarStudentTMixture(centers, variance, **bad)
    for bad in (math.nan * centers, math.inf * centers):
        with pytest.raises(ValueError, match="centers must be finite"):
            PolarStudentTMixture(bad, variance)
        with pytest.raises(ValueError, match="centers must be finite"):
            PolarStudentTMixture.of_neighbours(bad)
    with pytest.raises(ValueError, match="neighbours is 0: use at least 1"):
        PolarStudentTMixture.of_neighbours(centers, neighbours=0)
    for other in (h[:, 1:], h[0, 0]):
        with pytest.raises(ValueError, match="as the centers are"):
            PolarStudentTMixture(centers, variance).log_prob(other)
