"""The inference network against its formula written out in numpy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from probjepa.errors import ConfigError
from probjepa.heads import InferenceNetwork


def network(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return InferenceNetwork(*args, **kwargs)


def batch(n=7, dim=40, seed=1):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def by_hand(g, h):
    """μ and σ² in float64, from the weights alone."""
    weights = {name: p.detach().double().numpy() for name, p in g.named_parameters()}
    x = h.double().numpy()
    for linear, norm in (("trunk.0", "trunk.1"), ("trunk.3", "trunk.4")):
        x = x @ weights[f"{linear}.weight"].T
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        x = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    mean = x @ weights["mean.weight"].T + weights["mean.bias"]
    raw = x @ weights["raw_variance.weight"].T + weights["raw_variance.bias"]
    return mean, np.broadcast_to(np.log1p(np.exp(raw)) + 1e-6, mean.shape)


@pytest.mark.parametrize("variance", ["diagonal", "isotropic"])
def test_it_is_its_formula(variance):
    g, h = network(40, variance=variance), batch()
    with torch.no_grad():
        for p in g.parameters():  # biases and norms away from 0 and 1
            p.add_(0.1 * torch.randn(p.shape))
    mean, var = g(h)
    assert mean.shape == var.shape == (7, 40)
    expected = by_hand(g, h)
    np.testing.assert_allclose(mean.detach(), expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var.detach(), expected[1], rtol=1e-4, atol=1e-5)
    assert (len(set(var[0].tolist())) == 1) == (variance == "isotropic")


@pytest.mark.parametrize(("dim", "hidden"), [(512, 128), (2048, 512), (64, 16), (8, 8)])
def test_layers_and_widths(dim, hidden):
    g = network(dim)
    linears = [m for m in g.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is not None) for m in linears] == [
        (dim, hidden, False),
        (hidden, hidden, False),
        (hidden, dim, True),
        (hidden, dim, True),
    ]
    assert [m.normalized_shape for m in g.modules() if isinstance(m, nn.LayerNorm)] == [(hidden,)] * 2
    assert network(dim, hidden_dim=5).mean.in_features == 5


def test_weights_start_xavier_uniform():
    g = network(512)
    for layer in (m for m in g.modules() if isinstance(m, nn.Linear)):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        weight = layer.weight.detach()
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        if layer.bias is not None:
            assert torch.count_nonzero(layer.bias) == 0


def test_variance_stays_above_its_floor_and_finite():
    g = network(40)
    for bias, expected in [(-200.0, 1e-6), (200.0, 200.0)]:
        nn.init.zeros_(g.raw_variance.weight)
        nn.init.constant_(g.raw_variance.bias, bias)
        variance = g(batch())[1]
        torch.testing.assert_close(variance, torch.full_like(variance, expected), rtol=1e-5, atol=0)


def test_it_runs_in_float32_under_autocast():
    g, h = network(40), batch()
    with torch.autocast("cpu", torch.bfloat16):
        inside = g(h.bfloat16())
    for got, expected in zip(inside, g(h.bfloat16().float()), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variance": "full"}, "'diagonal' or 'isotropic'"),
        ({"hidden_dim": 1}, "at least 2"),
        ({"hidden_dim": 3.0}, "whole number"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        InferenceNetwork(16, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dim", [4, 8])
def test_narrow_embeddings_still_reach_the_posterior(dim):
    g = network(dim)
    mean, variance = g(batch(dim=dim))
    assert mean.std(0).min() > 1e-3
    assert variance.std(0).min() > 1e-3


@pytest.mark.parametrize("size", [1e16, 1e20, 1e38])
def test_embeddings_far_away_have_their_direction(size):
    """The first layer norm takes the scale away: what is left is the limit, as float64 gives it."""
    g, h = network(40), batch() / 4
    expected = by_hand(g, 1e6 * h)
    for got, wanted in zip(g(size * h), expected, strict=True):
        np.testing.assert_allclose(got.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_gradients_of_embeddings_far_away_are_those_of_the_direction():
    g, h = network(40), batch()
    grads = []
    for size in (1e20, 1e8):
        x = (size * h).requires_grad_()
        grads.append(size * torch.autograd.grad(sum(out.sum() for out in g(x)), x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
