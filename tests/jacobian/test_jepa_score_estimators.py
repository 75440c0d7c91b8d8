from __future__ import annotations

import math

import pytest
import torch
from jacobian_models import TinyViT, reference_score
from torch import nn

from probjepa.errors import ConfigError
from probjepa.jacobian import jepa_score, jepa_score_details


@pytest.fixture
def linear() -> tuple[nn.Linear, torch.Tensor, float]:
    f = nn.Linear(60, 8).double()
    with torch.no_grad():
        f.weight.mul_(torch.logspace(-2, 1, 8, dtype=torch.float64)[:, None])
    weight = f.weight.detach()
    return f, torch.randn(1, 60, dtype=torch.float64), float(0.5 * torch.logdet(weight @ weight.T))


def test_folded_patch_embedding_is_exact() -> None:
    x = torch.randn(3, 3, 16, 16)
    for dim, name in ((16, "folded"), (64, "exact")):  # a patch has 48 numbers
        f = TinyViT(dim=dim, norm=False).eval()
        folded = jepa_score_details(f, x, estimator="folded")
        torch.testing.assert_close(folded.score, reference_score(f, x), rtol=0, atol=1e-3)
        assert jepa_score_details(f, x, estimator="auto").estimator == name


def test_folding_is_refused_where_the_input_goes_elsewhere_too() -> None:
    class Leaky(TinyViT):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean((1, 2, 3))[:, None]

    class Twice(TinyViT):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.patch(2 * x).mean((2, 3))

    x = torch.randn(2, 3, 16, 16)
    for f in (Leaky(norm=False).eval(), Twice(norm=False).eval()):
        with pytest.raises(ConfigError, match="non-overlapping"):
            jepa_score(f, x, estimator="folded")
        found = jepa_score_details(f, x, estimator="auto")
        assert found.estimator == "exact"
        torch.testing.assert_close(found.score, reference_score(f, x), rtol=0, atol=1e-3)


def test_sketch_is_unbiased_with_the_variance_of_wishart(
    linear: tuple[nn.Linear, torch.Tensor, float],
) -> None:
    f, x, truth = linear
    m, draws = 16, 200
    found = [jepa_score_details(f, x, estimator="sketch", sketch_size=m, seed=seed) for seed in range(draws)]
    scores = torch.cat([one.score for one in found])
    # log det of a Wishart is a sum of independent log χ²(m − i + 1)
    freedom = torch.arange(m, m - 8, -1, dtype=torch.float64)
    variance = float(torch.polygamma(1, freedom / 2).sum() / 4)
    assert float(found[0].standard_error) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert abs(float(scores.mean()) - truth) < 3 * math.sqrt(variance / draws)
    # a sample variance is within 4 of its own standard errors, √(2/n)
    assert float(scores.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / draws))


def test_sketch_of_a_rank_deficient_jacobian_is_unbiased_under_auto_rank() -> None:
    a = torch.randn(10, 4, dtype=torch.float64) @ torch.randn(4, 50, dtype=torch.float64)
    truth = float(torch.linalg.svdvals(a)[:4].log().sum())
    x = torch.zeros(1, 50, dtype=torch.float64)
    found = [
        jepa_score_details(lambda z: z @ a.T, x, estimator="sketch", rank="auto", seed=s) for s in range(150)
    ]
    assert {int(one.used) for one in found} == {4}
    scores = torch.cat([one.score for one in found])
    assert abs(float(scores.mean()) - truth) < 3 * float(found[0].standard_error) / math.sqrt(150)


def test_sketch_of_a_transformer_is_near_exact() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(3, 3, 16, 16)
    found = jepa_score_details(f, x, estimator="sketch", sketch_size=256)
    assert bool(((found.score - reference_score(f, x)).abs() < 4 * found.standard_error).all())


def test_the_sketch_of_a_square_jacobian_is_off_by_the_draw_alone() -> None:
    """log det (AS)(AS)ᵀ = log det AAᵀ + log det SSᵀ, whatever A: small σ keep their digits."""
    before, after = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0] for _ in range(2))
    sigma = torch.logspace(-5, 0, 8, dtype=torch.float64)
    a, x = before @ torch.diag(sigma) @ after, torch.randn(1, 8, dtype=torch.float64)
    options = {"estimator": "sketch", "eps": 1e-12}
    off = jepa_score(lambda z: z @ a.T, x, **options) - sigma.log().sum()
    torch.testing.assert_close(off, jepa_score(lambda z: 1 * z, x, **options), rtol=0, atol=5e-6)


def test_slq_with_all_steps_on_a_diagonal_map_is_exact() -> None:
    # Rademacher probes give the trace of a diagonal matrix without variance
    scale = torch.linspace(0.5, 3, 12, dtype=torch.float64)
    found = jepa_score_details(
        lambda x: scale * x, torch.randn(2, 12, dtype=torch.float64), estimator="slq", steps=12
    )
    torch.testing.assert_close(found.score, scale.log().sum().expand(2), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.used, torch.tensor([12, 12]))
    torch.testing.assert_close(found.rank, torch.tensor([-1, -1]))


def test_slq_stops_where_krylov_does() -> None:
    x = torch.randn(2, 30, dtype=torch.float64)
    isotropic = jepa_score(lambda z: 3 * z[:, :20], x, estimator="slq", steps=10)
    torch.testing.assert_close(isotropic, torch.full_like(isotropic, 20 * math.log(3)))
    zero = jepa_score(lambda z: 0 * z[:, :20], x, estimator="slq", steps=10)
    torch.testing.assert_close(zero, torch.full_like(zero, 20 * math.log(1e-6)))


def test_slq_with_all_steps_is_hutchinsons_estimate() -> None:
    f, x = TinyViT(norm=False).double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found = jepa_score_details(f, x, estimator="slq", probes=20, steps=16)
    error = (found.score - reference_score(f, x)).abs()
    assert bool((error < 4 * found.standard_error).all())
    assert bool((found.standard_error < 3).all())
    torch.testing.assert_close(found.sigma_max, jepa_score_details(f, x).sigma_max)


def test_slq_refuses_fewer_inputs_than_dimensions() -> None:
    with pytest.raises(ConfigError, match="use 'exact'"):
        jepa_score(nn.Linear(3, 8), torch.randn(2, 3), estimator="slq")


def test_subspace_of_all_directions_is_exact_and_of_some_biased_upwards() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(2, 3, 16, 16)
    truth = reference_score(f, x)
    torch.testing.assert_close(jepa_score(f, x, estimator="subspace"), truth, rtol=0, atol=1e-3)
    assert bool((jepa_score(f, x, estimator="subspace", directions=4) > truth).all())
    scaled = jepa_score(lambda z: 2 * f(z), x, estimator="subspace", directions=4)
    plain = jepa_score(f, x, estimator="subspace", directions=4)
    torch.testing.assert_close(scaled - plain, torch.full((2,), 16 * math.log(2)).double(), rtol=0, atol=1e-4)


def test_auto_sketches_where_memory_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probjepa.jacobian.memory.free_memory", lambda device: 2**16)
    f = TinyViT().eval()
    found = jepa_score_details(f, torch.randn(2, 3, 16, 16), estimator="auto")
    assert (found.estimator, found.chunk_size) == ("sketch", 1)
    assert "memory" in found.reason


@pytest.mark.parametrize(
    "options",
    [{"groups": 3}, {"dilation": 2}, {"padding": 2}, {"stride": 2}, {"padding": "same", "stride": 1}],
    ids=str,
)
def test_a_first_layer_that_is_no_patch_embedding_is_not_folded(options: dict[str, object]) -> None:
    x = torch.randn(2, 3, 12, 12)
    conv = nn.Conv2d(3, 6, 4, **{"stride": 4} | options)  # type: ignore[arg-type]
    f = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.LazyLinear(5)).eval()
    f(x)
    with pytest.raises(ConfigError, match="non-overlapping"):
        jepa_score(f, x, estimator="folded")
    found = jepa_score_details(f, x, estimator="auto")
    assert found.estimator == "exact"
    torch.testing.assert_close(found.score, reference_score(f, x), rtol=0, atol=1e-3)


def test_auto_is_exact_as_soon_as_one_jacobian_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By halving: at the least memory where it is exact, one input at a time goes in."""
    f, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.randn(4, 3, 4, 4)
    low, high = 1, 2**24
    while high - low > 1:
        middle = (low + high) // 2
        monkeypatch.setattr("probjepa.jacobian.memory.free_memory", lambda device, free=middle: free)
        exact = jepa_score_details(f, x[:1], estimator="auto").estimator == "exact"
        low, high = (low, middle) if exact else (middle, high)
    monkeypatch.setattr("probjepa.jacobian.memory.free_memory", lambda device: high)
    assert jepa_score_details(f, x, estimator="auto").chunk_size == 1
    assert high >= 2 * 5 * 48 * 4  # the Jacobian in float32 fills half of it at most


def test_rows_that_are_zero_leave_slq_independent_of_the_batch() -> None:
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(30, 16), nn.ReLU()).eval()
    x = torch.randn(9, 30)
    alone = jepa_score(f, x, estimator="slq", chunk_size=1)
    torch.testing.assert_close(jepa_score(f, x, estimator="slq"), alone, rtol=0, atol=1e-2)
