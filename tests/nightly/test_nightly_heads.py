"""Every head on three conditional densities that are known exactly: the gap in nats, and its samples.

Measured at these settings, gap in nats / energy distance (two samples of the truth: up to 0.004):

                 two moons         ring              bimodal
mdn              0.001 / -0.001    0.002 / -0.000    0.001 / -0.001
autoregressive   0.007 /  0.001    0.003 / -0.000    0.001 / -0.001
realnvp          0.001 / -0.000    0.011 /  0.001    0.015 / -0.001
flow_matching    0.008 / -0.000    0.004 /  0.001    0.006 / -0.001
diffusion              /  0.001          /  0.000          / -0.001
gaussian         0.703 /  0.023    0.399 /  0.016    0.913 /  0.100
deterministic          /  0.513          /  0.700          /  0.856
"""

import pytest
import torch

from head_densities import DENSITIES, energy_gap, nll_gap, train
from probjepa.heads import HEADS

pytestmark = pytest.mark.nightly

SETTINGS = {
    "mdn": {"hidden": (64, 64), "components": 16},  # five Gaussians cannot follow a ring to 0.05 nats
    "autoregressive": {"hidden": (64, 64)},
    "realnvp": {"hidden": (64, 64)},
    "flow_matching": {"width": 64, "blocks": 2, "code_width": 64},
    "diffusion": {"width": 64, "blocks": 2, "code_width": 64},
    "gaussian": {"hidden": (64, 64)},
    "deterministic": {"hidden": (64, 64)},
}
FLEXIBLE = ["mdn", "autoregressive", "realnvp", "flow_matching"]


@pytest.fixture(scope="module", params=list(DENSITIES))
def density(request):
    return DENSITIES[request.param]


def trained(name, density):
    torch.manual_seed(0)
    head = HEADS[name](2, density.context_dim, **SETTINGS[name])
    return train(head, density, steps=1500, batch=512)


@pytest.mark.parametrize("name", FLEXIBLE)
def test_the_density_is_within_a_twentieth_of_a_nat(name, density):
    head = trained(name, density)
    gap, energy = nll_gap(head, density, n=10_000), energy_gap(head, density)
    print(f"\n{type(density).__name__} {name}: gap {gap:.4f} nats, energy distance {energy:.4f}")
    assert -0.01 < gap < 0.05
    assert energy < 0.01


def test_diffusion_draws_from_the_density(density):
    head = trained("diffusion", density)
    energy, fast = energy_gap(head, density), energy_gap(head, density, steps=25)
    print(f"\n{type(density).__name__} diffusion: energy distance {energy:.4f}, in 25 steps {fast:.4f}")
    assert energy < 0.01
    assert fast < 0.01


def test_one_gaussian_and_one_point_do_not_suffice(density):
    """What the bounds above would not let pass, and the order that the spread of a target implies."""
    gaussian, point = trained("gaussian", density), trained("deterministic", density)
    gap, energy, apart = nll_gap(gaussian, density), energy_gap(gaussian, density), energy_gap(point, density)
    print(f"\n{type(density).__name__}: gaussian gap {gap:.4f}, energy {energy:.4f}; point's {apart:.4f}")
    assert gap > 0.2
    assert 0.01 < energy < 0.2 < apart < 1.5
