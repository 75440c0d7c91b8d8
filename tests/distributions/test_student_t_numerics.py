"""The Student-t likelihoods' gradients, edges and precision, against closed forms and mpmath."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from student_t_cases import CLASSES, INF, grads, pair_at_angle, randn
from torch import Tensor

from probjepa.distributions import MultivariateStudentT, PolarStudentT, TangentStudentT, student_t
from probjepa.distributions.student_t import log_map, unit_direction

ANTIPODE_SINE = 1e-4  # below this sine the Jacobian term is held constant
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


# --- gradients and the far side -----------------------------------------------------------------------


THETAS = [1e-3, 0.0315, 0.0317, 1.0, 2.5, 3.1]  # either side of the series' border
GRADIENTS = [
    pytest.param(theta, df, marks=() if df == (1.0, 4.0)[i % 2] or df == INF else pytest.mark.nightly)
    for i, theta in enumerate(THETAS)
    for df in (1.0, 4.0, INF)
]


@pytest.mark.parametrize(("theta", "df"), GRADIENTS)
def test_gradcheck(theta: float, df: float) -> None:
    rng = np.random.default_rng(5)
    s, u = pair_at_angle(rng, 4, theta)
    inputs = [torch.tensor(x).requires_grad_() for x in (1.5 * s, 10 ** rng.uniform(-0.5, 0.5, 4), 0.8 * u)]
    for cls in CLASSES:
        assert torch.autograd.gradcheck(lambda z, v, h, cls=cls: cls(z, v, df).log_prob(h), inputs, eps=1e-7)
    if math.isfinite(df):
        nu = torch.tensor(df, dtype=torch.float64, requires_grad=True)
        for cls in CLASSES:
            arguments = (inputs[0], inputs[1], nu, inputs[2])
            assert torch.autograd.gradcheck(lambda z, v, n, h, cls=cls: cls(z, v, n).log_prob(h), arguments,
                eps=1e-7)  # fmt: skip


@BOTH_DTYPES
@pytest.mark.parametrize("df", [0.5, 1.0, INF])
@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-7, math.pi - 1e-3, math.pi - 1e-5, math.pi - 1e-7])
@pytest.mark.parametrize("dim", [2, 3, 512])
def test_gradients_are_finite_at_both_ends(dim: int, theta: float, df: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    s, u = pair_at_angle(rng, dim, theta)
    z, h, variance = (torch.tensor(x, dtype=dtype) for x in (s, 2 * u, 10 ** rng.uniform(-2, 2, dim)))
    for cls in CLASSES:
        for gradient in grads(lambda z, v, h, cls=cls: cls(z, v, df).nll(h), z, variance, h):
            assert gradient.isfinite().all()


@BOTH_DTYPES
def test_coincidence_is_a_stationary_point_of_the_direction(dtype: torch.dtype) -> None:
    axis = torch.eye(5, dtype=dtype)[0]
    variance = torch.full((5,), 0.1, dtype=dtype)
    for df in (1.0, INF):
        for gradient in grads(lambda z, h, df=df: TangentStudentT(z, variance, df).nll(h), axis, 3 * axis):
            assert (gradient == 0).all()


@BOTH_DTYPES
@pytest.mark.parametrize("dim", [2, 3, 64, 2048])
@pytest.mark.parametrize("df", [1.0, INF])
def test_antipode_is_as_far_as_can_be(dim: int, df: float, dtype: torch.dtype) -> None:
    """With one σ² every direction from s to −s is alike: δ² = π²/σ², the Jacobian at its bound."""
    sigma2 = 0.5
    z, variance = randn(dim, seed=dim, dtype=dtype), torch.full((dim,), sigma2, dtype=dtype)
    delta2 = math.pi**2 / sigma2
    kernel = delta2 / 2 if math.isinf(df) else (df + dim - 1) / 2 * math.log1p(delta2 / df)
    log_det = (dim - 1) * math.log(sigma2)
    expected = kernel + log_det / 2 + (dim - 2) * math.log(ANTIPODE_SINE / math.pi)
    for h in (-z, -2.7 * z, -1e-30 * z, -1e30 * z):
        nll = TangentStudentT(z, variance, df).nll(h)
        assert nll.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        for gradient in grads(lambda z, v, h: TangentStudentT(z, v, df).nll(h), z, variance, h):
            assert gradient.isfinite().all()


@BOTH_DTYPES
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("df", [1.0, INF])
@pytest.mark.parametrize("sparse", [False, True])
def test_extreme_norms_give_no_nan(cls: type, df: float, sparse: bool, dtype: torch.dtype) -> None:
    base = randn(2, 16, seed=1, dtype=dtype)
    if sparse:  # an embedding after a ReLU has exact zeros
        base = base.relu()
    variance = randn(16, seed=2, dtype=dtype).exp()
    for a, b in itertools.product((0.0, 1e-30, 1.0, 1e30, -1e30), repeat=2):
        z, h = a * base[0], b * base[1]
        assert cls(z, variance, df).nll(h).isfinite()
        assert not any(g.isnan().any() for g in grads(lambda z, v, h: cls(z, v, df).nll(h), z, variance, h))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("df", [1.0, INF])
@pytest.mark.parametrize("sigma2", [1e-44, 1e-38, 1e-30, 1e-10, 1e10, 1e38])
def test_extreme_variances_give_no_nan(cls: type, df: float, sigma2: float) -> None:
    base = randn(2, 16, seed=1, dtype=torch.float32)
    variance = sigma2 * (0.5 + torch.rand(16, generator=torch.Generator().manual_seed(2)))
    for a, b in itertools.product((0.0, 1e-38, 1.0, 1e18, 1e37), repeat=2):
        z, h = a * base[0], b * base[1]
        assert not cls(z, variance, df).nll(h).isnan()
        assert not any(g.isnan().any() for g in grads(lambda z, v, h: cls(z, v, df).nll(h), z, variance, h))


@pytest.mark.parametrize("cls", [*CLASSES, MultivariateStudentT])
def test_degrees_of_freedom_beyond_float32_are_the_limit(cls: type) -> None:
    z, h = randn(2, 8, dtype=torch.float32)
    variance = torch.full((8,), 0.25)
    assert cls(z, variance, 1e39).nll(h).item() == pytest.approx(
        cls(z, variance, INF).nll(h).item(), rel=1e-5
    )


@pytest.mark.parametrize("df", [1.0, torch.tensor([1.0])])
def test_student_t_keeps_its_logarithm_where_the_square_overflows(df: float | Tensor) -> None:
    z, variance = randn(1, 8, dtype=torch.float32), torch.full((8,), 0.25)
    h = torch.zeros(1, 8)
    h[0, 3] = 1e30
    assert PolarStudentT(z, variance, df).radial_nll(h).item() == pytest.approx(2 * math.log(1e30), rel=1e-6)
    expected = 9 / 2 * 2 * math.log(1e30 / 0.5) + 4 * math.log(0.25)
    assert MultivariateStudentT(z, variance, df).nll(h).item() == pytest.approx(expected, rel=1e-6)


@BOTH_DTYPES
@pytest.mark.parametrize("cls", [PolarStudentT, MultivariateStudentT])
@pytest.mark.parametrize("df", [1e-8, 1e-3, 0.5, torch.tensor([0.5])])
def test_few_degrees_of_freedom_leave_far_lengths_finite(
    cls: type, df: float | Tensor, dtype: torch.dtype
) -> None:
    nu, far = float(df), float(torch.finfo(dtype).max)
    z, variance = torch.zeros(1, 2, dtype=dtype), torch.full((2,), 0.25, dtype=dtype)
    h = torch.tensor([[far, 0.0]], dtype=dtype)
    expected = (nu + 1) * (math.log(far) - 0.5 * math.log(nu))
    assert PolarStudentT(z, variance, df).radial_nll(h).item() == pytest.approx(expected, rel=1e-6)
    assert cls(z, variance, df).nll(h).isfinite()
    assert all(g.isfinite().all() for g in grads(lambda z, v, h: cls(z, v, df).nll(h), z, variance, h))


def test_zero_vector_stands_for_the_first_axis() -> None:
    variance, u, axis = randn(4, seed=1).exp(), randn(4, seed=2), torch.eye(4, dtype=torch.float64)[0]
    for df in (1.0, INF):
        assert TangentStudentT(0 * u, variance, df).nll(u) == TangentStudentT(axis, variance, df).nll(u)
        assert TangentStudentT(u, variance, df).nll(0 * u) == TangentStudentT(u, variance, df).nll(axis)


def test_pull_of_a_distant_embedding_is_bounded_for_student_t_only() -> None:
    z, direction, variance = randn(8, seed=1), randn(8, seed=2), randn(8, seed=3).exp()

    def pull(norm: float, df: float) -> float:
        h = norm * direction / direction.norm()
        return grads(lambda h: PolarStudentT(z, variance, df).nll(h), h)[0].norm().item()

    norms = [10.0**k for k in range(2, 13)]
    for df in (0.5, 1.0, 7.0):
        assert all(b < a for a, b in itertools.pairwise(pull(norm, df) for norm in norms))
        assert pull(1e12, df) < 1e-8
    assert [pull(norm, INF) for norm in norms[3:]] == pytest.approx(norms[3:], rel=1e-3)


# --- precision ----------------------------------------------------------------------------------------


def reference_nll(z: np.ndarray, variance: np.ndarray, df: float, h: np.ndarray) -> tuple[float, float]:
    """Return the directional NLL as the formulas stand, in 50 digits, and the sum of its terms' sizes."""
    with mpmath.workdps(50):
        s, u, var = ([mpmath.mpf(float(x)) for x in y] for y in (z, h, variance))
        norms = [mpmath.sqrt(mpmath.fdot(y, y)) for y in (s, u)]
        s, u = ([x / norm for x in y] for y, norm in zip((s, u), norms, strict=True))
        dim, nu = len(s), mpmath.mpf(df)
        cosine = mpmath.fdot(s, u)
        theta = mpmath.acos(min(cosine, 1))
        sine = mpmath.sin(theta)
        # mpmath's acos keeps half of the digits near 0 and π, which leaves 25
        ratio = theta / sine if theta > mpmath.mpf(10) ** -20 else mpmath.mpf(1)
        v = [ratio * (a - cosine * b) for a, b in zip(u, s, strict=True)]
        precision_s = [a / b for a, b in zip(s, var, strict=True)]
        precision_v = [a / b for a, b in zip(v, var, strict=True)]
        s_s, s_v = mpmath.fdot(s, precision_s), mpmath.fdot(s, precision_v)
        delta2 = mpmath.fdot(v, precision_v) - s_v**2 / s_s
        kernel = delta2 / 2 if math.isinf(df) else (nu + dim - 1) / 2 * mpmath.log(1 + delta2 / nu)
        logs = [mpmath.log(x) for x in var]
        log_det = (mpmath.fsum(logs) + mpmath.log(s_s)) / 2
        jacobian = -(dim - 2) * mpmath.log(ratio)
        size = 1 + abs(kernel) + mpmath.fsum(logs, absolute=True) / 2 + abs(jacobian)
        return float(kernel + log_det + jacobian), float(size)


def directional(
    z: np.ndarray, variance: np.ndarray, df: float, h: np.ndarray, dtype: torch.dtype
) -> tuple[float, float, list[Tensor]]:
    """Return the NLL, δ², and the gradients with respect to z, log σ² and h."""
    leaves = [torch.tensor(x, dtype=dtype).requires_grad_() for x in (z, variance, h)]
    with mock.patch.object(student_t, "_kernel", wraps=student_t._kernel) as kernel:
        nll = TangentStudentT(leaves[0], leaves[1], df).nll(leaves[2])
    gradients = list(torch.autograd.grad(nll, leaves))
    return nll.item(), kernel.call_args.args[0].item(), [*gradients[::2], gradients[1] * leaves[1].detach()]


@settings(max_examples=100, derandomize=True)
@given(
    dim=st.integers(2, 24) | st.integers(2, 2048),
    df=st.sampled_from([0.5, 1.0, 3.0, 50.0, 1e8, INF]),
    theta=st.floats(0, math.pi - 1e-3) | st.sampled_from([0.0, 1e-8, 1e-4, 0.0316, math.pi - 1e-3]),
    low=st.floats(-4, 4),
    high=st.floats(-4, 4),
    seed=st.integers(0, 2**31),
)
@example(dim=2048, df=INF, theta=math.pi - 1e-3, low=-4.0, high=4.0, seed=0)
@example(dim=2048, df=0.5, theta=0.0, low=-4.0, high=-4.0, seed=0)
@example(dim=3, df=INF, theta=math.pi - 1e-3, low=-4.0, high=4.0, seed=1)
def test_precision_over_the_whole_range(
    dim: int, df: float, theta: float, low: float, high: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    s, u = pair_at_angle(rng, dim, theta)
    variance = 10 ** rng.uniform(min(low, high), max(low, high), dim)
    z, h = 10 ** rng.uniform(-2, 2) * s, 10 ** rng.uniform(-2, 2) * u

    nll, delta2, gradients = directional(z, variance, df, h, torch.float64)
    expected, size = reference_nll(z, variance, df, h)
    assert delta2 >= 0
    assert all(g.isfinite().all() for g in gradients)
    # 1e-3 from π a direction is known to 1e-16/1e-3 = 1e-13
    assert abs(nll - expected) <= 1e-12 * size

    rounded = [x.astype(np.float32) for x in (z, variance, h)]
    z32, variance32, h32 = rounded
    nll64, _, _ = directional(z32, variance32, df, h32, torch.float64)
    nll32, delta2_32, gradients32 = directional(z32, variance32, df, h32, torch.float32)
    assert delta2_32 >= 0
    assert all(g.isfinite().all() for g in gradients32)
    # likewise 6e-8/1e-3 = 6e-5, and the Jacobian multiplies the last bit of θ/sin θ by D: 6e-8·2046 = 1.2e-4
    assert abs(nll32 - nll64) <= 3e-4 * size


@pytest.mark.parametrize("theta", [0.01, 0.1, 1.0, 2.5, 3.1])
@pytest.mark.parametrize("df", [0.5, 7.0, INF])
@pytest.mark.parametrize("dim", [2, 3, 64, 2048])
def test_float32_gradients_agree_with_float64(dim: int, df: float, theta: float) -> None:
    rng = np.random.default_rng(dim)
    for _ in range(5):
        s, u = pair_at_angle(rng, dim, theta)
        inputs = [x.astype(np.float32) for x in (s, 10 ** rng.uniform(-4, 4, dim), u)]
        single, double = (directional(inputs[0], inputs[1], df, inputs[2], dtype)[2]
            for dtype in (torch.float32, torch.float64))  # fmt: skip
        for a, b in zip(single, double, strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm()


@pytest.mark.parametrize("sine2", [1e-6, 1e-4, 4e-4, 9.9e-4, 1.1e-3, 0.1])
def test_the_log_map_is_exact_on_both_sides_of_its_series(sine2: float) -> None:
    """Against 40 digits: ‖v‖ = θ and log(sin θ/θ), with θ = arcsin √q by a series below q = 1e-3."""
    with mpmath.workdps(40):
        sine = mpmath.sqrt(mpmath.mpf(sine2))
        theta = mpmath.asin(sine)
        wanted = float(theta), float(mpmath.log(sine / theta))
    s = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    u = torch.tensor(
        [math.sqrt(1 - sine2), 0.6 * math.sqrt(sine2), 0.8 * math.sqrt(sine2)], dtype=torch.float64
    )
    v, log_ratio = log_map(u, s)
    assert v.norm().item() == pytest.approx(wanted[0], rel=4e-15)
    assert log_ratio.item() == pytest.approx(wanted[1], abs=2e-15)


def test_a_zero_row_among_others_is_the_first_axis_and_they_are_divided_by_their_norms() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, -2.0]])
    torch.testing.assert_close(unit_direction(x), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_point_has_the_type_of_many(dtype: torch.dtype) -> None:
    for cls in (PolarStudentT, TangentStudentT, MultivariateStudentT):
        z, df = torch.ones(3, dtype=dtype), torch.tensor(2.0, dtype=dtype)
        assert cls(z, z, df).log_prob(torch.tensor([0.5, 1.0, -1.0], dtype=dtype)).dtype == dtype


# --- curvature where the distance is zero ---------------------------------------------------------------


@pytest.mark.parametrize("df", [1.0, 4.0, INF, torch.tensor(3.0)], ids=str)
@BOTH_DTYPES
def test_the_curvature_at_the_centre_is_the_closed_forms(df: float | Tensor, dtype: torch.dtype) -> None:
    z = torch.tensor([1.0, 2.0, -2.0], dtype=dtype)
    variance = torch.tensor([0.5, 2.0, 4.0], dtype=dtype)
    nu = float(df)
    of_whole = 1.0 if math.isinf(nu) else (nu + 3) / nu
    of_norm = 1.0 if math.isinf(nu) else (nu + 1) / nu
    hessian = torch.autograd.functional.hessian
    found = hessian(MultivariateStudentT(z, variance, df).nll, z)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, of_whole * (1 / variance).diag())
    found = hessian(PolarStudentT(z, variance, df).radial_nll, z)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, of_norm * torch.outer(z, z) / 9)


@pytest.mark.parametrize("df", [0.5, 4.0, INF])
def test_the_likelihood_is_smooth_where_its_two_forms_meet(df: float) -> None:
    z, variance = torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    for length in (0.0, 1e-200, 1e-9, 1 - 1e-9, 1.0, 1 + 1e-9, 7.0, 1e200):
        x = (length * variance.sqrt() * torch.tensor([2.0, -1.0, 2.0]).double() / 3).requires_grad_()
        found = MultivariateStudentT(z, variance, df).nll(x)
        (slope,) = torch.autograd.grad(found, x)
        d2, whole = mpmath.mpf(length) ** 2, 0.5 * float(variance.log().sum())
        if math.isinf(df):
            exact, rate = d2 / 2, mpmath.mpf(1)
        else:
            exact, rate = (df + 3) / 2 * mpmath.log1p(d2 / df), (df + 3) / (df + d2)
        if exact < 1e300:
            assert found.item() == pytest.approx(float(exact) + whole, rel=1e-12)
            expected = [float(rate * mpmath.mpf(of)) for of in (x / variance).tolist()]
            assert slope.tolist() == pytest.approx(expected, rel=1e-9, abs=0)
