"""Each estimator by itself, against the definition that it is said to compute."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from jacobian_models import double
from torch import Tensor, nn

from probjepa.errors import ConfigError, DataError
from probjepa.jacobian import estimators, jepa_score, jepa_score_details
from probjepa.jacobian.encoders import as_encoder
from probjepa.jacobian.estimators import (
    Settings,
    Volumes,
    _lanczos,
    clipped_log_volume,
    exact,
    exact_spectrum,
    from_spectrum,
    live_order,
    numerical_rank,
    sketch,
    slq,
    subspace,
)
from probjepa.jacobian.rows import JacobianRows, Passes


def linear(a: Tensor) -> Any:
    return as_encoder(lambda x: x.flatten(1) @ a.T)


SIGMA = torch.tensor(
    [[2.0, 1.0, 1.9e-4, 2e-7], [1e-6, 1e-8, 0.0, 0.0], [1.0, 1e-7, 0.0, 0.0]], dtype=torch.float64
)  # the second's largest is the eps below which "auto" keeps all


@pytest.mark.parametrize(
    ("rank", "used"), [(None, [4, 4, 4]), (3, [3, 3, 3]), (1, [1, 1, 1]), (9, [4, 4, 4]), ("auto", [2, 4, 1])]
)
def test_the_sum_over_the_directions_that_a_rank_keeps(rank: Any, used: list[int]) -> None:
    eps = 1e-6
    found = from_spectrum(SIGMA, rank, eps, torch.zeros(3, 7))
    expected = [
        sum(math.log(max(s, eps)) for s in row[:n]) for row, n in zip(SIGMA.tolist(), used, strict=True)
    ]
    torch.testing.assert_close(found.log_volume, torch.tensor(expected).double())
    assert found.used.tolist() == used
    assert found.used.dtype == torch.int64
    assert found.rank.tolist() == numerical_rank(SIGMA).tolist() == [2, 2, 1]
    assert torch.equal(found.sigma_max, SIGMA[:, 0])
    assert found.sigma_min.tolist() == [row[n - 1] for row, n in zip(SIGMA.tolist(), used, strict=True)]
    assert torch.equal(found.standard_error, torch.zeros(3).double())
    assert found.embeddings.shape == (3, 7)
    volume, kept = clipped_log_volume(SIGMA, rank, eps)
    assert torch.equal(volume, found.log_volume)
    assert torch.equal(kept, found.used)


def test_a_direction_counts_above_a_ten_thousandth_of_the_largest() -> None:
    sigma = torch.tensor([[3.0, 3.01e-4, 2.99e-4], [1.0, 0.5, 0.25]]).double()
    assert numerical_rank(sigma).tolist() == [2, 3]


@pytest.mark.parametrize("inputs", [1, 3])
def test_live_rows_come_first_in_their_order(inputs: int) -> None:
    on = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]]).double()[:inputs]
    count, order = live_order(as_encoder(lambda x: x * on), double(inputs, 5))
    assert count.tolist() == [2, 1, 3][:inputs]
    assert order[0, :2].tolist() == [1, 3]
    assert order.shape == (inputs, 2 if inputs == 1 else 3)
    if inputs > 1:
        assert order[1, 0] == 4
        assert order[2].tolist() == [0, 1, 2]
    count, order = live_order(as_encoder(lambda x: 0 * x), double(inputs, 5))
    assert (count.tolist(), order.shape) == (inputs * [0], (inputs, 1))


PASSES = {
    "rows": Passes(least_batch=4),
    "columns": Passes(forward=True),
    "zero rows": Passes(least_batch=4, skip_zero_rows=True),
}


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("way", list(PASSES))
def test_every_way_to_the_exact_spectrum(way: str, shape: tuple[int, int], inputs: int) -> None:
    a, x = double(*shape), double(inputs, shape[1])
    a[1] = 0
    encoder = as_encoder(lambda z: torch.tanh(z @ a.T))
    jacobian = (1 - torch.tanh(x @ a.T).square())[:, :, None] * a
    sigma, out = exact_spectrum(encoder, x, PASSES[way])
    torch.testing.assert_close(sigma, torch.linalg.svdvals(jacobian), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(out, torch.tanh(x @ a.T))
    found = exact(encoder, x, Settings(rank=2, eps=1e-3), PASSES[way])
    torch.testing.assert_close(found.log_volume, sigma[:, :2].log().sum(1))
    assert found.used.tolist() == inputs * [2]


def test_a_folded_spectrum_has_no_more_numbers_than_inputs() -> None:
    patch = nn.Conv2d(1, 3, 2, 2).double()
    out = nn.Linear(3, 6).double()
    encoder = as_encoder(lambda x: out(patch(x).flatten(1)))
    x = double(2, 1, 2, 2)
    expected = torch.linalg.svdvals((out.weight @ patch.weight.flatten(1)).detach())
    found = exact_spectrum(encoder, x, Passes(patchify=patch))[0]
    torch.testing.assert_close(found, expected.expand(2, 4), rtol=1e-9, atol=1e-7)


def seen_by(encoder: Any) -> tuple[Any, list[int]]:
    sizes: list[int] = []

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return encoder.forward(x)

    return replace(encoder, forward=forward), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 7, 4100])  # fewer than rows, more, and more than a block of columns
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_sketch_is_of_the_draw_of_its_seed(width: int, inputs: int, dtype: torch.dtype) -> None:
    """S (P, m) in blocks of 4096 rows, from one stream, in the encoder's type: what a seed means."""
    a, m = double(5, width).to(dtype), 12
    how, x = Settings(estimator="sketch", sketch_size=m, seed=3), double(inputs, width).to(dtype)
    generator = torch.Generator().manual_seed(3)
    parts = [
        torch.randn(n, m, generator=generator, dtype=dtype) for n in (min(width, 4096), max(0, width - 4096))
    ]
    directions = min(5, width)
    sigma = torch.linalg.svdvals(a.double() @ torch.cat(parts).double())[:directions]
    # log det of a Wishart matrix is on average a sum of log χ² of m, m − 1, … degrees of freedom
    freedom = torch.arange(m, m - directions, -1).double()
    expected = sigma.log().sum() - 0.5 * (torch.digamma(freedom / 2) + math.log(2)).sum()
    encoder, sizes = seen_by(linear(a))
    found = sketch(encoder, x, how, Passes(least_batch=8))
    close = {"rtol": 1e-5 if dtype == torch.float32 else 1e-10, "atol": 0}
    torch.testing.assert_close(found.log_volume, expected.expand(inputs), **close)
    torch.testing.assert_close(found.sigma_max, sigma[0].expand(inputs) / math.sqrt(m), **close)
    torch.testing.assert_close(found.sigma_min, sigma[-1].expand(inputs) / math.sqrt(m), **close)
    error = 0.5 * torch.polygamma(1, freedom / 2).sum().sqrt()
    torch.testing.assert_close(found.standard_error, error.expand(inputs))
    assert found.used.tolist() == inputs * [directions]
    assert sizes == [inputs]  # without copies: they would cost the memory that it saves


def test_a_sketch_is_twice_as_wide_as_the_embedding_by_default() -> None:
    encoder, x = linear(double(5, 9)), double(2, 9)
    plain = sketch(encoder, x, Settings(estimator="sketch"), Passes())
    wide = sketch(encoder, x, Settings(estimator="sketch", sketch_size=10), Passes())
    assert torch.equal(plain.log_volume, wide.log_volume)


@pytest.mark.parametrize(("dim", "heights"), [(17, 5 * [3] + [2]), (16, 8 * [2]), (5, 5 * [1])])
def test_a_sketch_holds_an_eighth_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, dim: int, heights: list[int]
) -> None:
    asked, call = [], JacobianRows.__call__

    def counted(rows: JacobianRows, directions: Tensor) -> Tensor:
        asked.append(len(directions))
        return call(rows, directions)

    monkeypatch.setattr(JacobianRows, "__call__", counted)
    sketch(linear(double(dim, 30)), double(1, 30), Settings(estimator="sketch"), Passes())
    assert asked == heights


def test_the_bias_of_a_sketch_is_taken_off_the_directions_that_are_not_clipped() -> None:
    a = torch.zeros(4, 9).double()
    a[0, 0], a[1, 1] = 2, 1e-3
    how = Settings(estimator="sketch", sketch_size=8, eps=0.1)
    found = sketch(linear(a), double(1, 9), how, Passes())
    one = sketch(linear(a[:1]), double(1, 9), replace(how, sketch_size=8), Passes())
    torch.testing.assert_close(found.log_volume, one.log_volume + 3 * math.log(0.1))
    torch.testing.assert_close(found.standard_error, one.standard_error)


@pytest.mark.parametrize(("m", "enough"), [(5, True), (4, False)])
def test_a_sketch_is_at_least_as_wide_as_there_are_directions(m: int, enough: bool) -> None:
    how = Settings(estimator="sketch", sketch_size=m)
    encoder, x = linear(double(8, 5)), double(1, 5)
    if enough:
        assert torch.isfinite(sketch(encoder, x, how, Passes()).log_volume)
        return
    with pytest.raises(ConfigError, match="sketch_size is 4 for 5 directions"):
        sketch(encoder, x, how, Passes())


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("shape", [(6, 9), (6, 4)])
@pytest.mark.parametrize("p", [1, 3, 6])
def test_a_subspace_scales_up_the_volume_of_its_rows(p: int, shape: tuple[int, int], inputs: int) -> None:
    a, x = double(*shape), double(inputs, shape[1])
    how = Settings(estimator="subspace", directions=p, seed=2)
    asked = []

    class Watched(JacobianRows):
        def gram(self, directions: Tensor) -> Tensor:
            asked.append(directions)
            return super().gram(directions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "JacobianRows", Watched)
        found = subspace(linear(a), x, how, Passes())
    q = asked[0]
    torch.testing.assert_close(q @ q.T, torch.eye(p).double(), rtol=0, atol=1e-14)
    sigma = torch.linalg.svdvals(q @ a)
    expected = sigma.clamp(min=1e-6).log().sum() * min(shape) / min(p, shape[1])
    torch.testing.assert_close(found.log_volume, expected.expand(inputs))
    torch.testing.assert_close(found.sigma_max, sigma[0].expand(inputs))
    assert found.used.tolist() == inputs * [min(p, shape[1])]
    assert found.rank.tolist() == inputs * [-1]
    assert bool(found.standard_error.isnan().all())
    other = subspace(linear(a), x, replace(how, seed=3), Passes())
    assert torch.allclose(other.log_volume, found.log_volume) == (p == 6)


def test_a_subspace_has_64_directions_or_all() -> None:
    for dim, p in ((65, 64), (64, 64), (9, 9)):
        encoder, x = linear(double(dim, 70)), double(1, 70)
        default = subspace(encoder, x, Settings(estimator="subspace"), Passes())
        assert torch.equal(
            default.log_volume,
            subspace(encoder, x, Settings(estimator="subspace", directions=p), Passes()).log_volume,
        )
        with pytest.raises(ConfigError, match=f"directions is {dim + 1}: use 1 to {dim}"):
            subspace(encoder, x, Settings(estimator="subspace", directions=dim + 1), Passes())


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_lanczos_has_the_moments_of_the_operator(steps: int, inputs: int) -> None:
    """A quadrature of s points is exact for polynomials of a degree below 2s."""
    root = double(inputs, 8, 8)
    a, start = root @ root.mT, double(inputs, 8)
    start /= start.norm(dim=1, keepdim=True)
    values, weights = _lanczos(lambda v: (a @ v[:, :, None])[:, :, 0], start, steps, 0.0)
    assert values.shape == weights.shape == (inputs, steps)
    assert bool((values.diff() >= 0).all())
    power = start
    for k in range(2 * steps):
        torch.testing.assert_close((weights * values**k).sum(1), (start * power).sum(1))
        power = (a @ power[:, :, None])[:, :, 0]


def test_lanczos_of_an_exhausted_space_gives_what_follows_no_weight() -> None:
    a = torch.diag(torch.tensor([4.0, 4.0, 1.0, 1.0, 9.0, 9.0])).double()
    start = torch.tensor([[1.0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]).double()
    start /= start.norm(dim=1, keepdim=True)
    values, weights = _lanczos(lambda v: v @ a, start, 5, 0.0)
    logs = torch.where(weights > 1e-12, values.clamp(min=1e-3).log(), 0.0)
    torch.testing.assert_close((weights * logs).sum(1), torch.tensor([math.log(4) / 2, math.log(9)]).double())
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())


def test_lanczos_keeps_its_vectors_orthogonal() -> None:
    """A spectrum of many scales, which plain Lanczos loses and finds again: full steps give all eigenvalues."""
    basis = torch.linalg.qr(double(24, 24))[0]
    spectrum = torch.logspace(-8, 0, 24, dtype=torch.float64)
    a = basis @ torch.diag(spectrum) @ basis.T
    values, _ = _lanczos(lambda v: v @ a, torch.full((1, 24), 24**-0.5).double(), 24, 0.0)
    torch.testing.assert_close(values[0], spectrum, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("probes", [1, 2, 5])
def test_all_steps_are_hutchinsons_estimate_of_the_probes(probes: int, inputs: int) -> None:
    """½ zᵀ log(JJᵀ) z, averaged over Rademacher vectors z of the seed."""
    a, x = double(6, 9), double(inputs, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of the deviation of one number
        found = slq(linear(a), x, Settings(estimator="slq", probes=probes, steps=50, seed=4))
    values, vectors = torch.linalg.eigh(a @ a.T)
    generator = torch.Generator().manual_seed(4)
    z = torch.stack([torch.randint(0, 2, (6,), generator=generator) for _ in range(probes)]).double() * 2 - 1
    each = 0.5 * ((z @ vectors).square() * values.log()).sum(1)
    torch.testing.assert_close(found.log_volume, each.mean().expand(inputs))
    if probes == 1:
        assert bool(found.standard_error.isnan().all())
    else:
        torch.testing.assert_close(found.standard_error, (each.std() / math.sqrt(probes)).expand(inputs))
    torch.testing.assert_close(found.sigma_max, values[-1].sqrt().expand(inputs))
    torch.testing.assert_close(found.sigma_min, values[0].sqrt().expand(inputs))
    assert found.rank.tolist() == inputs * [-1]
    assert found.used.tolist() == inputs * [6]
    assert (found.used.dtype, found.rank.dtype) == (torch.int64, torch.int64)
    torch.testing.assert_close(found.embeddings, x @ a.T)


def test_ritz_values_are_the_extremes_over_the_probes() -> None:
    a, x = double(12, 20), double(2, 20)
    sigma = torch.linalg.svdvals(a)
    first_is_not_the_extreme = []
    for seed in range(4):
        # the probes of a smaller number are the first ones of a larger
        few = [slq(linear(a), x, Settings(estimator="slq", probes=n, steps=3, seed=seed)) for n in (1, 2, 3)]
        largest, smallest = ([float(getattr(v, name)[0]) for v in few] for name in ("sigma_max", "sigma_min"))
        assert largest == sorted(largest)
        assert smallest == sorted(smallest, reverse=True)
        assert largest[-1] <= float(sigma[0]) * (1 + 1e-12)
        assert smallest[-1] >= float(sigma[-1]) * (1 - 1e-12)
        first_is_not_the_extreme.append((largest[0] < largest[-1], smallest[0] > smallest[-1]))
    assert all(map(any, zip(*first_is_not_the_extreme, strict=True)))


def test_slq_clips_as_the_exact_score_does() -> None:
    scale = torch.tensor([2.0, 1.0, 1e-5, 0.0]).double()
    how = Settings(estimator="slq", steps=4, eps=1e-3)
    found = slq(as_encoder(lambda x: scale * x), double(1, 4), how)  # probes of a diagonal map are exact
    torch.testing.assert_close(found.log_volume, scale.clamp(min=1e-3).log().sum()[None])
    assert float(found.sigma_min) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("eps", [1e-160, 1e-162, 1e-200, 1e-300])
def test_slq_clips_at_an_eps_whose_square_is_no_number(eps: float) -> None:
    found = slq(as_encoder(lambda x: 0 * x), double(1, 4), Settings(estimator="slq", steps=4, eps=eps))
    torch.testing.assert_close(found.log_volume, torch.tensor([4 * math.log(eps)], dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["exact", "sketch", "slq", "subspace"])
def test_derivatives_whose_squares_overflow_are_named(estimator: str) -> None:
    scale = torch.tensor([1e160, 1.0, 1.0, 1.0], dtype=torch.float64)
    with pytest.raises(DataError, match=r"derivative at input 0 .* or its square, is .* too large a scale$"):
        jepa_score(lambda x: scale * x, double(2, 4), estimator=estimator)


def test_slq_takes_as_many_inputs_as_dimensions() -> None:
    assert torch.isfinite(slq(linear(double(5, 5)), double(1, 5), Settings(estimator="slq")).log_volume)
    with pytest.raises(ConfigError, match=r"more inputs \(4\) than output dimensions \(5\)"):
        slq(linear(double(5, 4)), double(1, 4), Settings(estimator="slq"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["exact", "sketch", "slq", "subspace"])
def test_what_is_found_is_in_float64_but_the_embeddings(estimator: str, dtype: torch.dtype) -> None:
    f = nn.Linear(6, 4).to(dtype)
    x = torch.randn(1, 6).to(dtype)
    found: Volumes = jepa_score_details(f, x, estimator=estimator)
    for name in ("log_volume", "sigma_max", "sigma_min", "standard_error"):
        assert getattr(found, name).dtype == torch.float64, name
    assert (found.used.dtype, found.rank.dtype) == (torch.int64, torch.int64)
    assert found.embeddings.dtype == dtype
    torch.testing.assert_close(found.embeddings, f(x).detach())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"eps": math.inf}, "eps is inf"),
        ({"eps": math.nan}, "eps is nan"),
        ({"eps": -1e-6}, "eps is -1e-06"),
        ({"eps": "small"}, "eps is small"),
        ({"rank": True}, "rank is True"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": -1}, "rank is -1"),
        ({"sketch_size": 0}, "sketch_size is 0"),
        ({"probes": 0}, "probes is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"directions": 1.5}, "directions is 1.5"),
        ({"estimator": "auto", "tolerance": 1}, "tolerance is 1"),
        ({"estimator": "auto", "tolerance": "all"}, "tolerance is all"),
        ({"estimator": "exact", "tolerance": 0.5}, "'exact' has no choice"),
        ({"estimator": "slq", "rank": 1}, "estimator='slq' sees no single direction"),
        ({"estimator": "subspace", "rank": "auto"}, "estimator='subspace' sees no single direction"),
        ({"estimator": "calibrated"}, "'calibrated'"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1},
        {"rank": "auto"},
        {"estimator": "sketch", "sketch_size": 1},
        {"estimator": "auto", "sketch_size": 1},
        {"estimator": "slq", "probes": 1, "steps": 1},
        {"estimator": "subspace", "directions": 1},
        {"estimator": "auto", "tolerance": 0.999},
        {"estimator": "sketch", "rank": "auto"},
        {"estimator": "folded", "rank": 3},
        {"eps": 5},
    ],
)
def test_settings_that_are_taken(options: dict[str, Any]) -> None:
    assert all(getattr(Settings(**options), name) == value for name, value in options.items())


def test_one_step_and_one_probe_are_taken() -> None:
    f = nn.Linear(6, 4).double()
    assert torch.isfinite(jepa_score(f, double(2, 6), estimator="slq", steps=1, probes=1)).all()


@pytest.mark.parametrize(
    ("setting", "of"),
    [
        ({"sketch_size": 64}, "sketch"),
        ({"probes": 8}, "slq"),
        ({"steps": 3}, "slq"),
        ({"directions": 8}, "subspace"),
    ],
)
def test_a_setting_of_another_estimator_is_refused(setting: dict[str, int], of: str) -> None:
    Settings(estimator=of, **setting)  # type: ignore[arg-type]
    for other in ("exact", "folded"):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))} goes with estimator='{of}'"):
            Settings(estimator=other, **setting)  # type: ignore[arg-type]
