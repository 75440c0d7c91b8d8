"""LeJEPA's loss against numpy quadrature, its directions, and any number of views."""

import numpy as np
import pytest
import torch
from baseline_cases import check_full_precision, check_gradients, embeddings, small, view_pair
from torch import nn

from probjepa.errors import ConfigError, DataError
from probjepa.methods.lejepa import lejepa_loss


def by_hand(z, n_directions, seed):
    """Invariance, and the Epps–Pulley statistic by loops over views, directions and the whole line's points."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_directions, z.shape[2], generator=generator, dtype=torch.float64).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    z = z.numpy()
    invariance = ((z - z.mean(0, keepdims=True)) ** 2).mean()
    t = np.linspace(-3, 3, 33)
    values = []
    for view in z:
        for a in directions:
            phi = np.exp(1j * np.outer(view @ a, t)).mean(0)
            gap = np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
            values.append(len(view) * np.trapezoid(gap, t))
    return invariance, np.mean(values)


@pytest.mark.parametrize("count", [2, 3])
def test_loss_is_its_formula(count):
    z = torch.stack(embeddings(count))
    invariance, statistic = by_hand(z, 7, 3)
    terms = lejepa_loss(z, 0.05, 7, 3)
    assert terms["invariance"].item() == pytest.approx(invariance, rel=1e-12)
    assert terms["sigreg"].item() == pytest.approx(statistic, rel=1e-9)
    assert terms["loss"].item() == pytest.approx(0.95 * invariance + 0.05 * statistic, rel=1e-9)
    shuffled = lejepa_loss(z.flip(0), 0.05, 7, 3)
    assert shuffled["loss"].item() == pytest.approx(terms["loss"].item(), rel=1e-12)


def test_two_views_invariance_is_half_their_half_distance():
    z1, z2 = embeddings(2)
    found = lejepa_loss(torch.stack([z1, z2]))["invariance"].item()
    assert found == pytest.approx(((z1 - z2) / 2).square().mean().item(), rel=1e-12)


def test_gradients_and_precision():
    z = torch.stack(embeddings(3, n=5, dim=3))
    check_gradients(lambda x: lejepa_loss(x, 0.3, 4, 1)["loss"], z)
    check_full_precision(lambda x: lejepa_loss(x, 0.3, 4, 1)["loss"], z)


def test_equal_normal_views_are_the_optimum():
    z = torch.randn(800, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = lejepa_loss(torch.stack([z, z]), 0.5, 64)
    assert best["invariance"].item() < 1e-30  # the mean of equal views, to rounding
    assert best["sigreg"] < 3  # its expectation is 1.06 for N(0, I), and grows like N for anything else
    for worse in (torch.zeros_like(z), 2 * z, z + 0.5):
        assert lejepa_loss(torch.stack([worse, worse]), 0.5, 64)["loss"] > 20 * best["loss"]
    assert lejepa_loss(torch.stack([z, -z]), 0.5)["invariance"] > 0.5


def test_directions_are_fresh_in_every_step_and_come_from_torchs_generator():
    model, batch = small("lejepa", projector_dim=8, hidden_dim=12, n_directions=4).eval(), view_pair()
    torch.manual_seed(1)
    first, second = model.loss(batch), model.loss(batch)
    torch.manual_seed(1)
    again = model.loss(batch)
    assert first["sigreg"] == again["sigreg"] != second["sigreg"]
    assert first["invariance"] == second["invariance"]


@pytest.mark.parametrize("count", [2, 4])
def test_the_method_is_its_loss(count):
    model = small("lejepa", projector_dim=8, hidden_dim=12, sigreg_weight=0.3, n_directions=2000).train()
    batch = view_pair(count=count)
    z = torch.stack(model.projector(model.encoder(torch.cat(batch))).chunk(count))
    expected, found = lejepa_loss(z, 0.3, 2000), model.loss(batch)
    assert found["invariance"].item() == pytest.approx(expected["invariance"].item(), rel=1e-4)
    assert found["sigreg"].item() == pytest.approx(expected["sigreg"].item(), rel=0.1)
    weighted = 0.7 * found["invariance"] + 0.3 * found["sigreg"]
    assert found["loss"].item() == pytest.approx(weighted.item(), rel=1e-5)


def test_layers_and_wrong_settings():
    model = small("lejepa")
    widths = [(m.in_features, m.out_features) for m in model.projector if isinstance(m, nn.Linear)]
    assert widths == [(16, 2048), (2048, 2048), (2048, 128)]
    for weight in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="sigreg_weight"):
            small("lejepa", sigreg_weight=weight)
    with pytest.raises(ConfigError, match="n_directions"):
        small("lejepa", n_directions=0)
    model = small("lejepa", hidden_dim=8)
    with pytest.raises(DataError, match="two or more views"):
        model.loss(view_pair(count=1))
    with pytest.raises(DataError, match="of the same images"):
        model.loss([*view_pair(4), *view_pair(5, count=1)])
