"""The Student-t likelihoods against scipy, mpmath, quadrature and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from student_t_cases import (
    CLASSES,
    INF,
    grads,
    log_jacobian,
    pair_at_angle,
    randn,
    scipy_logpdf,
    tangent_basis,
    unit,
)
from torch import Tensor

from probjepa.distributions import MultivariateStudentT, PolarStudentT, TangentStudentT, student_t

# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 1e-6, 0.02, 0.5, 1.7, 3.0])
@pytest.mark.parametrize("df", [0.5, 1.0, 7.0, INF])
@pytest.mark.parametrize("dim", [2, 3, 17])
def test_directional_density_is_scipys_in_a_tangent_basis(dim: int, df: float, theta: float) -> None:
    rng = np.random.default_rng(dim)
    s, u = pair_at_angle(rng, dim, theta)
    variance = 10 ** rng.uniform(-2, 2, dim)
    v = (theta / math.sin(theta) if theta else 1.0) * (u - math.cos(theta) * s)
    basis = tangent_basis(s)
    expected = scipy_logpdf(basis.T @ v, basis.T @ np.diag(variance) @ basis, df)

    found = TangentStudentT(torch.tensor(3 * s), torch.tensor(variance), df).log_prob(torch.tensor(0.2 * u))

    assert found.item() + log_jacobian(theta, dim) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def radial_nodes(sigma: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on θ ∈ (0, π), dense near 0 on the scale of σ (θ = σ·sinh x)."""
    x, weights = np.polynomial.legendre.leggauss(n)
    top = math.asinh(math.pi / sigma) / 2
    x, weights = top * (x + 1), top * weights
    return sigma * np.sinh(x), weights * sigma * np.cosh(x)


def circle_mass(s: np.ndarray, variance: np.ndarray, df: float) -> float:
    theta, weights = radial_nodes(float(np.sqrt(variance.min())), 400)
    turn = np.concatenate([theta, -theta]) + math.atan2(s[1], s[0])
    u = torch.tensor(np.column_stack([np.cos(turn), np.sin(turn)]))
    density = TangentStudentT(torch.tensor(s), torch.tensor(variance), df).log_prob(u).exp().numpy()
    return float(density @ np.concatenate([weights, weights]))


def circle_mass_expected(s: np.ndarray, variance: np.ndarray, df: float) -> float:
    scale = math.sqrt(variance @ np.array([s[1], -s[0]]) ** 2)
    return 1 - 2 * float(stats.t(df).sf(math.pi / scale))


def sphere_mass(s: np.ndarray, variance: np.ndarray, df: float) -> float:
    theta, weights = radial_nodes(float(np.sqrt(variance.min())), 120)
    phi = np.arange(240) * (2 * math.pi / 240)  # periodic: equal weights converge geometrically
    tangents = np.column_stack([np.cos(phi), np.sin(phi)]) @ tangent_basis(s).T
    u = np.cos(theta)[:, None, None] * s + np.sin(theta)[:, None, None] * tangents
    log_prob = TangentStudentT(torch.tensor(s), torch.tensor(variance), df).log_prob(torch.tensor(u))
    return float(weights * np.sin(theta) @ log_prob.exp().numpy().sum(1) * (2 * math.pi / 240))


def sphere_mass_expected(s: np.ndarray, variance: np.ndarray, df: float) -> float:
    """Mass of the plane's bivariate Student-t in the disc ‖v‖ ≤ π: the radius by hand, the angle by quad."""
    shape = tangent_basis(s).T @ np.diag(variance) @ tangent_basis(s)
    precision = np.linalg.inv(shape)

    def ray(phi: float) -> float:
        e = np.array([math.cos(phi), math.sin(phi)])
        q = e @ precision @ e
        tail = math.exp(-(math.pi**2) * q / 2) if math.isinf(df) else (1 + math.pi**2 * q / df) ** (-df / 2)
        return float((1 - tail) / q)

    total = integrate.quad(ray, 0, math.pi, epsabs=1e-12, limit=200)[0] * 2
    return float(total / (2 * math.pi * math.sqrt(np.linalg.det(shape))))


@pytest.mark.parametrize("df", [0.5, 1.0, 4.0, INF])
@pytest.mark.parametrize(
    ("dim", "mass", "expected"),
    [(2, circle_mass, circle_mass_expected), (3, sphere_mass, sphere_mass_expected)],
    ids=["circle", "sphere"],
)
def test_mass_on_the_sphere_is_that_of_the_tangent_ball(
    dim: int, mass: Callable[..., float], expected: Callable[..., float], df: float
) -> None:
    s = unit(np.array([0.5, -1.0, 0.8])[:dim])
    anisotropy = np.array([0.3, 1.0, 2.5])[:dim]
    masses = []
    for sigma in (3.0, 0.5, 0.05, 1e-3):
        found = mass(s, sigma**2 * anisotropy, df)
        assert found == pytest.approx(expected(s, sigma**2 * anisotropy, df), abs=1e-6)
        assert found <= 1 + 1e-6
        masses.append(found)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(masses))
    # the tail beyond π falls as σ^ν
    assert 1 - masses[-1] <= 2 * 1e-3 ** min(df, 2)


@pytest.mark.parametrize("df", [1.0, INF])
def test_isotropic_likelihood_is_rotation_invariant(df: float) -> None:
    dim = 12
    rotation = torch.tensor(stats.ortho_group(dim, seed=1).rvs())
    z, h = randn(20, dim, seed=1), randn(20, dim, seed=2)
    variance = torch.full((dim,), 0.3, dtype=torch.float64)
    for cls in CLASSES:
        plain = cls(z, variance, df).log_prob(h)
        turned = cls(z @ rotation, variance, df).log_prob(h @ rotation)
        torch.testing.assert_close(turned, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("df", [0.5, 1.0, 7.0, 1e8, INF])
def test_radial_part_is_a_unit_scale_student_t(df: float) -> None:
    z, h = randn(50, 6, seed=1), 5 * randn(50, 6, seed=2)
    polar = PolarStudentT(z, torch.ones(6, dtype=torch.float64), df)
    expected = stats.t(df, loc=z.norm(dim=-1).numpy(), scale=1).logpdf(h.norm(dim=-1).numpy())
    if math.isinf(df):
        expected = stats.norm(z.norm(dim=-1).numpy()).logpdf(h.norm(dim=-1).numpy())
    np.testing.assert_allclose(
        (polar.log_prob(h) - polar.directional.log_prob(h)).numpy(), expected, atol=1e-7
    )
    torch.testing.assert_close(polar.nll(h), polar.directional_nll(h) + polar.radial_nll(h))


@pytest.mark.parametrize("df", [0.5, 1.0, 7.0, INF])
def test_multivariate_student_t_is_scipys(df: float) -> None:
    rng = np.random.default_rng(0)
    loc, h, variance = rng.standard_normal(5), rng.standard_normal((9, 5)), 10 ** rng.uniform(-2, 2, 5)
    found = MultivariateStudentT(torch.tensor(loc), torch.tensor(variance), df).log_prob(torch.tensor(h))
    expected = [scipy_logpdf(row - loc, np.diag(variance), df) for row in h]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_center_log_variance_divides_by_the_geometric_mean_in_the_directional_term_only() -> None:
    z, h, variance = randn(4, 6, seed=1), randn(4, 6, seed=2), randn(4, 6, seed=3).exp()
    centred = PolarStudentT(z, variance, 3.0, center_log_variance=True)
    by_hand = variance / torch.tensor(stats.gmean(variance.numpy(), axis=-1, keepdims=True))
    torch.testing.assert_close(centred.directional_nll(h), TangentStudentT(z, by_hand, 3.0).nll(h))
    torch.testing.assert_close(centred.directional_nll(h), PolarStudentT(z, 7 * by_hand, 3.0,
        center_log_variance=True).directional_nll(h))  # fmt: skip
    torch.testing.assert_close(centred.radial_nll(h), PolarStudentT(z, variance, 3.0).radial_nll(h))
    torch.testing.assert_close(centred.scale_squared, variance)


# --- degrees of freedom -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_large_df_approaches_the_gaussian(cls: type) -> None:
    z, h, variance = randn(30, 8, seed=1), randn(30, 8, seed=2), randn(30, 8, seed=3).exp()
    gaussian = cls(z, variance, INF).log_prob(h)
    errors = [(cls(z, variance, df).log_prob(h) - gaussian).abs().max().item() for df in (1e4, 1e6, 1e8)]
    # first order in 1/ν
    assert errors[1] < 2e-2 * errors[0]
    assert errors[2] < 2e-4 * errors[0] + 1e-6  # the last for the rounding of lgamma(5e7)


@pytest.mark.parametrize("cls", CLASSES)
def test_tensor_df_equals_the_number_row_by_row(cls: type) -> None:
    z, h, variance = randn(5, 4, seed=1), randn(5, 4, seed=2), randn(5, 4, seed=3).exp()
    df = torch.tensor([0.5, 1.0, INF, 20.0, 1e9], dtype=torch.float64, requires_grad=True)
    mixed = cls(z, variance, df).log_prob(h)
    for i, nu in enumerate(df.tolist()):
        torch.testing.assert_close(
            mixed[i], cls(z[i], variance[i], nu).log_prob(h[i]), rtol=1e-12, atol=1e-12
        )
    assert torch.autograd.grad(mixed.sum(), df)[0].isfinite().all()


@pytest.mark.parametrize("dim", [1, 2, 9, 511, 2047])
def test_log_normalizer_is_mpmaths_on_both_sides_of_its_series(dim: int) -> None:
    for df in (
        0.5,
        1.0,
        3.0,
        50.0,
        1e4,
        2e4 * (1 - 1e-9),
        2e4,
        2e4 * (1 + 1e-9),
        1e8,
        1e10,
        1e15,
        1e25,
        INF,
    ):
        with mpmath.workdps(60):
            nu = mpmath.mpf(df)
            expected = -mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi)
            if math.isfinite(df):
                expected = mpmath.loggamma((nu + dim) / 2) - mpmath.loggamma(nu / 2)
                expected -= mpmath.mpf(dim) / 2 * mpmath.log(nu * mpmath.pi)
        # lgamma(1e4) is 8e4: its last bit is 1e-11
        tolerance = {"rel": 1e-12, "abs": 1e-10}
        assert student_t.log_normalizer(df, dim) == pytest.approx(float(expected), **tolerance)
        as_tensor = student_t.log_normalizer(torch.tensor(df, dtype=torch.float64), dim)
        assert float(as_tensor) == pytest.approx(float(expected), **tolerance)


# --- small angles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [1e-4, 1e-3, 1e-2])
def test_small_angles_give_the_cosine_loss(theta: float) -> None:
    dim, sigma2 = 10, 0.05
    s_, u_ = pair_at_angle(np.random.default_rng(4), dim, theta)
    s, u = torch.tensor(s_), torch.tensor(u_)
    variance = torch.full((dim,), sigma2, dtype=torch.float64)

    def nll(z: Tensor) -> Tensor:
        return TangentStudentT(z, variance, INF).nll(u)

    def cosine_loss(z: Tensor) -> Tensor:
        return -torch.cosine_similarity(z, u, dim=-1)

    half_delta2 = (nll(s) - nll(u)).item() - log_jacobian(theta, dim)
    # chord² = θ²(1 − θ²/12 + …)
    expected = 0.5 * ((u - s) ** 2).sum().item() / sigma2
    assert half_delta2 == pytest.approx(expected, rel=theta**2 / 6, abs=1e-12)

    ours, theirs = (grads(f, 2 * s)[0] for f in (nll, cosine_loss))
    assert torch.cosine_similarity(ours, theirs, dim=-1).item() == pytest.approx(1, abs=1e-9)
    slope = 1 / sigma2 - (dim - 2) / 3  # of ½θ²/σ² + (D−2)·log(sin θ/θ), over that of −cos θ
    assert (ours.norm() / theirs.norm()).item() == pytest.approx(slope, rel=theta**2)


# --- as a torch distribution --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_shapes_and_broadcasting(cls: type) -> None:
    z, variance, h = randn(3, 5, 7, seed=1), randn(5, 7, seed=2).exp(), randn(5, 7, seed=3)
    distribution = cls(z, variance, 2.0)
    assert isinstance(distribution, torch.distributions.Distribution)
    assert distribution.batch_shape == (3, 5)
    assert distribution.event_shape == (7,)
    log_prob = distribution.log_prob(h)
    assert log_prob.shape == (3, 5)
    for i, j in itertools.product(range(3), range(5)):
        torch.testing.assert_close(log_prob[i, j], cls(z[i, j], variance[j], 2.0).log_prob(h[j]))


@pytest.mark.parametrize("cls", CLASSES)
def test_expand_repeats_the_distribution(cls: type) -> None:
    options = {"center_log_variance": True} if cls is PolarStudentT else {}
    z, variance, h = randn(5, 7, seed=1), randn(5, 7, seed=2).exp(), randn(4, 5, 7, seed=3)
    df = torch.linspace(1, 5, 5, dtype=torch.float64)
    distribution = cls(z, variance, df, **options)
    expanded = distribution.expand((4, 5))
    assert type(expanded) is cls
    assert expanded.batch_shape == (4, 5)
    torch.testing.assert_close(expanded.log_prob(h), distribution.log_prob(h))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("df", [1.0, 5.0, INF])
def test_nll_and_log_prob_differ_by_a_constant(cls: type, df: float) -> None:
    distribution = cls(randn(40, 6, seed=1), randn(40, 6, seed=2).exp(), df)
    h = randn(40, 6, seed=3)
    constant = distribution.nll(h) + distribution.log_prob(h)
    torch.testing.assert_close(constant, constant[:1].expand(40), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_arguments_are_refused(cls: type) -> None:
    z, ones = randn(3, 4), torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        cls(z[:, :1], ones[:, :1])
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        cls(torch.tensor(1.0), torch.tensor(1.0))
    for df in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0, 2.0]), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match="df must be positive"):
            cls(z, ones, df)
    for bad in (-ones, 0 * ones, math.nan * ones, math.inf * ones):
        with pytest.raises(ValueError, match="variance"):
            cls(z, bad, validate_args=True)
    for bad in (math.nan * z, math.inf * z):
        with pytest.raises(ValueError, match="centre must be finite: 12 of 12"):
            cls(bad, ones, validate_args=True)
    with pytest.raises(ValueError, match="complex"):
        cls(z + 1j * z, ones)
    with pytest.raises(ValueError, match="complex"):
        cls(z, ones).log_prob(z + 1j * z)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(cls: type, half: torch.dtype) -> None:
    z, variance, h = (
        randn(6, 9, seed=1).to(half),
        randn(6, 9, seed=2).exp().to(half),
        randn(6, 9, seed=3).to(half),
    )
    found = cls(z, variance, 1.0).log_prob(h)
    assert found.dtype == torch.float32
    assert torch.equal(found, cls(z.float(), variance.float(), 1.0).log_prob(h.float()))


@pytest.mark.parametrize("cls", CLASSES)
def test_autocast_changes_nothing(cls: type) -> None:
    inputs = [randn(6, 9, seed=i, dtype=torch.float32) for i in range(3)]

    def log_prob(z: Tensor, log_variance: Tensor, h: Tensor) -> Tensor:
        return cls(z, log_variance.exp(), 1.0).log_prob(h)

    plain = [log_prob(*inputs), *grads(log_prob, *inputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = [log_prob(*inputs), *grads(log_prob, *inputs)]
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("cls", CLASSES)
def test_float64_anywhere_is_kept(cls: type) -> None:
    z, variance, h = randn(2, 3, seed=1), randn(2, 3, seed=2).exp(), randn(2, 3, seed=3)
    for arguments in ((z, variance.float(), h.float()), (z.float(), variance.float(), h)):
        distribution = cls(arguments[0], arguments[1], 1.0)
        assert distribution.nll(arguments[2]).dtype == torch.float64
        assert distribution.log_prob(arguments[2]).dtype == torch.float64


@pytest.mark.parametrize("cls", [TangentStudentT, PolarStudentT, MultivariateStudentT])
@pytest.mark.parametrize("shape", [(5, 1), (5, 4), (1,), ()])
def test_a_value_of_another_width_is_refused_and_not_broadcast(cls: type, shape: tuple[int, ...]) -> None:
    likelihood = cls(torch.ones(3), torch.ones(3))
    for name in ("log_prob", "nll", "directional_nll", "radial_nll"):
        if hasattr(likelihood, name):
            with pytest.raises(ValueError, match="right-most size of value must be 3"):
                getattr(likelihood, name)(torch.ones(shape))


@pytest.mark.parametrize("cls", [TangentStudentT, PolarStudentT, MultivariateStudentT])
def test_degrees_of_freedom_are_part_of_the_batch_shape(cls: type) -> None:
    likelihood = cls(torch.ones(3), torch.ones(3), torch.tensor([1.0, 2.0, 7.0, INF]))
    value = torch.tensor([0.5, 1.0, -2.0])
    assert likelihood.batch_shape == (4,) and likelihood.log_prob(value).shape == (4,)
    assert likelihood.expand((2, 4)).log_prob(value).shape == (2, 4)
    each = [cls(torch.ones(3), torch.ones(3), df).log_prob(value) for df in (1.0, 2.0, 7.0, INF)]
    torch.testing.assert_close(likelihood.log_prob(value), torch.stack(each))
