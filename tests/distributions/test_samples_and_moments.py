"""Samples, means and variances against scipy, torch and quadrature; what has none says why; what it prints."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from student_t_cases import CLASSES, INF, randn
from torch import Tensor
from torch.distributions import StudentT

from probjepa.distributions import (
    HypersphericalUniform,
    MultivariateStudentT,
    PolarStudentT,
    PolarStudentTMixture,
    PowerSpherical,
    TangentStudentT,
)

F64 = torch.float64
DFS = [0.5, 1.0, 1.5, 2.0, 2.5, 7.0, 1e6]


def student_t(df: float | Tensor = 5.0, *shape: int, dim: int = 4) -> MultivariateStudentT:
    return MultivariateStudentT(randn(*shape, dim, seed=1), randn(*shape, dim, seed=2).exp(), df)


# --- the multivariate Student-t -------------------------------------------------------------------------


@pytest.mark.parametrize("df", DFS)
def test_mean_and_variance_are_torchs(df: float) -> None:
    ours = student_t(df, 3)
    theirs = StudentT(df, ours.loc, ours.scale_squared.sqrt())
    torch.testing.assert_close(ours.mean, theirs.mean, equal_nan=True)
    torch.testing.assert_close(ours.variance, theirs.variance, equal_nan=True)
    torch.testing.assert_close(ours.stddev, theirs.stddev, equal_nan=True)


def test_gaussian_limit_and_a_tensor_of_degrees_of_freedom() -> None:
    gaussian = student_t(INF, 3)
    torch.testing.assert_close(gaussian.variance, gaussian.scale_squared)
    torch.testing.assert_close(gaussian.mean, gaussian.loc)
    df = torch.tensor([*DFS, INF], dtype=F64)
    mixed = student_t(df, len(df))
    for i, nu in enumerate(df.tolist()):
        alone = MultivariateStudentT(mixed.loc[i], mixed.scale_squared[i], nu)
        torch.testing.assert_close(mixed.variance[i], alone.variance, equal_nan=True)
        torch.testing.assert_close(mixed.mean[i], alone.mean, equal_nan=True)


@pytest.mark.parametrize("df", [0.7, 1.0, 3.0, 40.0, INF])
def test_samples_are_those_of_the_density(df: float) -> None:
    torch.manual_seed(0)
    distribution = student_t(df)
    drawn = ((distribution.sample((20_000,)) - distribution.loc) / distribution.scale_squared.sqrt()).numpy()
    marginal = stats.norm() if math.isinf(df) else stats.t(df)
    for column in drawn.T:
        assert stats.kstest(column, marginal.cdf).pvalue > 1e-3
    # one χ² for all coordinates: the squared length over D is Fisher's F, not a mean of independent squares
    length = (drawn**2).mean(1)
    fisher = stats.chi2(4, scale=1 / 4) if math.isinf(df) else stats.f(4, df)
    assert stats.kstest(length, fisher.cdf).pvalue > 1e-3


def test_samples_of_each_row_have_its_own_degrees_of_freedom() -> None:
    torch.manual_seed(0)
    df = torch.tensor([1.0, 4.0, INF], dtype=F64)
    drawn = MultivariateStudentT(torch.zeros(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64), df).sample(
        (9000,)
    )
    assert drawn.shape == (9000, 3, 2) and drawn.dtype == F64
    for row, marginal in zip(drawn.unbind(1), (stats.t(1), stats.t(4), stats.norm()), strict=True):
        assert stats.kstest(row[:, 0].numpy(), marginal.cdf).pvalue > 1e-3


def test_samples_are_differentiable() -> None:
    loc, variance = randn(3, seed=1).requires_grad_(), randn(3, seed=2).exp().requires_grad_()
    df = torch.tensor(5.0, dtype=F64, requires_grad=True)
    torch.manual_seed(0)
    drawn = MultivariateStudentT(loc, variance, df).rsample((50_000,))
    by_loc, by_variance, by_df = torch.autograd.grad(drawn.square().mean(0).sum(), (loc, variance, df))
    # E[h²] = z² + σ²·ν/(ν − 2)
    torch.testing.assert_close(by_loc, 2 * loc.detach(), rtol=0.05, atol=0.05)
    torch.testing.assert_close(by_variance, torch.full((3,), 5 / 3, dtype=F64), rtol=0.1, atol=0)
    assert by_df.item() == pytest.approx(-2 / 9 * variance.sum().item(), rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_heavy_tails_stay_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drawn = MultivariateStudentT(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype), 0.3).sample((9000,))
    assert drawn.dtype == dtype and drawn.isfinite().all()


# --- distributions on the sphere ------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 0.3, 5.0, 300.0])
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_power_spherical_variance_is_the_quadratures_and_the_samples(dim: int, kappa: float) -> None:
    mu = randn(dim, seed=3)
    mu = mu / mu.norm()
    p = PowerSpherical(mu, torch.tensor(kappa, dtype=F64))

    def moment(power: int) -> float:
        """∫ tᵏ p(t) dt, t = μᵀx in (−1, 1), whose density is ∝ (1 + t)^κ (1 − t²)^((D−3)/2)."""
        beta = stats.beta((dim - 1) / 2 + kappa, (dim - 1) / 2)
        return float(integrate.quad(lambda q: (2 * beta.ppf(q) - 1) ** power, 0, 1, epsabs=1e-10)[0])

    first, second = moment(1), moment(2)
    expected = (second - first**2) * mu.square() + (1 - second) / (dim - 1) * (1 - mu.square())
    torch.testing.assert_close(p.variance, expected, rtol=1e-5, atol=1e-8)
    torch.manual_seed(0)
    torch.testing.assert_close(p.sample((40_000,)).var(0), p.variance, rtol=0.05, atol=1e-4)


def test_uniform_variance() -> None:
    torch.manual_seed(0)
    uniform = HypersphericalUniform(5, (2,), dtype=F64)
    assert torch.equal(uniform.variance, torch.full((2, 5), 0.2, dtype=F64))
    torch.testing.assert_close(uniform.sample((40_000,)).var(0), uniform.variance, rtol=0.05, atol=0)
    nearly = PowerSpherical(torch.ones(5, dtype=F64), torch.zeros((), dtype=F64))
    torch.testing.assert_close(nearly.variance, uniform.variance[0])


# --- sub-densities --------------------------------------------------------------------------------------


def polar_mass(sigma: float, df: float, length: float) -> float:
    """∫∫ p(h) over angle and length, D = 2: the whole mass of a polar Student-t."""
    z = torch.tensor([length, 0.0], dtype=F64)
    distribution = PolarStudentT(z, torch.full((2,), sigma**2, dtype=F64), df)
    angle = torch.linspace(-math.pi, math.pi, 4001, dtype=F64)[:-1] + math.pi / 4000
    # the grid of lengths is uniform in a variable whose image is (0, ∞)
    q = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    r = q / (1 - q)
    weight = (2 * math.pi / 4000) * (1 / 4000) / (1 - q).square()
    radial = distribution.log_prob(torch.stack([r, 0 * r], -1)) - distribution.directional.log_prob(z)
    directions = torch.stack([angle.cos(), angle.sin()], -1)
    directional = distribution.directional.log_prob(directions)
    return float(directional.exp().sum() * (radial.exp() * weight).sum())


@pytest.mark.parametrize(("sigma", "df", "length"), [(0.5, 1.0, 2.0), (2.0, 1.0, 0.5), (0.1, 3.0, 1.0)])
def test_polar_student_t_is_a_sub_density(sigma: float, df: float, length: float) -> None:
    student = stats.t(df)
    # what is lost: tangent vectors beyond π (D − 1 = 1 here) and lengths below 0
    expected = (1 - 2 * student.sf(math.pi / sigma)) * student.cdf(length)
    assert polar_mass(sigma, df, length) == pytest.approx(expected, abs=1e-4)
    assert expected < 1


def sub_densities() -> list[TangentStudentT | PolarStudentT | PolarStudentTMixture]:
    z, variance = randn(3, 4, seed=1), randn(3, 4, seed=2).exp()
    return [TangentStudentT(z, variance), PolarStudentT(z, variance), PolarStudentTMixture(z, variance)]


@pytest.mark.parametrize("distribution", sub_densities(), ids=lambda d: type(d).__name__)
def test_a_sub_density_says_why_it_has_no_samples(distribution: TangentStudentT) -> None:
    name = type(distribution).__name__
    assert not distribution.has_rsample
    for draw in (distribution.sample, distribution.rsample):
        with pytest.raises(
            NotImplementedError, match=rf"^{name} has no samples: its mass is below 1 \(\S.*\)$"
        ):
            draw((2,))
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=f"{name} has no {moment}: its mass is below 1"):
            getattr(distribution, moment)


# --- what they keep and print ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_the_given_variance_is_kept_as_the_squared_scale(cls: type) -> None:
    variance = randn(4, seed=2).exp()
    distribution = cls(randn(3, 4, seed=1), variance, 2.0)
    torch.testing.assert_close(distribution.scale_squared, variance.expand(3, 4))
    torch.testing.assert_close(distribution.expand((5, 3)).scale_squared, variance.expand(5, 3, 4))
    with pytest.raises(ValueError, match=r"variance \(σ²\) must be positive: 1 of 4 are not"):
        cls(randn(3, 4, seed=1), torch.tensor([1.0, 1.0, math.nan, 1.0]))
    cls(randn(3, 4, seed=1), -variance, validate_args=False)


def test_what_they_print() -> None:
    shapes = "batch_shape: torch.Size([3]), event_shape: torch.Size([4])"
    parameters = "scale_squared: torch.Size([3, 4]), df: 5.0"
    z, variance = randn(3, 4), torch.ones(4, dtype=F64)
    assert repr(student_t(5.0, 3)) == f"MultivariateStudentT({shapes}, loc: torch.Size([3, 4]), {parameters})"
    assert repr(TangentStudentT(z, variance, 5.0)) == (
        f"TangentStudentT({shapes}, loc: torch.Size([3, 4]), {parameters})"
    )
    assert repr(PolarStudentT(z, variance, torch.tensor(5.0))) == (
        f"PolarStudentT({shapes}, z: torch.Size([3, 4]), {parameters}, center_log_variance: False)"
    )
    assert repr(PolarStudentTMixture(z, variance.expand(3, 4), skip=1)) == (
        "PolarStudentTMixture(batch_shape: torch.Size([]), event_shape: torch.Size([4]), "
        "centers: torch.Size([3, 4]), scale_squared: torch.Size([3, 4]), df: 1.0, scale: 1.0, skip: 1)"
    )
    assert repr(PowerSpherical(z[0], 2.0)) == (
        "PowerSpherical(batch_shape: torch.Size([]), event_shape: torch.Size([4]), "
        "loc: torch.Size([4]), concentration: 2.0)"
    )
    assert repr(HypersphericalUniform(4, (3,))) == f"HypersphericalUniform({shapes}, dim: 4)"
