"""Power Spherical and the uniform distribution on the sphere against quadrature, scipy and Monte Carlo."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from probjepa.distributions import HypersphericalUniform, PowerSpherical

F64 = torch.float64


def directions(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=F64), dim=-1)


def paper_log_normalizer(kappa: float, dim: int) -> float:
    """The bracket of arXiv 2006.04437's density κ·log(1 + μᵀx) − [...], in scipy."""
    beta = (dim - 1) / 2
    alpha = beta + kappa
    gammas = special.gammaln(alpha) - special.gammaln(alpha + beta)
    return float((alpha + beta) * math.log(2) + gammas + beta * math.log(math.pi))


def paper_entropy(kappa: float, dim: int) -> float:
    beta = (dim - 1) / 2
    alpha = beta + kappa
    psi = special.digamma(alpha) - special.digamma(alpha + beta)
    return paper_log_normalizer(kappa, dim) - kappa * (math.log(2) + float(psi))


def log_area(dim: int) -> float:
    return math.log(2) + dim / 2 * math.log(math.pi) - float(special.gammaln(dim / 2))


# --- density, entropy, KL ------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 1e-3, 0.7, 12.0, 900.0])
@pytest.mark.parametrize("dim", [2, 3, 9, 512])
def test_log_prob_and_entropy_are_the_papers(dim: int, kappa: float) -> None:
    mu, x = directions(2, 6, dim, seed=dim)
    x = torch.cat([x, mu + 0.01 * x, -mu + 0.3 * x])
    p = PowerSpherical(3 * mu.repeat(3, 1), torch.full((18,), kappa, dtype=F64))
    cosine = (mu.repeat(3, 1) * x).sum(-1) / x.norm(dim=-1)
    expected = kappa * torch.log1p(cosine) - paper_log_normalizer(kappa, dim)

    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-9, atol=1e-9)
    assert p.entropy()[0].item() == pytest.approx(paper_entropy(kappa, dim), rel=1e-9, abs=1e-9)


def on_sphere(mu: Tensor, theta: np.ndarray) -> Tensor:
    """Points at angle θ from μ on one meridian: the density depends on θ alone."""
    other = torch.zeros_like(mu)
    other[mu.abs().argmin()] = 1
    tangent = torch.nn.functional.normalize(other - (other @ mu) * mu, dim=-1)
    t = torch.as_tensor(theta, dtype=F64)[:, None]
    return t.cos() * mu + t.sin() * tangent


@pytest.mark.parametrize("kappa", [0.0, 0.3, 5.0, 300.0])
@pytest.mark.parametrize("dim", [2, 3, 6])
def test_quadrature_over_the_sphere(dim: int, kappa: float) -> None:
    mu = directions(dim)
    p = PowerSpherical(mu, torch.tensor(kappa, dtype=F64))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    theta, weights = (nodes + 1) * math.pi / 2, weights * math.pi / 2
    # area of the ring at θ: that of S^(D−2) times sin^(D−2) θ; two points on the circle
    ring = 2.0 if dim == 2 else math.exp(log_area(dim - 1))
    weights = weights * ring * np.sin(theta) ** (dim - 2)
    log_p = p.log_prob(on_sphere(mu, theta)).numpy()
    density = np.exp(log_p)

    assert weights @ density == pytest.approx(1, abs=1e-7)
    assert -weights @ (density * log_p) == pytest.approx(p.entropy().item(), abs=1e-6)
    kl = weights @ (density * (log_p + log_area(dim)))
    assert kl == pytest.approx(kl_divergence(p, HypersphericalUniform(dim)).item(), abs=1e-6)
    mean = weights @ (density * np.cos(theta))
    torch.testing.assert_close(p.mean, float(mean) * mu, rtol=1e-6, atol=1e-7)


def test_zero_concentration_is_the_uniform_distribution() -> None:
    for dim in (2, 3, 64, 2048):
        uniform = HypersphericalUniform(dim, dtype=F64)
        x, mu = directions(2, 5, dim)
        p = PowerSpherical(mu, torch.zeros((), dtype=F64))
        torch.testing.assert_close(p.log_prob(x), uniform.log_prob(x), rtol=1e-12, atol=1e-9)
        assert uniform.entropy().item() == pytest.approx(log_area(dim), rel=1e-12)
        torch.testing.assert_close(p.entropy(), uniform.entropy().expand(5), rtol=1e-12, atol=1e-9)
        assert kl_divergence(p, uniform).abs().max() < 1e-9
        # to second order KL = ½κ²·Var(log(1 + t)) with t the cosine: a small κ keeps its digits
        small = kl_divergence(PowerSpherical(mu[0], torch.tensor(1e-2, dtype=F64)), uniform).item()
        beta = (dim - 1) / 2
        assert small == pytest.approx(
            0.5e-4 * (special.polygamma(1, beta) - special.polygamma(1, 2 * beta)), rel=0.05
        )


def test_rotating_everything_changes_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=F64)).Q
    x, mu = directions(2, 8, 16)
    kappa = torch.linspace(0, 50, 8, dtype=F64)
    there = PowerSpherical(mu @ rotation, kappa).log_prob(x @ rotation)
    torch.testing.assert_close(there, PowerSpherical(mu, kappa).log_prob(x), rtol=1e-10, atol=1e-10)


# --- samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 2.0, 80.0, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 33, 512])
def test_samples_have_the_law(dim: int, kappa: float) -> None:
    torch.manual_seed(dim)
    mu = directions(dim, seed=dim)
    p = PowerSpherical(mu, torch.tensor(kappa, dtype=F64))
    n = 4000
    x = p.sample(torch.Size([n]))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(n, dtype=F64))

    # ½(1 − μᵀx) ~ Beta(β, α)
    beta = (dim - 1) / 2
    test = stats.kstest(((x - mu).square().sum(-1) / 4).numpy(), stats.beta(beta, beta + kappa).cdf)
    assert test.pvalue > 1e-4
    # the rest has no direction: its mean is 0 within 5 standard errors, squared and summed
    rest = x - (x @ mu)[:, None] * mu
    assert rest.mean(0).square().sum() * n < rest.square().sum(-1).mean() * (1 + 5 * math.sqrt(2 / (dim - 1)))
    se = x.std(0) / math.sqrt(n)
    assert ((x.mean(0) - p.mean).abs() < 5 * se + 1e-12).all()
    log_p = -p.log_prob(x)
    assert (log_p.mean() - p.entropy()).abs() < 5 * log_p.std() / math.sqrt(n) + 1e-9


def test_uniform_samples_have_the_law() -> None:
    torch.manual_seed(0)
    for dim in (2, 5, 100):
        x = HypersphericalUniform(dim, [3]).rsample(torch.Size([2000]))
        assert x.shape == (2000, 3, dim)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(2000, 3))
        half = (1 - x[:, 0, 0].double().numpy()) / 2
        assert stats.kstest(half, stats.beta((dim - 1) / 2, (dim - 1) / 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("first", [0.9, -0.9, 1.0, -1.0])
@pytest.mark.parametrize("dim", [2, 3, 20])
def test_rsample_gradient_is_that_of_the_expectation(dim: int, first: float) -> None:
    # E[aᵀx + (aᵀx)²] with x = tμ + …: E[t] = κ/(κ+2β), E[t²] = Var t + E[t]², the tangent part isotropic
    torch.manual_seed(dim)
    mu = torch.zeros(dim, dtype=F64)
    mu[0], mu[1] = first, math.sqrt(1 - first**2)
    a = directions(dim, seed=9)
    beta = (dim - 1) / 2

    def expectation(mu: Tensor, kappa: Tensor) -> Tensor:
        total = kappa + 2 * beta
        t = kappa / total
        t2 = 4 * beta * (beta + kappa) / (total**2 * (total + 1)) + t**2
        mu = mu / mu.norm()
        cosine = a @ mu
        return t * cosine + t2 * cosine**2 + (1 - t2) / (dim - 1) * (1 - cosine**2)

    kappa = torch.tensor(4.0, dtype=F64)
    expected = torch.autograd.functional.jacobian(expectation, (mu, kappa))
    n = 20_000
    locs, kappas = mu.expand(n, dim).clone().requires_grad_(), kappa.expand(n).clone().requires_grad_()
    y = PowerSpherical(locs, kappas).rsample() @ a
    found = torch.autograd.grad((y + y.square()).sum(), (locs, kappas))
    for sampled, exact in zip(found, expected, strict=True):
        error = sampled.mean(0) - exact
        assert (error.abs() < 5 * sampled.std(0) / math.sqrt(n) + 1e-9).all()


def test_float32_samples_keep_their_spread_at_high_concentration() -> None:
    torch.manual_seed(0)
    mu = directions(3).float()
    x = PowerSpherical(mu, torch.tensor(1e6)).sample(torch.Size([4000]))
    half = (x - mu).double().square().sum(-1).numpy() / 4
    assert stats.kstest(half, stats.beta(1, 1 + 1e6).cdf).pvalue > 1e-4


# --- numerics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 64, 2048])
def test_float32_is_finite_and_near_float64(dim: int) -> None:
    mu64 = directions(dim)
    for kappa in (0.0, 1e-6, 1.0, 1e3, 1e6):
        for offset in (0.0, 1e-7, 1e-3, 1.0, 1e3, math.inf):  # from the mode to the antipode
            x64 = (mu64 + offset * directions(dim, seed=3)) if offset < math.inf else -mu64
            mu = mu64.float().requires_grad_()
            k = torch.tensor(kappa, requires_grad=True)
            x = x64.float().requires_grad_()
            p = PowerSpherical(mu, k)
            values = [p.log_prob(x), p.entropy(), kl_divergence(p, HypersphericalUniform(dim))]
            gradients = torch.autograd.grad(sum(values, torch.zeros(())), (mu, k, x))
            assert all(torch.isfinite(v).all() for v in (*values, *gradients))
            exact = PowerSpherical(mu.detach().double(), k.detach().double())
            expected = [
                exact.log_prob(x.detach().double()),
                exact.entropy(),
                kl_divergence(exact, HypersphericalUniform(dim, dtype=F64)),
            ]
            for value, want in zip(values, expected, strict=True):
                assert value.item() == pytest.approx(want.item(), rel=3e-6, abs=3e-6)


@pytest.mark.parametrize("kappa", [0.5, 30.0])
def test_gradients_are_autograds_of_the_papers_formula(kappa: float) -> None:
    x, mu = directions(2, 4, 7)
    k = torch.tensor(kappa, dtype=F64)

    def paper(mu: Tensor, k: Tensor, x: Tensor) -> Tensor:
        beta = 3.0
        cosine = (x * mu).sum(-1) / (x.norm(dim=-1) * mu.norm(dim=-1))
        gammas = torch.lgamma(beta + k) - torch.lgamma(2 * beta + k)
        log_p = k * torch.log1p(cosine) - (2 * beta + k) * math.log(2) - gammas - beta * math.log(math.pi)
        return log_p

    found = torch.autograd.functional.jacobian(lambda m, k, x: PowerSpherical(m, k).log_prob(x), (mu, k, x))
    for ours, theirs in zip(found, torch.autograd.functional.jacobian(paper, (mu, k, x)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_antipode_is_held_at_its_neighbourhood() -> None:
    mu = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    p = PowerSpherical(mu, torch.tensor(10.0, dtype=F64))
    theta = np.array([math.pi, math.pi - 0.5e-4, math.pi - 1e-4])
    at, within, edge = p.log_prob(on_sphere(mu, theta))
    assert at == within
    torch.testing.assert_close(at, edge, rtol=1e-6, atol=0)
    expected = 10 * math.log1p(math.cos(math.pi - 2e-4)) - paper_log_normalizer(10.0, 3)
    assert p.log_prob(on_sphere(mu, np.array([math.pi - 2e-4]))).item() == pytest.approx(expected, rel=1e-6)


# --- the interface of torch.distributions -------------------------------------------------------------


def test_shapes_broadcast_and_expand() -> None:
    p = PowerSpherical(directions(4, 1, 5), torch.rand(3, dtype=F64))
    assert isinstance(p, Distribution)
    assert p.batch_shape == (4, 3) and p.event_shape == (5,)
    x = p.rsample(torch.Size([2]))
    assert x.shape == (2, 4, 3, 5)
    assert p.log_prob(x).shape == (2, 4, 3)
    assert p.mean.shape == p.mode.shape == (4, 3, 5)
    assert p.entropy().shape == (4, 3)
    q = p.expand([7, 4, 3])
    assert q.batch_shape == (7, 4, 3) and q.sample().shape == (7, 4, 3, 5)
    torch.testing.assert_close(q.log_prob(x[0])[6], p.log_prob(x[0]))
    torch.testing.assert_close(q.mode[6], p.loc)
    assert kl_divergence(p, HypersphericalUniform(5, [2, 4, 3])).shape == (2, 4, 3)
    u = HypersphericalUniform(5).expand([6])
    assert u.batch_shape == (6,) and u.entropy().shape == (6,) and u.mean.shape == (6, 5)
    assert u.log_prob(x[0, 0, 0]).shape == (6,)
    with pytest.raises(RuntimeError, match="expand"):
        HypersphericalUniform(5, [3]).expand([2])


@pytest.mark.parametrize("batch", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch_is_a_batch(batch: tuple[int, ...]) -> None:
    none = torch.zeros(*batch, 5)
    for p in (PowerSpherical(none, 1.0), HypersphericalUniform(5, batch)):
        assert p.log_prob(none).shape == p.entropy().shape == batch
        assert p.sample().shape == (*batch, 5) and p.sample(torch.Size([2])).shape == (2, *batch, 5)
        for wrong in (torch.zeros(*batch, 7), torch.zeros(3, 0)):
            with pytest.raises(ValueError, match="5 dimensions"):
                p.log_prob(wrong)
    assert PowerSpherical(directions(4, 1, 5), 1.0).sample(torch.Size([0])).shape == (0, 4, 1, 5)


def test_half_precision_is_computed_in_float32() -> None:
    p = PowerSpherical(directions(3, 8).bfloat16(), torch.ones(3).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert p.log_prob(directions(3, 8).bfloat16()).dtype == torch.float32
        assert p.entropy().dtype == p.sample().dtype == torch.float32


def test_wrong_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        PowerSpherical(torch.ones(3, 1), 1.0)
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        HypersphericalUniform(1)
    with pytest.raises(ValueError, match="concentration"):
        PowerSpherical(torch.ones(3), -1.0)
    with pytest.raises(ValueError, match="loc"):
        PowerSpherical(torch.tensor([math.nan, 1.0]), 1.0)
    with pytest.raises(ValueError, match="dimensions, 3 and 4"):
        kl_divergence(PowerSpherical(torch.ones(3), 1.0), HypersphericalUniform(4))


def test_the_circle_is_the_one_dimensional_quadrature() -> None:
    p = PowerSpherical(torch.tensor([0.0, 1.0], dtype=F64), torch.tensor(3.0, dtype=F64))

    def density(phi: float) -> float:
        return p.log_prob(torch.tensor([math.cos(phi), math.sin(phi)], dtype=F64)).exp().item()

    assert integrate.quad(density, 0, 2 * math.pi)[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 16, 512])
@pytest.mark.parametrize("kappa", [9e3, 1.1e4, 1e6, 1e12, 1e16, 1e20])
def test_the_constants_keep_their_digits_at_a_large_concentration(dim: int, kappa: float) -> None:
    with mpmath.workdps(80):
        beta = mpmath.mpf(dim - 1) / 2
        alpha = kappa + beta
        log_scale = mpmath.loggamma(alpha + beta) - mpmath.loggamma(alpha) - beta * mpmath.log(4 * mpmath.pi)
        entropy = kappa * (mpmath.digamma(alpha + beta) - mpmath.digamma(alpha)) - log_scale
        kl = (
            mpmath.log(2) + mpmath.mpf(dim) / 2 * mpmath.log(mpmath.pi) - mpmath.loggamma(mpmath.mpf(dim) / 2)
        )
        kl -= entropy
    mode = torch.eye(dim, dtype=F64)[0]
    concentration = torch.tensor(kappa, dtype=F64, requires_grad=True)
    p = PowerSpherical(mode, concentration)
    rel = 1e-11 if kappa < 1e4 else 1e-14
    assert p.log_prob(mode).item() == pytest.approx(float(log_scale), rel=rel)
    assert p.entropy().item() == pytest.approx(float(entropy), rel=rel)
    found = kl_divergence(p, HypersphericalUniform(dim))
    assert found.item() == pytest.approx(float(kl), rel=rel)
    (slope,) = torch.autograd.grad(found, concentration)
    assert slope.item() == pytest.approx((dim - 1) / 2 / kappa, rel=0.1)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="κ must be finite"):
        PowerSpherical(torch.eye(3)[0], math.inf)
    with pytest.raises(ValueError, match="complex"):
        PowerSpherical(torch.eye(3)[0] + 1j, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_uniform_density_has_the_digits_of_its_value(dtype: torch.dtype) -> None:
    x = torch.nn.functional.normalize(torch.ones(3, 4, dtype=F64), dim=-1)
    for uniform, of in (
        (HypersphericalUniform(4), x),
        (HypersphericalUniform(4, [3], dtype=F64), x.to(dtype)),
    ):
        found = uniform.log_prob(of)
        assert found.dtype == F64 and found.tolist() == [-math.log(2 * math.pi**2)] * 3
    assert HypersphericalUniform(4).log_prob(x.to(torch.float32)).dtype == torch.float32
