from __future__ import annotations

import inspect
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from jacobian_models import TinyViT, reference_score, reference_spectrum
from torch import Tensor, nn

from probjepa.backbones import build_backbone
from probjepa.errors import ConfigError, DataError, ProbjepaError
from probjepa.jacobian import jacobian_spectrum, jepa_score, jepa_score_details
from probjepa.jacobian.estimators import RANK_TOLERANCE, Settings
from probjepa.jacobian.score import EstimatorSettings, MoreSettings


def orthogonal(dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]


def trained_looking(module: nn.Module) -> nn.Module:
    """Batch norms with statistics that differ by channel, in evaluation mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("estimator", ["exact", "auto"])
def test_linear_map_is_half_the_log_determinant(estimator: str) -> None:
    a = torch.randn(7, 30, dtype=torch.float64)
    score = jepa_score(lambda x: x @ a.T, torch.randn(5, 30, dtype=torch.float64), estimator=estimator)
    assert score.dtype == torch.float64
    torch.testing.assert_close(score, (0.5 * torch.logdet(a @ a.T)).expand(5), rtol=0, atol=1e-10)


def test_affine_invariances() -> None:
    f = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).double()
    x = torch.randn(4, 12, dtype=torch.float64)
    plain = jepa_score(f, x)
    before, after = orthogonal(12), orthogonal(6)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(jepa_score(lambda z: f(z @ before.T), x @ before), plain, **close)
    torch.testing.assert_close(jepa_score(lambda z: f(z) @ after, x), plain, **close)
    torch.testing.assert_close(jepa_score(lambda z: 2.5 * f(z), x), plain + 6 * math.log(2.5), **close)


def test_elementwise_tanh_closed_form() -> None:
    x = torch.randn(6, 9, dtype=torch.float64)
    expected = torch.log(1 - x.tanh().square()).sum(1)
    torch.testing.assert_close(jepa_score(torch.tanh, x), expected, rtol=0, atol=1e-10)


def test_vit_agrees_with_the_papers_formulation() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(jepa_score(f, x), reference_score(f, x), rtol=0, atol=1e-3)
    torch.testing.assert_close(jacobian_spectrum(f, x), reference_spectrum(f, x), rtol=1e-4, atol=1e-6)


def test_resnet_agrees_with_the_papers_formulation() -> None:
    f = trained_looking(build_backbone("resnet18", image_size=16, width=0.125))
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(jepa_score(f, x), reference_score(f, x), rtol=0, atol=1e-3)


def test_final_layer_norm_loses_two_directions_under_auto_rank() -> None:
    f, x = TinyViT().eval(), torch.randn(3, 3, 16, 16)
    found = jepa_score_details(f, x, rank="auto")
    assert found.rank_rule == "auto"
    assert found.used.tolist() == found.rank.tolist() == [14, 14, 14]
    torch.testing.assert_close(found.score, reference_score(f, x, keep=14), rtol=0, atol=1e-3)
    spectrum = reference_spectrum(f, x)
    torch.testing.assert_close(found.sigma_max, spectrum[:, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sigma_min, spectrum[:, 13], rtol=1e-4, atol=0)
    # both lie far from the tolerance: it is not what decides
    assert bool((spectrum[:, 13] > 10 * RANK_TOLERANCE * spectrum[:, 0]).all())
    assert bool((spectrum[:, 14] < RANK_TOLERANCE * spectrum[:, 0] / 2).all())


def test_int_rank_takes_the_largest() -> None:
    f, x = TinyViT().eval(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(jepa_score(f, x, rank=5), reference_score(f, x, keep=5), rtol=0, atol=1e-3)
    assert jepa_score_details(f, x, rank=99).used.tolist() == [16, 16]


def test_vit_small_in_float32_against_all_float64() -> None:
    f, x = TinyViT(dim=384, size=16, patch=8).eval(), torch.randn(1, 3, 16, 16)
    found = jepa_score_details(f, x, rank="auto")
    assert found.used.tolist() == [382]
    assert abs(float(found.score - reference_score(f, x, keep=382))) < 0.05


@pytest.mark.parametrize("estimator", ["exact", "folded", "sketch", "slq", "subspace"])
def test_batched_equals_one_at_a_time_and_permutes(estimator: str) -> None:
    f, x = TinyViT(norm=False).double().eval(), torch.randn(6, 3, 16, 16, dtype=torch.float64)
    together = jepa_score(f, x, estimator=estimator)
    alone = torch.cat([jepa_score(f, image, estimator=estimator) for image in x.split(1)])
    chunked = jepa_score(f, x, estimator=estimator, chunk_size=4)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together, chunked, rtol=0, atol=1e-6)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    permuted = jepa_score(f, x[order], estimator=estimator)
    torch.testing.assert_close(permuted, together[order], rtol=0, atol=1e-6)
    assert together.std() > 1e-3  # the inputs do differ


def test_float32_batched_equals_one_at_a_time() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(6, 3, 16, 16)
    alone = torch.cat([jepa_score(f, image) for image in x.split(1)])
    torch.testing.assert_close(jepa_score(f, x), alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [2, 10])  # the Jacobian by its columns, and by its rows
def test_fewer_inputs_than_dimensions(width: int) -> None:
    a = torch.randn(16, width, dtype=torch.float64)
    x = torch.randn(5, width, dtype=torch.float64)
    sigma = torch.linalg.svdvals(a)
    spectrum = jacobian_spectrum(lambda z: z @ a.T, x)
    assert spectrum.shape == (5, 16)
    torch.testing.assert_close(spectrum[:, :width], sigma.expand(5, width))
    assert not spectrum[:, width:].any()
    for rank in (None, "auto"):
        score = jepa_score(lambda z: z @ a.T, x, rank=rank)
        torch.testing.assert_close(score, sigma.log().sum().expand(5), rtol=0, atol=1e-9)


def test_zero_jacobian_is_finite_and_least_typical() -> None:
    zero = jepa_score_details(lambda x: 0 * x[:, :4], torch.ones(2, 9), rank="auto")
    torch.testing.assert_close(zero.score, torch.full((2,), 4 * math.log(1e-6), dtype=torch.float64))
    assert zero.rank.tolist() == [0, 0]
    assert jepa_score(lambda x: 0 * x[:, :4], torch.ones(2, 9), eps=1e-3)[0] == pytest.approx(
        4 * math.log(1e-3)
    )
    constant = torch.full((2, 3, 16, 16), 0.3)
    assert torch.isfinite(jepa_score(TinyViT().eval(), constant)).all()


def test_arrays_are_taken_and_integers_refused() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5))
    torch.testing.assert_close(jepa_score(torch.tanh, x), jepa_score(torch.tanh, torch.from_numpy(x)))
    with pytest.raises(DataError, match="takes float tensors"):
        jepa_score(torch.tanh, torch.ones(3, 5, dtype=torch.uint8))


def test_nan_inputs_and_derivatives_are_named() -> None:
    x = torch.rand(3, 4) + 1
    x[1, 2] = math.nan
    with pytest.raises(DataError, match="input 1 holds NaN"):
        jepa_score(torch.tanh, x)
    x[1, 2] = 0
    with pytest.raises(DataError, match="derivative at input 1"):
        jepa_score(torch.sqrt, x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"estimator": "exakt"}, "did you mean 'exact'"),
        ({"prob": 3}, "unknown setting of jepa_score 'prob', did you mean 'probes'"),
        ({"transform": torch.tanh}, "unknown setting of jepa_score 'transform', did you mean 'transforms'"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": "full"}, "rank takes a whole number or 'auto' or null, got 'full'"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"n_transforms": 2}, "needs transforms"),
        ({"n_transforms": 0, "transforms": torch.tanh}, "n_transforms is 0"),
        ({"estimator": "slq", "rank": "auto"}, "rank=None"),
        ({"estimator": "sketch", "rank": 2}, "rank=None or 'auto'"),
        ({"estimator": "sketch", "sketch_size": 3}, "sketch_size is 3"),
        ({"estimator": "subspace", "directions": 6}, "directions is 6"),
        ({"estimator": "folded"}, "non-overlapping"),
        ({"latent": "gauss"}, "latent is 'gauss'"),
        ({"latent": torch.distributions.Normal(0.0, 1.0)}, "event shape"),
        ({"transforms": lambda x: x[:0]}, "one for one"),
    ],
)
def test_settings_out_of_range(options: dict[str, object], text: str) -> None:
    with pytest.raises(ProbjepaError, match=text) as caught:
        jepa_score(torch.tanh, torch.randn(2, 5), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_documented_ones() -> None:
    defaults = {
        "estimator": "exact", "rank": None, "eps": 1e-6, "sketch_size": None, "probes": 4, "steps": 10,
        "directions": None, "tolerance": 0.0, "seed": 0,
    }  # fmt: skip
    assert asdict(Settings()) == defaults
    own = {"latent": None, "transforms": None, "n_transforms": 1, "chunk_size": None}
    assert inspect.unwrap(jepa_score_details).__kwdefaults__ == {**own, "progress": False}
    shared = {name: defaults[name] for name in ("estimator", "rank", "eps")}
    assert inspect.unwrap(jepa_score).__kwdefaults__ == {**shared, **own}
    assert EstimatorSettings.__annotations__.keys() == defaults.keys()
    assert MoreSettings.__annotations__.keys() == defaults.keys() - shared.keys() | {"progress"}


def test_a_spectrum_of_no_rows_at_a_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk_size is 0"):
        jacobian_spectrum(torch.tanh, torch.randn(2, 5), chunk_size=0)


@pytest.mark.parametrize(
    "output", [lambda x: x.sum(1), lambda x: x[:, None], lambda x: x[:1], lambda x: (x,)]
)
def test_output_that_is_no_embedding(output: object) -> None:
    with pytest.raises(ConfigError, match=r"\(N, K\)"):
        jepa_score(output, torch.randn(2, 5))
