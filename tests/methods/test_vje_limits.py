"""The reductions of VJE's objective at its boundary settings: cosine, squared error and norm losses.

Everywhere: no KL, no draws (z is the mean), a fixed variance, and ν = ∞ unless the test is about ν. z comes in
float64 and h is a table of float32 numbers, so that the losses are computed in float64 from known inputs.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probjepa import VJE

N = 6  # pairs of views
INF = math.inf


class Table(nn.Module):
    """An encoder whose embeddings are its parameters: row i for image i."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.embedding_dim = rows.shape[1]
        self.rows = nn.Parameter(rows.float())

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[: len(images)].clone()


class Free(nn.Module):
    """Posterior means that are parameters, whatever the embeddings, at a fixed variance."""

    def __init__(self, z: Tensor, variance: float | Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z.double())
        self.variance = torch.as_tensor(variance, dtype=torch.float64)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.z, self.variance.expand(self.z.shape)


class Predicted(nn.Module):
    """Posterior means from a linear predictor of the embedding, at a fixed variance."""

    def __init__(self, weight: Tensor, variance: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.double())
        self.variance = variance

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        z = h.double() @ self.weight
        return z, torch.full_like(z, self.variance)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def vje(rows: Tensor, inference: nn.Module, df: float = INF, **settings: Any) -> VJE:
    model = VJE(Table(rows), channels=1, image_size=8, df=df, draws=0, kl_weight=0, **settings)
    model.inference = inference
    return model


def loss_of(model: VJE) -> Tensor:
    return model.loss([torch.zeros(N, 1, 8, 8)] * 2)["loss"]


def targets(rows: Tensor) -> Tensor:
    """The other view's embedding for each row, as the float32 numbers that the encoder holds."""
    return torch.cat([rows[N:], rows[:N]]).float().double()


def at_angle(target: Tensor, theta: float, seed: int = 7) -> Tensor:
    """Vectors of norms between 1 and 3 at an angle θ from each target."""
    u = unit(target)
    w = randn(seed, *target.shape)
    tangent = unit(w - (w * u).sum(-1, keepdim=True) * u)
    return (math.cos(theta) * u + math.sin(theta) * tangent) * torch.linspace(1, 3, len(u)).double()[:, None]


def cosine_loss(z: Tensor, target: Tensor) -> Tensor:
    """1 − cos, as SimSiam's and BYOL's up to a constant and a factor."""
    return (1 - (unit(z) * unit(target)).sum(-1)).mean()


def free_case(
    dim: int, theta: float, variance: float, df: float = INF, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Loss with every z at θ from its target, and its gradient by z."""
    rows = 2 * randn(dim, 2 * N, dim)
    inference = Free(at_angle(targets(rows), theta), variance)
    loss = loss_of(vje(rows, inference, df, **settings))
    return loss.detach(), torch.autograd.grad(loss, inference.z)[0]


def cosine_gradient(dim: int, theta: float) -> Tensor:
    target = targets(2 * randn(dim, 2 * N, dim))
    z = at_angle(target, theta).requires_grad_()
    return torch.autograd.grad(cosine_loss(z, target), z)[0]


# --- directional alone: the cosine loss ---------------------------------------------------------------


@pytest.mark.parametrize("variance", [1e-3, 0.4, 5.0])
@pytest.mark.parametrize("theta", [1e-4, 0.03, 0.9, 2.5])
@pytest.mark.parametrize("dim", [2, 3, 24])
def test_directional_is_half_the_squared_angle_plus_known_terms(
    dim: int, theta: float, variance: float
) -> None:
    loss, gradient = free_case(dim, theta, variance, radial=False)

    scale = 0.5 * (dim - 1) * math.log(variance)
    jacobian = (dim - 2) * math.log(math.sin(theta) / theta)
    assert loss.item() == pytest.approx(theta**2 / (2 * variance) + scale + jacobian, rel=1e-9, abs=1e-10)
    # d(½θ²) = θ dθ and d(1 − cos θ) = sin θ dθ: the same direction as the cosine loss's at every angle
    jacobian_slope = (dim - 2) * (1 / math.tan(theta) - 1 / theta)
    factor = (theta / variance + jacobian_slope) / math.sin(theta)
    torch.testing.assert_close(
        gradient, factor * cosine_gradient(dim, theta), rtol=1e-6, atol=1e-7 * gradient.abs().max().item()
    )


@pytest.mark.parametrize("dim", [2, 24])
def test_directional_tends_to_the_cosine_loss_with_an_error_of_fourth_order(dim: int) -> None:
    variance = 1e-2
    errors = []
    for theta in (0.4, 0.2, 0.1, 0.05):
        loss, _ = free_case(dim, theta, variance, radial=False)
        known = 0.5 * (dim - 1) * math.log(variance) + (dim - 2) * math.log(math.sin(theta) / theta)
        errors.append(abs(loss.item() - known - (1 - math.cos(theta)) / variance))
    assert errors[-1] == pytest.approx(0.05**4 / (24 * variance), rel=1e-2)
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(16, rel=0.02)


@pytest.mark.parametrize("dim", [2, 24])
def test_directional_gradient_tends_to_the_cosine_losss(dim: int) -> None:
    # the Jacobian is of second order in θ too: it takes (D−2)/3 from the precision 1/σ²
    variance = 1e-2
    precision = 1 / variance - (dim - 2) / 3
    errors = []
    for theta in (0.2, 0.1, 0.05):
        _, gradient = free_case(dim, theta, variance, radial=False)
        expected = precision * cosine_gradient(dim, theta)
        errors.append(((gradient - expected).norm() / expected.norm()).item())
    assert errors[-1] < 2e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.02)


def test_a_gaussian_directional_term_repels_where_the_jacobian_outweighs_it() -> None:
    # above σ² = 3/(D−2) the loss at ν = ∞ falls away from θ = 0: there it is no cosine loss of any weight
    dim = 24
    for variance, sign in ((0.9 * 3 / 22, 1), (1.1 * 3 / 22, -1)):
        near, far = (free_case(dim, theta, variance, radial=False)[0] for theta in (0.01, 0.02))
        assert torch.sign(far - near) == sign


def test_through_a_predictor_it_is_simsiam() -> None:
    dim, variance = 8, 1e-2
    base = 2 * randn(0, N, dim)
    errors = []
    for step in (0.04, 0.02):
        rows = torch.cat([base + step * randn(1, N, dim), base - step * randn(2, N, dim)])
        model = vje(rows, Predicted(torch.eye(dim) + step * randn(3, dim, dim) / dim, variance), radial=False)
        parameters = (model.encoder.rows, model.inference.weight)
        found = torch.autograd.grad(loss_of(model), parameters)

        h = model.encoder.rows.double()
        p1, p2 = (h @ model.inference.weight).chunk(2)
        h1, h2 = h.detach().chunk(2)
        simsiam = -0.5 * (nn.functional.cosine_similarity(p1, h2) + nn.functional.cosine_similarity(p2, h1))
        plain = torch.autograd.grad(simsiam.mean(), parameters)
        precision = 1 / variance - (dim - 2) / 3
        errors.append(
            max(
                ((a - precision * b).norm() / (precision * b).norm()).item()
                for a, b in zip(found, plain, strict=True)
            )
        )
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


# --- radial alone, and the standard likelihood: exact --------------------------------------------------


def test_radial_is_the_squared_error_of_the_norms() -> None:
    rows, z = 2 * randn(0, 2 * N, 9), randn(1, 2 * N, 9)
    inference = Free(z, 0.3)
    loss = loss_of(vje(rows, inference, directional=False))

    plain = 0.5 * (targets(rows).norm(dim=-1) - inference.z.norm(dim=-1)).square().mean()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, inference.z)[0] for x in (loss, plain)))


@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_standard_is_the_squared_error(variance: float) -> None:
    dim = 9
    model = vje(2 * randn(0, 2 * N, dim), Predicted(randn(1, dim, dim), variance), likelihood="standard")
    parameters = (model.encoder.rows, model.inference.weight)
    loss = loss_of(model)

    h = model.encoder.rows.double()
    z1, z2 = (h @ model.inference.weight).chunk(2)
    h1, h2 = h.detach().chunk(2)
    squared = 0.5 * ((h2 - z1).square().sum(-1) + (h1 - z2).square().sum(-1)).mean() / 2
    plain = squared / variance + 0.5 * dim * math.log(variance)
    torch.testing.assert_close(loss, plain)
    found, expected = (torch.autograd.grad(x, parameters) for x in (loss, plain))
    torch.testing.assert_close(found, expected)


def test_both_polar_terms_tend_to_the_squared_error() -> None:
    # ‖h′ − z‖² = r² + 2‖h′‖‖z‖(1 − cos θ): the polar loss at σ² = 1/(‖h′‖‖z‖), but for its Jacobian
    dim = 5
    rows = 2 * randn(dim, 2 * N, dim)
    target = targets(rows)
    errors = []
    for theta in (0.2, 0.1, 0.05):
        z = at_angle(target, theta)
        variance = 1 / (target.norm(dim=-1) * z.norm(dim=-1))
        loss = loss_of(vje(rows, Free(z, variance[:, None])))
        scale = 0.5 * (dim - 1) * variance.log().mean()
        jacobian = (dim - 2) * math.log(math.sin(theta) / theta)
        errors.append((loss - scale - jacobian - 0.5 * (target - z).square().sum(-1).mean()).abs().item())
    assert errors[-1] == pytest.approx(0.05**4 / 24 * (1 / variance).mean().item(), rel=1e-2)
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(16, rel=0.02)


# --- ν → ∞ ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"radial": False}, {"directional": False}, {"likelihood": "standard"}]
)
def test_large_df_approaches_the_gaussian_limit(settings: dict[str, Any]) -> None:
    limit, limit_gradient = free_case(6, 0.3, 0.2, INF, **settings)
    errors = []
    for df in (1e6, 1e8):
        loss, gradient = free_case(6, 0.3, 0.2, df, **settings)
        errors.append(((loss - limit).abs().item(), (gradient - limit_gradient).norm().item()))
    # the error is of order 1/ν
    for coarse, fine in zip(*errors, strict=True):
        assert coarse / fine == pytest.approx(100, rel=0.05)
    assert errors[-1][0] < 1e-5 * abs(limit) and errors[-1][1] < 1e-5 * limit_gradient.norm()


def test_small_df_is_far_from_the_limit() -> None:
    # at ν = 1 the directional loss is ½D·log(1 + θ²/σ²): the guard on the tests above
    loss, _ = free_case(6, 0.3, 0.2, 1.0, radial=False)
    expected = 3 * math.log(1 + 0.09 / 0.2) + 2.5 * math.log(0.2) + 4 * math.log(math.sin(0.3) / 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
