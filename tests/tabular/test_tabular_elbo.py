"""The likelihoods against torch.distributions, quadrature and draws."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Normal, kl_divergence

from probjepa.tabular.elbo import (
    annealed,
    bounded_log_variance,
    draw,
    gaussian_nll,
)
from probjepa.tabular.tokens import FeatureDecoder, Layout, Rows


@pytest.fixture
def moments():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, 7, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_nll_is_that_of_torch(moments):
    x, m, v, _ = moments
    expected = -Normal(m, (0.5 * v).exp()).log_prob(x)
    torch.testing.assert_close(gaussian_nll(x, m, v.exp()), expected)


def test_draws_have_the_moments_asked_for():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    draws = draw(mean.expand(200_000, 2), log_variance.expand(200_000, 2))
    torch.testing.assert_close(draws.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), log_variance.exp(), atol=0.02, rtol=0)


def test_log_variance_is_bounded_and_the_identity_near_zero():
    raw = torch.tensor([-math.inf, -1e30, -0.1, 0.0, 0.1, 1e30, math.inf], dtype=torch.float64)
    found = bounded_log_variance(raw)
    assert found.abs().max() <= 10
    torch.testing.assert_close(found[2:5], raw[2:5], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("epoch", "over", "expected"), [(0, 4, 0), (1, 4, 0.5), (9, 4, 2), (0, 0, 2), (math.inf, 4, 2)]
)
def test_annealing(epoch, over, expected):
    assert annealed(2.0, epoch, over) == expected


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    return FeatureDecoder(Layout(numeric=(1,), categorical=(0, 2), cardinalities=(3, 1), types=(1, 0, 1)), 5)


def test_numbers_are_decoded_with_the_latent_integrated_out_exactly(decoder):
    mean, variance = torch.randn(1, 3, 5), torch.rand(1, 3, 5)
    cells = decoder(mean, variance)
    at = mean[:, 1] + variance[:, 1].sqrt() * torch.randn(400_000, 5)
    given = decoder(torch.stack([torch.zeros_like(at), at, torch.zeros_like(at)], 1))
    sample = given.mean[:, 0] + given.variance[:, 0].sqrt() * torch.randn(len(at))
    assert sample.mean().item() == pytest.approx(cells.mean.item(), abs=0.02)
    assert sample.var().item() == pytest.approx(cells.variance.item(), rel=0.02)


def test_categories_are_decoded_near_to_the_latent_integrated_out(decoder):
    mean, variance = torch.randn(1, 3, 5), 4 * torch.rand(1, 3, 5)
    at = torch.zeros(200_000, 3, 5)
    at[:, 0] = 3 * mean[:, 0] + variance[:, 0].sqrt() * torch.randn(len(at), 5)
    expected = decoder(at).logits[0].softmax(1).mean(0)
    found = decoder(3 * mean, variance).logits[0].softmax(1)[0]
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0)
    plain = decoder(3 * mean).logits[0].softmax(1)[0]
    assert (found - expected).abs().max() < (plain - expected).abs().max()


@pytest.mark.parametrize(("column", "scale", "tolerance"), [(1, 1.0, 0.02), (0, 0.05, 0.05), (2, 0.05, 0.05)])
def test_blur_is_the_expected_divergence_of_the_decoded_cell(decoder, column, scale, tolerance):
    mean, variance = torch.randn(1, 3, 5), scale**2 * torch.rand(1, 3, 5)
    at = mean + variance.sqrt() * torch.randn(200_000, 3, 5)
    centre, drawn = decoder(mean), decoder(at)
    if column == 1:
        pair = [Normal(cells.mean[:, 0], cells.variance[:, 0].sqrt()) for cells in (centre, drawn)]
    else:
        pair = [Categorical(logits=cells.logits[column // 2]) for cells in (centre, drawn)]
    expected = kl_divergence(pair[0].expand((200_000,)), pair[1]).mean().item()
    assert decoder.blur(mean, variance)[0, column].item() == pytest.approx(expected, rel=tolerance)


def test_blur_does_not_depend_on_the_units_of_the_latent_nor_on_what_is_not_decoded(decoder):
    mean, variance, unit = torch.randn(4, 3, 5), torch.rand(4, 3, 5), torch.tensor([0.1, 3.0, 1.0, 20.0, 1.0])
    found = decoder.blur(mean, variance)
    with torch.no_grad():
        decoder.weight.div_(unit)
        decoder.class_weight.div_(unit)
    torch.testing.assert_close(decoder.blur(mean * unit, variance * unit**2), found)
    with torch.no_grad():
        decoder.weight[:, 3] = 0
        decoder.class_weight[:, 3] = 7.0  # all classes alike
    without = decoder.blur(mean, variance)
    variance[..., 3] = 1e6
    torch.testing.assert_close(decoder.blur(mean, variance), without, rtol=1e-3, atol=1e-3)


def test_surprise_and_entropy_are_those_of_the_distributions(decoder):
    latent = torch.randn(4, 3, 5)
    rows = Rows(
        torch.randn(4, 1),
        torch.tensor([[0], [0], [0], [1]]).bool(),
        torch.tensor([[2, 1], [1, 2], [0, 2], [4, 0]]),
    )
    cells = decoder(latent)
    surprise, entropy = decoder.surprise(cells, rows), decoder.entropy(cells)
    normal = stats.norm(cells.mean.detach().numpy()[:, 0], cells.variance.detach().sqrt().numpy()[:, 0])
    expected = -normal.logpdf(rows.numeric[:, 0].numpy())
    np.testing.assert_allclose(surprise.detach().numpy()[:, 1], [*expected[:3], 0], rtol=1e-5)
    np.testing.assert_allclose(entropy.detach().numpy()[:, 1], normal.entropy(), rtol=1e-5)
    for column, logits, codes in zip((0, 2), cells.logits, rows.codes.T, strict=True):
        p = logits.detach().double().softmax(1).numpy()
        for i, code in enumerate(codes.tolist()):
            wanted = -math.log(p[i, code - 1]) if code else 0.0
            assert surprise[i, column].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(entropy.detach().numpy()[:, column], stats.entropy(p, axis=1), atol=1e-5)


def test_the_numeric_density_integrates_to_one(decoder):
    cells = decoder(torch.randn(1, 3, 5), torch.rand(1, 3, 5))

    def density(value):
        rows = Rows(
            torch.full((1, 1), value),
            torch.zeros(1, 1, dtype=torch.bool),
            torch.zeros(1, 2, dtype=torch.long),
        )
        return decoder.surprise(cells, rows)[0, 1].neg().exp().item()

    centre = cells.mean.item()
    assert integrate.quad(density, centre - 40, centre + 40, limit=200)[0] == pytest.approx(1, abs=1e-4)
