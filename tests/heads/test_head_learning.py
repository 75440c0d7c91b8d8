"""Heads learn a density that is known exactly; the nightly tests do the same at length, on more of them."""

import pytest
import torch

from head_densities import DENSITIES, energy_gap, nll_gap, train
from probjepa.heads import HEADS

# The truth is two Gaussians whose place and weights follow the context. One Gaussian misses it by 0.9 nats
# and an energy distance of 0.1, a point by 0.86; two samples of the truth are 0.001 apart.
SETTINGS = {
    "mdn": {"hidden": (32,), "components": 4},
    "autoregressive": {"hidden": (32, 32)},
    "realnvp": {"hidden": (32, 32)},
    "flow_matching": {"width": 32, "blocks": 2, "code_width": 32},
    "diffusion": {"width": 32, "blocks": 2, "code_width": 32},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_bimodal_density_is_learned(name):
    density = DENSITIES["bimodal"]
    torch.manual_seed(0)
    head = HEADS[name](2, density.context_dim, **SETTINGS[name])
    train(head, density, steps=300, batch=128, learning_rate=5e-3)
    if name != "diffusion":
        assert -0.01 < nll_gap(head, density) < 0.12
    assert energy_gap(head, density) < 0.05


def test_a_gaussian_head_finds_the_moments():
    density = DENSITIES["bimodal"]
    torch.manual_seed(0)
    head = train(HEADS["gaussian"](2, 2, hidden=(32,)), density, steps=300, batch=256, learning_rate=5e-3)
    context = density.probe.unsqueeze(0)
    mode, weight = density._modes(context)
    prediction = head(context)
    mean = (2 * weight - 1).unsqueeze(-1) * mode
    variance = density.noise**2 + mode.square() - mean.square()
    assert (prediction.mean - mean).abs().max() < 0.1
    assert (prediction.variance / variance - 1).abs().max() < 0.25
