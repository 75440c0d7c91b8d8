"""Projectors against their formula in numpy, and their layers."""

import numpy as np
import pytest
import torch
from torch import nn

from probjepa.errors import ConfigError
from probjepa.heads import projector
from probjepa.heads.projectors import equal_widths


def by_hand(layers, x):
    """The layers applied in float64: a matrix product, batch statistics, a maximum."""
    x = x.double().numpy()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().double().numpy().T
            if layer.bias is not None:
                x = x + layer.bias.detach().double().numpy()
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            if layer.affine:
                x = x * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()
        else:
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("last_norm", ["none", "plain", "affine"])
def test_it_is_its_formula(last_norm):
    torch.manual_seed(0)
    g = projector([5, 9, 7, 4], last_norm=last_norm)
    with torch.no_grad():
        for p in g.parameters():  # scales and shifts away from 1 and 0
            p.add_(0.1 * torch.randn(p.shape))
    x = torch.randn(11, 5)
    np.testing.assert_allclose(g(x).detach(), by_hand(g, x), rtol=1e-3, atol=1e-5)


def test_layers():
    kinds = {
        "none": [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear],
        "plain": [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d],
    }
    for last_norm, expected in kinds.items():
        g = projector([6, 8, 3], last_norm=last_norm)
        assert [type(layer) for layer in g] == expected
        assert g[0].bias is None  # the normalisation behind it would take it out
        assert g[1].affine
        assert (g[3].bias is None) == (last_norm == "plain")
    assert not projector([6, 8, 3], last_norm="plain")[-1].affine
    assert projector([6, 8, 3], last_norm="affine")[-1].affine
    assert projector([6, 8, 3], last_bias=False)[-1].bias is None
    assert [type(layer) for layer in projector([6, 3])] == [nn.Linear]
    assert equal_widths(6, 8, 3) == [6, 8, 8, 8]


@pytest.mark.parametrize("widths", [[4], [4, 0], [4, 2.0], []])
def test_wrong_widths(widths):
    with pytest.raises(ConfigError, match="at least one layer, of whole widths") as error:
        projector(widths)
    assert "\n" not in str(error.value)


def test_wrong_settings():
    with pytest.raises(ConfigError, match="'none', 'plain' or 'affine'"):
        projector([4, 2], last_norm="batch")
    for layers in (0, 1.5):
        with pytest.raises(ConfigError, match="projector_layers"):
            equal_widths(4, 2, layers)


def test_a_width_of_one_is_a_width():
    assert projector([1, 1])(torch.ones(3, 1)).shape == (3, 1)
