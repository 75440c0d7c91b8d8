"""Log-volumes from a few rows: the regression against its textbook form, the rows against known Jacobians."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from jacobian_models import double
from torch import Tensor, nn

from probjepa.jacobian import jepa_score, jepa_score_details
from probjepa.jacobian.calibrated import Calibration, Ridge, Teachers, _basis, _log_spectrum, split
from probjepa.jacobian.encoders import Encoder, as_encoder
from probjepa.jacobian.estimators import Settings, Volumes, from_spectrum
from probjepa.jacobian.rows import Passes

HOW = Settings(estimator="auto", tolerance=0.1, seed=5)


@pytest.mark.parametrize("count", [33, 70, 200])
def test_32_inputs_are_measured_exactly_whichever_the_seed_draws(count: int) -> None:
    state = torch.random.get_rng_state()
    few, others = split(count, 0)
    assert len(few) == 32
    assert torch.equal(few, few.sort().values)
    assert torch.equal(others, others.sort().values)
    assert torch.cat([few, others]).sort().values.tolist() == list(range(count))
    assert torch.equal(split(count, 0)[0], few)
    assert not torch.equal(split(count, 1)[0], few)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_directions_are_orthonormal_on_the_rows_that_are_there() -> None:
    order = torch.tensor([7, 2, 4, 9, 0])
    q = _basis(order, 10, 3, 0)
    assert (q.shape, q.dtype) == ((5, 3), torch.float64)
    torch.testing.assert_close(q.T @ q, torch.eye(3).double(), rtol=0, atol=1e-14)
    assert torch.equal(_basis(order, 10, 3, 0), q)
    assert not torch.allclose(_basis(order, 10, 3, 1), q)
    assert not torch.allclose(_basis(order.flip(0), 10, 3, 0), q)
    wider = _basis(order, 10, 5, 0)  # the first directions are those of fewer
    torch.testing.assert_close(wider[:, :3] @ wider[:, :3].T, q @ q.T)


@pytest.mark.parametrize(("features", "rows"), [(30, 12), (12, 12)])
def test_ridge_regression_is_the_textbooks(features: int, rows: int) -> None:
    """In its primal form: w = (XᵀX + λ)⁻¹Xᵀy of centred X, and the predictive variance of Bayes."""
    x, y, scale = double(rows, features) + 3, double(rows) - 7, torch.rand(rows).double() + 1
    line = Ridge.fit(x, y, scale)
    centred = x - x.mean(0)
    penalty = 0.01 * centred.square().sum(1).mean()
    assert line.ridge == pytest.approx(float(penalty), rel=1e-12)
    inverse = torch.linalg.inv(centred.T @ centred + penalty * torch.eye(features).double())
    w = inverse @ centred.T @ (y - y.mean())
    kept = 1 - 1 / rows - ((centred @ inverse) * centred).sum(1)
    left_out = (y - y.mean() - centred @ w) / kept
    assert line.error == pytest.approx(float((left_out * scale).square().mean().sqrt()), rel=1e-9)
    variance = float((left_out.square() * kept).mean())
    assert line.variance == pytest.approx(variance, rel=1e-9)
    new = 2 * double(5, features) + 3
    away = new - x.mean(0)
    estimates, errors = line.predict(new)
    torch.testing.assert_close(estimates, y.mean() + away @ w)
    expected = (variance * (1 + 1 / rows + ((away @ inverse) * away).sum(1))).sqrt()
    torch.testing.assert_close(errors, expected)


def test_ridge_regression_on_what_does_not_vary_is_the_mean() -> None:
    y = double(8)
    line = Ridge.fit(torch.full((8, 9), 2.5).double(), y, torch.ones(8).double())
    assert line.ridge == 1e-12
    off = (y - y.mean()) / (1 - 1 / 8)
    assert line.error == pytest.approx(float(off.square().mean().sqrt()))
    estimate, error = line.predict(torch.full((1, 9), 2.5).double())
    torch.testing.assert_close(estimate, y.mean()[None])
    torch.testing.assert_close(error, (off.square().mean() * (7 / 8) * (9 / 8)).sqrt()[None])


ON = torch.ones(24).double()
ON[[1, 4, 5, 11, 17]] = 0
A = torch.randn(24, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
A[2] = A[3]  # two live rows that are the same


def some_rows(x: Tensor) -> Tensor:
    """J = diag(|x₀|·on)·A: of the first input all rows, of the others those that are on."""
    on = torch.where(x[:, :1] > 0, torch.ones(24).double(), ON)
    return on * (x.flatten(1)[:, :30] @ A.T)


def points(count: int) -> Tensor:
    x = double(count, 30)
    x[:, 0] = -1 - torch.arange(count)
    x[0, 0] = 1
    return x


class Watched:
    """In place of the regression: what it is given, and an answer of its own."""

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        self.features = features
        return torch.arange(1.0, len(features) + 1).double(), 0.5 * torch.ones(len(features)).double()


def expected_spectrum(jacobian: Tensor, rows: Tensor, p: int, eps: float) -> Tensor:
    q = _basis(rows, 24, p, HOW.seed)
    return torch.linalg.svdvals(q.T @ jacobian[rows]).flip(0).clamp(min=eps).log() * 2


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("rank", [None, "auto", 5])
def test_what_is_measured_of_a_few_rows(rank: Any, skip: bool, inputs: int) -> None:
    how, p, line = replace(HOW, rank=rank, eps=1e-3), 6, Watched()
    passes = Passes(skip_zero_rows=skip, least_batch=4)
    x = points(3)[-inputs:]
    found = Calibration(how, passes, p, line, 7).measure(as_encoder(some_rows), x)  # type: ignore[arg-type]
    live = torch.tensor([24, 19, 19] if skip else [24, 24, 24])[-inputs:].double()
    for i in range(inputs):
        on = torch.ones(24).double() if x[i, 0] > 0 else ON
        jacobian = on[:, None] * A
        rows = torch.arange(24) if not skip else on.nonzero()[:, 0]
        logs = expected_spectrum(jacobian, rows, p, how.eps)
        torch.testing.assert_close(line.features[i, :p], logs)
        torch.testing.assert_close(line.features[i, p], math.sqrt(p) * live[i].log())
        torch.testing.assert_close(found.sigma_max[i].log() * 2, logs[-1])
        torch.testing.assert_close(found.sigma_min[i].log() * 2, logs[0])
    zero = math.log(how.eps) if rank is None else 0.0
    torch.testing.assert_close(
        found.log_volume, (24 - live) * zero + live * torch.arange(1.0, inputs + 1).double()
    )
    torch.testing.assert_close(found.standard_error, 0.5 * live)
    assert found.used.tolist() == inputs * [7]  # as many as of the inputs that were measured exactly
    assert found.rank.tolist() == inputs * [-1]
    torch.testing.assert_close(found.embeddings, some_rows(x))


@pytest.mark.parametrize("p", [11, 12])
@pytest.mark.parametrize("rank", [None, "auto"])
def test_fewer_live_rows_than_directions_are_measured_whole(rank: Any, p: int) -> None:
    """And those of an input with as many as there are directions are not."""
    how, line = replace(HOW, rank=rank), Watched()
    on = torch.ones(3, 24).double()
    on[1:, 2:15] = 0  # 11 rows are left

    def f(x: Tensor) -> Tensor:
        return on * (x @ A.T)

    x = double(3, 30)
    encoder = Encoder(f, None, None, "f")
    found = Calibration(how, Passes(skip_zero_rows=True), p, line, 24).measure(encoder, x)  # type: ignore[arg-type]
    few = torch.tensor([False, p == 12, p == 12])
    assert torch.equal(found.standard_error == 0, few)
    sigma = torch.linalg.svdvals(on[1, :, None] * A)
    exact = from_spectrum(sigma[None], rank, how.eps, torch.zeros(1, 24))
    if p == 11:
        assert found.used.tolist() == 3 * [24]
        return
    torch.testing.assert_close(found.log_volume[1:], exact.log_volume.expand(2))
    assert found.used.tolist() == [24, int(exact.used), int(exact.used)]
    assert found.rank.tolist() == [-1, 11, 11]
    torch.testing.assert_close(found.sigma_max[1:], sigma[0].expand(2))


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("rank", [None, "auto"])
def test_teachers_are_exact_and_keep_the_spectra_of_every_number_of_rows(
    rank: Any, skip: bool, inputs: int
) -> None:
    how = replace(HOW, rank=rank, eps=1e-3)
    teachers = Teachers(how, Passes(skip_zero_rows=skip))
    x = points(6)[-inputs:]
    for again in range(2):
        found = teachers.measure(as_encoder(some_rows), x)
        on = torch.where(x[:, :1] > 0, torch.ones(24).double(), ON)
        sigma = torch.linalg.svdvals(on[:, :, None] * A)
        exact = from_spectrum(sigma, rank, how.eps, some_rows(x))
        for name in ("log_volume", "sigma_max", "standard_error", "embeddings"):
            torch.testing.assert_close(getattr(found, name), getattr(exact, name))
        torch.testing.assert_close(found.sigma_min, exact.sigma_min, rtol=1e-6, atol=1e-6)
        assert torch.equal(found.used, exact.used)
        assert not skip or torch.equal(found.rank, exact.rank)
        assert len(teachers.found) == len(teachers.live) == again + 1
    live = [24 if not skip or row > 0 else 19 for row in x[:, 0].tolist()]
    assert torch.cat(teachers.live).tolist() == 2 * live
    assert sorted(teachers.spectra) == [1, 2, 3, 4, 6, 8, 12]
    for p, kept in teachers.spectra.items():
        assert len(kept) == 2 * inputs
        for i in range(inputs):
            rows = torch.arange(24) if live[i] == 24 else ON.nonzero()[:, 0]
            expected = expected_spectrum(on[i][:, None] * A, rows, p, how.eps)
            torch.testing.assert_close(kept[i], expected)


def test_nothing_is_learned_from_fewer_rows_than_directions() -> None:
    x = torch.ones(2, 24).double()
    x[0, 3:], x[1, 12:] = -1, -1
    teachers = Teachers(HOW, Passes(skip_zero_rows=True))
    teachers.measure(as_encoder(lambda z: 3 * z.relu()), x)
    for p, (of_three, of_twelve) in teachers.spectra.items():
        expected = torch.full((p,), 2 * math.log(3)).double()
        unknown = torch.full((p,), math.nan).double()
        torch.testing.assert_close(of_three, expected if p <= 3 else unknown, equal_nan=True)
        torch.testing.assert_close(of_twelve, expected)


@pytest.mark.parametrize(
    ("dim", "tried"),
    [(1, []), (2, [1]), (3, [1]), (5, [1, 2]), (64, [2, 4, 5, 8, 10, 16, 21, 32])],
)
def test_the_numbers_of_directions_that_are_tried(dim: int, tried: list[int]) -> None:
    teachers = Teachers(HOW, Passes())
    teachers.measure(as_encoder(lambda z: 3 * z), torch.ones(1, dim).double())
    assert sorted(teachers.spectra) == tried


def taught(volumes: Tensor, spectra: dict[int, Tensor], live: Tensor, **how: Any) -> Teachers:
    """Teachers of K = 8 that have measured all this."""
    zero = torch.zeros(len(volumes))
    found = Volumes(volumes, zero, zero, zero, zero, zero, torch.zeros(len(volumes), 8))
    kept = {p: list(of_p) for p, of_p in spectra.items()}
    return Teachers(replace(HOW, **how), Passes(), [found], [live], kept)


def told(count: int, noise: float, size: float = 1.0) -> tuple[Tensor, dict[int, Tensor]]:
    """Volumes, and spectra: of 4 rows they say them, of 2 rows with noise, of 1 nothing."""
    volumes = size * (10 + double(count))
    clear = (volumes / 8)[:, None]
    return volumes, {4: clear.expand(-1, 4), 1: double(count, 1), 2: clear + size * noise * double(count, 2)}


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_the_fewest_directions_that_are_good_enough_are_taken(size: float) -> None:
    volumes, spectra = told(40, noise=0.05, size=size)
    live = torch.full((40,), 8)
    spread = float(volumes.std())
    for tolerance, p in ((0.9, 2), (0.2, 4)):
        calibration, reason = taught(volumes, spectra, live, tolerance=tolerance).fit()
        assert calibration is not None
        assert calibration.directions == p
        features = torch.cat([spectra[p], torch.full((40, 1), math.sqrt(p) * math.log(8)).double()], 1)
        line = Ridge.fit(features, volumes / 8, live.double())
        torch.testing.assert_close(calibration.line.weights, line.weights)
        assert calibration.line.error == pytest.approx(line.error)
        assert calibration.how.tolerance == tolerance
        assert reason == (
            f"{p} of 8 directions: {line.error:.3g} nats from the exact volumes of 40 inputs, "
            f"{line.error / spread:.2%} of their spread"
        )
        assert line.error < tolerance * spread
    del spectra[4]
    calibration, reason = taught(volumes, spectra, live, tolerance=0.2).fit()
    assert calibration is None
    features = torch.cat([spectra[2], torch.full((40, 1), math.sqrt(2) * math.log(8)).double()], 1)
    line = Ridge.fit(features, volumes / 8, live.double())
    assert reason == (
        f"half of the directions are {line.error / spread:.1%} of the spread off, above the tolerance"
    )


def test_the_stated_share_of_the_spread_is_where_the_choice_changes() -> None:
    volumes, spectra = told(40, noise=0.05)
    live = torch.full((40,), 8)
    first, _ = taught(volumes, spectra, live, tolerance=0.9).fit()
    assert first is not None
    share = first.line.error / float(volumes.std())
    for factor, p in ((1.001, 2), (0.999, 4)):
        calibration, _ = taught(volumes, spectra, live, tolerance=share * factor).fit()
        assert calibration is not None
        assert calibration.directions == p


def test_a_number_of_directions_that_some_input_had_too_few_rows_for_is_not_taken() -> None:
    volumes, spectra = told(40, noise=0.05)
    spectra[2][7] = math.nan
    calibration, _ = taught(volumes, spectra, torch.full((40,), 8), tolerance=0.9).fit()
    assert calibration is not None
    assert calibration.directions == 4
    calibration, reason = taught(volumes, {2: spectra[2]}, torch.full((40,), 8), tolerance=0.9).fit()
    assert calibration is None
    assert "too few rows" in reason and "inf" not in reason


@pytest.mark.parametrize("rank", [None, "auto"])
def test_what_is_learned_is_the_volume_of_a_live_row(rank: Any) -> None:
    """Rows that are zero throughout are known: they are no part of what the spectra must tell."""
    live = torch.randint(4, 9, (40,))
    each = double(40)
    zero = math.log(HOW.eps) if rank is None else 0.0
    volumes = live * each + (8 - live) * zero
    spectra = {4: each[:, None].expand(-1, 4)}
    calibration, _ = taught(volumes, spectra, live, tolerance=0.9, rank=rank).fit()
    assert calibration is not None
    features = torch.cat([spectra[4], 2 * live.double().log()[:, None]], 1)
    expected = Ridge.fit(features, each, live.double())
    torch.testing.assert_close(calibration.line.predict(features), expected.predict(features))
    assert calibration.line.error == pytest.approx(expected.error)


def test_volumes_that_are_all_alike_have_no_spread_to_be_a_share_of() -> None:
    volumes, spectra = torch.full((40,), 2.5).double(), {4: torch.ones(40, 4).double()}
    calibration, _ = taught(volumes, spectra, torch.full((40,), 8), tolerance=0.5).fit()
    assert calibration is not None
    assert calibration.line.error == 0


def test_an_encoder_of_one_dimension_is_exact_under_a_tolerance() -> None:
    a, x = double(3, 1), double(70, 3)
    found = jepa_score_details(lambda z: torch.tanh(z @ a), x, estimator="auto", tolerance=0.5)
    assert found.estimator == "exact"
    torch.testing.assert_close(found.score, jepa_score(lambda z: torch.tanh(z @ a), x))
    assert "too few rows of their Jacobian" in found.reason and "inf" not in found.reason


def smooth(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1)[:, :30] @ A.T / 5) * (-0.1 * x.flatten(1).square().mean(1)).exp()[:, None]


@pytest.mark.parametrize("chunk_size", [1, 9, None])
def test_scores_of_a_tolerance_keep_the_order_of_their_inputs(chunk_size: int | None) -> None:
    x = double(80, 30) * torch.logspace(-0.5, 0.7, 80)[torch.randperm(80), None]
    found = jepa_score_details(smooth, x, estimator="auto", tolerance=0.3, chunk_size=chunk_size)
    exact = jepa_score_details(smooth, x)
    assert found.estimator == "calibrated"
    torch.testing.assert_close(found.embeddings, exact.embeddings)
    few, others = split(80, 0)
    for name in ("score", "log_volume", "used", "rank", "sigma_max", "sigma_min", "standard_error"):
        torch.testing.assert_close(getattr(found, name)[few], getattr(exact, name)[few])
    assert bool((found.standard_error[others] > 0).all())
    p = int(re.match(r"(\d+) of 24 directions", found.reason)[1])  # type: ignore[index]
    assert p < 24
    correlation = torch.corrcoef(torch.stack([found.score[others], exact.score[others]]))[0, 1]
    assert float(correlation) > 0.9


def test_images_are_calibrated_too() -> None:
    pixels = torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8)
    pixels = (pixels * torch.linspace(0.1, 1, 70)[:, None, None, None]).to(torch.uint8)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    encoder = Encoder(module, module, lambda p: p.double() / 255, "mine")
    found = jepa_score_details(encoder, pixels, estimator="auto", tolerance=0.9)
    few, _ = split(70, 0)
    assert torch.equal((found.standard_error == 0).nonzero()[:, 0], few)
    torch.testing.assert_close(found.score[few], jepa_score(module, pixels.double() / 255)[few])
    torch.testing.assert_close(found.embeddings, module(pixels.double() / 255).detach())


@pytest.mark.parametrize("eps", [1e-6, 1e-160, 1e-200, 1e-300])
def test_a_log_spectrum_ends_at_eps(eps: float) -> None:
    found = _log_spectrum(torch.diag(torch.tensor([0.0, 1.0, 4.0]).double()), eps)
    expected = torch.tensor([2 * math.log(eps), 0.0, math.log(4)]).double()
    torch.testing.assert_close(found, expected)
