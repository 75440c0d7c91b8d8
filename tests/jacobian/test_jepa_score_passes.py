"""Passes that are not taken: rows that are zero, columns in place of rows, and fewer rows with a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from jacobian_models import TinyViT, reference_score
from torch import Tensor, nn

from probjepa.errors import ConfigError
from probjepa.jacobian import jacobian_spectrum, jepa_score, jepa_score_details
from probjepa.jacobian.calibrated import TEACHERS, Calibration, Ridge, Teachers
from probjepa.jacobian.encoders import as_encoder, exact_gradients
from probjepa.jacobian.estimators import Settings
from probjepa.jacobian.rows import Passes, live_rows


class Pooled(nn.Module):
    """Channels that a ReLU cuts off from every position of some inputs; K = 24."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 24, 3), nn.ReLU())
        nn.init.uniform_(self.net[2].bias, -1.6, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))


class Smooth(nn.Module):
    """A map of 40 numbers to 32, whose Jacobian shrinks as the input grows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 32)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (-0.1 * x.square().mean(1, keepdim=True)).exp()


class Counted(nn.Module):
    """Counts the rows that backward passes bring: one for each input that its pass is about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient: Tensor) -> None:
        self.rows += int((gradient != 0).any(1).sum())


def inputs(count: int) -> Tensor:
    return torch.randn(count, 40, dtype=torch.float64) * torch.logspace(-0.5, 0.7, count)[:, None]


def test_zero_rows_take_no_pass_and_the_score_is_the_same() -> None:
    f, x = Pooled().double().eval(), 2 * torch.randn(6, 3, 8, 8, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(f, one[None])[0].flatten(1) for one in x])
    live = (jacobian != 0).any(2)
    assert torch.equal(live_rows(as_encoder(f), x), live)
    assert len(set(live.sum(1).tolist())) > 1
    assert int(live.sum()) < 0.8 * live.numel()
    expected = reference_score(f, x)
    for options in ({}, {"chunk_size": 1}, {"chunk_size": 4}, {"estimator": "auto"}):
        torch.testing.assert_close(jepa_score(f, x, **options), expected)
    assert jacobian_spectrum(f, x).shape == (6, 24)
    counted = Counted(f)
    jepa_score(counted, x, chunk_size=1)
    # a row or two for each look, and copies of one input bring the last few rows together
    assert counted.rows < int(live.sum()) + 40


def test_an_input_without_any_live_row_is_the_least_typical() -> None:
    f, x = Pooled().eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        f.net[2].weight.zero_()
        f.net[2].bias.fill_(-1)
    torch.testing.assert_close(jepa_score(f, x), torch.full((3,), 24.0).double() * torch.tensor(1e-6).log())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_an_encoder_without_second_derivatives_takes_all_passes() -> None:
    f, x = Pooled().eval(), torch.randn(3, 3, 8, 8)
    found = jepa_score(lambda z: Once.apply(f(z)), x)
    torch.testing.assert_close(found, reference_score(f, x, 24) + reference_gain(f, x), rtol=0, atol=1e-3)


def reference_gain(f: Pooled, x: Tensor) -> Tensor:
    """What doubling adds: log 2 for each direction that is not null."""
    return torch.log(torch.tensor(2.0)).double() * live_rows(as_encoder(f), x).sum(1)


def test_fewer_columns_than_rows_are_taken_by_columns() -> None:
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 24)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([torch.linalg.svdvals(torch.autograd.functional.jacobian(net, one)) for one in x])
    torch.testing.assert_close(jepa_score(net, x), expected.log().sum(1))
    torch.testing.assert_close(jacobian_spectrum(net, x)[:, :3], expected)
    counted = Counted(net)
    jepa_score(counted, x)
    assert counted.rows < 24  # the look at the encoder; rows would be 5 × 24


@pytest.mark.parametrize(("width", "dim"), [(16, 32), (9, 12)])  # by columns, and by rows
def test_zero_rows_of_few_columns_add_log_eps_whatever_the_batch(width: int, dim: int) -> None:
    net = nn.Sequential(nn.Linear(width, dim), nn.ReLU()).double()
    x = torch.randn(200, width, dtype=torch.float64)
    live = (net(x) > 0).sum(1)
    x, least = x[[int(live.argmax()), int(live.argmin())]], int(live.min())
    assert live.max() >= width > least

    def f(x: Tensor) -> Tensor:
        return 1e5 * net(x)  # a null value's rounding is above eps

    sigma = jacobian_spectrum(f, x)
    assert (sigma > 0).sum(1).tolist() == [width, least]
    alone = torch.cat([jepa_score(f, one[None]) for one in x])
    torch.testing.assert_close(jepa_score(f, x), alone)
    torch.testing.assert_close(jepa_score(f, x.flip(0)), alone.flip(0))
    torch.testing.assert_close(
        float(alone[1]), float(sigma[1, :least].log().sum()) + (width - least) * math.log(1e-6)
    )


def test_images_come_channels_last_where_the_encoder_takes_them() -> None:
    seen: list[bool] = []

    class Watched(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(not x.is_contiguous())
            return super().forward(x)

    class Viewed(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * x.view(len(x), -1)[:, :1]

    x = torch.randn(4, 3, 8, 8)
    for f in (Watched().eval(), Viewed().eval()):
        torch.testing.assert_close(jepa_score(f, x), reference_score(f, x), rtol=0, atol=1e-3)
    assert any(seen)


@pytest.mark.parametrize("rank", [None, "auto"])
def test_a_tolerance_buys_fewer_rows_and_says_what_they_cost(rank: str | None) -> None:
    f, x = Smooth(), inputs(160)
    exact = jepa_score(f, x, rank=rank)
    counted = Counted(f)
    state = torch.random.get_rng_state()
    found = jepa_score_details(counted, x, estimator="auto", rank=rank, tolerance=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.estimator == "calibrated"
    assert "directions" in found.reason
    taught = found.standard_error == 0
    assert int(taught.sum()) == TEACHERS
    torch.testing.assert_close(found.score[taught], exact[taught])
    off = (found.score - exact)[~taught]
    assert float(off.square().mean().sqrt()) < 2 * 0.1 * float(exact.std())
    assert float((off.abs() < 2 * found.standard_error[~taught]).double().mean()) > 0.85
    assert counted.rows < (TEACHERS + (160 - TEACHERS) / 2) * 32 + 40
    again = jepa_score(f, x, estimator="auto", rank=rank, tolerance=0.1, chunk_size=7)
    torch.testing.assert_close(again, found.score)
    other = jepa_score_details(f, x, estimator="auto", rank=rank, tolerance=0.1, seed=1)
    assert not torch.equal(other.standard_error == 0, taught)


def test_calibrated_scores_say_how_many_directions_they_are_of() -> None:
    # a last layer norm takes one direction away, which the exact scores say
    f, x = (
        nn.Sequential(Smooth(), nn.LayerNorm(32, dtype=torch.float64, elementwise_affine=False)),
        inputs(120),
    )
    found = jepa_score_details(f, x, estimator="auto", rank="auto", tolerance=0.5)
    assert found.estimator == "calibrated"
    exact = found.standard_error == 0
    assert set(found.used[~exact].tolist()) == {int(found.used[exact].median())} == {31}


def test_a_smaller_tolerance_is_nearer_and_zero_is_exact() -> None:
    f, x = Smooth(), inputs(120)
    exact = jepa_score(f, x)
    off = [
        float((jepa_score(f, x, estimator="auto", tolerance=t) - exact).square().mean().sqrt())
        for t in (0.3, 0.03, 0.0)
    ]
    assert off[0] >= off[1] >= off[2] == 0


@pytest.mark.parametrize(("count", "tolerance"), [(120, 1e-9), (2 * TEACHERS, 0.9)])
def test_what_the_tolerance_cannot_have_is_exact(count: int, tolerance: float) -> None:
    f, x = Smooth(), inputs(count)
    found = jepa_score_details(f, x, estimator="auto", tolerance=tolerance)
    assert found.estimator == "exact"
    torch.testing.assert_close(found.score, jepa_score(f, x))


def test_a_constant_jacobian_is_exact_under_a_tolerance() -> None:
    f, x = nn.Linear(40, 32).double(), inputs(80)
    found = jepa_score_details(f, x, estimator="auto", tolerance=0.02)
    torch.testing.assert_close(found.score, jepa_score(f, x))


def test_a_tolerance_counts_zero_rows() -> None:
    f, x = Pooled().double().eval(), torch.randn(90, 3, 8, 8, dtype=torch.float64)
    x[::2] *= torch.linspace(0.2, 3, 45)[:, None, None, None]
    exact = jepa_score(f, x)
    found = jepa_score_details(f, x, estimator="auto", tolerance=0.05)
    assert found.estimator == "calibrated"
    off = (found.score - exact)[found.standard_error > 0]
    assert float(off.square().mean().sqrt()) < 0.1 * float(exact.std())


@pytest.mark.parametrize("rank", [None, "auto"])
def test_inputs_of_fewer_rows_than_directions_are_exact(rank: str | None) -> None:
    f, x = Pooled().double().eval(), 2 * torch.randn(6, 3, 8, 8, dtype=torch.float64)
    x[::2] *= 0.1
    live, p = live_rows(as_encoder(f), x).sum(1), 12
    assert int(live.min()) < p <= int(live.max())
    line = Ridge.fit(torch.randn(9, p + 1).double(), torch.randn(9).double(), torch.ones(9).double())
    how = Settings(estimator="auto", rank=rank, tolerance=0.1)
    calibration = Calibration(how, Passes(skip_zero_rows=True), p, line, 64)
    with exact_gradients(as_encoder(f)):
        found = calibration.measure(as_encoder(f), x)
    few = live < p
    assert torch.equal(found.standard_error == 0, few)
    exact = jepa_score_details(f, x, rank=rank)
    torch.testing.assert_close(found.log_volume[few], exact.log_volume[few])
    assert torch.equal(found.used[few], exact.used[few])
    constant = Ridge.fit(
        torch.randn(9, p + 1).double(), torch.full((9,), 0.7).double(), torch.ones(9).double()
    )
    with exact_gradients(as_encoder(f)):
        found = replace(calibration, line=constant).measure(as_encoder(f), x)
    zero = math.log(how.eps) if rank is None else 0.0  # of a row that is zero throughout
    torch.testing.assert_close(found.log_volume[~few], (0.7 * live + zero * (24 - live)).double()[~few])


def test_as_many_directions_as_rows_say_all_of_them() -> None:
    x = torch.ones(2, 24, dtype=torch.float64)
    x[0, 12:], x[1, 11:] = -1, -1  # 12 rows that are not zero, and 11
    encoder = as_encoder(lambda z: 3 * z.relu())
    teachers = Teachers(Settings(estimator="auto", tolerance=0.1), Passes(skip_zero_rows=True))
    with exact_gradients(encoder):
        teachers.measure(encoder, x)
    assert sorted(teachers.spectra) == [1, 2, 3, 4, 6, 8, 12]
    for p, (of_twelve, of_eleven) in teachers.spectra.items():
        expected = torch.full((p,), 2 * math.log(3), dtype=torch.float64)
        torch.testing.assert_close(of_twelve, expected)
        if p < 12:
            torch.testing.assert_close(of_eleven, expected)
        else:
            assert of_eleven.isnan().all()


def test_from_a_thirty_second_to_half_of_the_directions_are_tried() -> None:
    encoder = as_encoder(lambda z: 3 * z.relu())
    teachers = Teachers(Settings(estimator="auto", tolerance=0.1), Passes())
    with exact_gradients(encoder):
        teachers.measure(encoder, torch.ones(1, 96, dtype=torch.float64))
    assert sorted(teachers.spectra) == [3, 4, 6, 8, 12, 16, 24, 32, 48]


def test_a_tolerance_goes_with_a_folded_patch_embedding() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(70, 3, 16, 16)
    found = jepa_score_details(f, x, estimator="auto", tolerance=0.9)
    assert found.estimator == "calibrated"
    taught = found.standard_error == 0
    torch.testing.assert_close(found.score[taught], jepa_score(f, x[taught]), rtol=0, atol=1e-3)


def test_ridge_leaves_one_out_as_a_fit_to_the_others_does() -> None:
    features, y = torch.randn(12, 30, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    scale = torch.rand(12, dtype=torch.float64) + 1
    line = Ridge.fit(features, y, scale)
    off = []
    for i in range(12):
        kept = torch.arange(12) != i
        a = torch.cat([torch.ones(11, 1).double(), features[kept]], 1)
        penalty = line.ridge * torch.eye(31, dtype=torch.float64)
        penalty[0, 0] = 0
        w = torch.linalg.solve(a.T @ a + penalty, a.T @ y[kept])
        off.append((y[i] - w[0] - features[i] @ w[1:]) * scale[i])
    assert line.error == pytest.approx(float(torch.stack(off).square().mean().sqrt()), rel=1e-9)
    near, far = line.predict(torch.stack([features.mean(0), features.mean(0) + 100]))[1]
    assert far > near > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerance": 0.1}, "estimator='auto'"),
        ({"estimator": "auto", "tolerance": -0.1}, "tolerance is -0.1"),
        ({"estimator": "auto", "tolerance": 1.0}, "tolerance is 1.0"),
        ({"estimator": "auto", "tolerance": "0.02"}, "tolerance is 0.02: use a share"),
        ({"estimator": "auto", "tolerance": None}, "tolerance is None"),
        ({"eps": "small"}, "eps takes a number, got 'small'"),
        ({"estimator": "auto", "tolerance": 0.1, "n_transforms": 2}, "one transform"),
    ],
)
def test_a_tolerance_out_of_place(options: dict[str, object], text: str) -> None:
    transform: Callable[[Tensor], Tensor] = torch.tanh
    with pytest.raises(ConfigError, match=text):
        jepa_score(torch.tanh, torch.randn(2, 5), transforms=transform, **options)  # type: ignore[arg-type]
