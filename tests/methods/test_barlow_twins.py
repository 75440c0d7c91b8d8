"""Barlow Twins' loss against loops in numpy, its known minimum, and the whole method."""

import numpy as np
import pytest
import torch
from baseline_cases import check_full_precision, check_gradients, embeddings, small, view_pair
from torch import nn

from probjepa.errors import ConfigError, DataError
from probjepa.methods.barlow_twins import barlow_twins_loss


def by_hand(z1, z2):
    z1, z2 = z1.numpy(), z2.numpy()
    z1, z2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    n, d = z1.shape
    invariance = redundancy = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(z1[k, i] * z2[k, j] for k in range(n)) / n
            if i == j:
                invariance += (1 - c) ** 2
            else:
                redundancy += c**2
    return invariance, redundancy


def test_loss_is_its_formula():
    z1, z2 = embeddings(2)
    invariance, redundancy = by_hand(z1, z2)
    for weight in (5e-3, 0.7):
        terms = barlow_twins_loss([z1, z2], weight)
        assert terms["invariance"].item() == pytest.approx(invariance, rel=1e-12)
        assert terms["redundancy"].item() == pytest.approx(redundancy, rel=1e-12)
        assert terms["loss"].item() == pytest.approx(invariance + weight * redundancy, rel=1e-12)
        swapped = barlow_twins_loss([z2, z1], weight)
        assert swapped["loss"].item() == pytest.approx(terms["loss"].item(), rel=1e-12)
    assert barlow_twins_loss([z1, z2])["loss"].item() == pytest.approx(invariance + 5e-3 * redundancy)


def test_it_is_numpys_correlation_and_knows_no_scale():
    z1, z2 = embeddings(2, n=40)
    c = np.corrcoef(z1.numpy(), z2.numpy(), rowvar=False)[:5, 5:]
    expected = ((1 - np.diag(c)) ** 2).sum() + 5e-3 * ((c - np.diag(np.diag(c))) ** 2).sum()
    assert barlow_twins_loss([z1, z2])["loss"].item() == pytest.approx(expected, rel=1e-3)
    scaled = barlow_twins_loss([100 * z1 - 3, 50 * z2 + 7])
    assert scaled["loss"].item() == pytest.approx(expected, rel=1e-3)


def test_gradients_and_precision():
    z1, z2 = embeddings(2, n=6, dim=3)
    check_gradients(lambda a, b: barlow_twins_loss([a, b])["loss"], z1, z2)
    check_full_precision(lambda a, b: barlow_twins_loss([a, b])["loss"], z1, z2)


def test_loss_is_zero_for_equal_uncorrelated_views():
    q, _ = np.linalg.qr(np.c_[np.ones(20), np.random.default_rng(0).normal(size=(20, 4))])
    z = torch.from_numpy(q[:, 1:]) * 1e4  # far above the floor of the variance
    assert barlow_twins_loss([z, z])["loss"].item() == pytest.approx(0, abs=1e-12)
    assert barlow_twins_loss([z, -z])["loss"].item() == pytest.approx(4 * 4, rel=1e-9)
    collapsed = barlow_twins_loss([torch.ones(20, 4), torch.ones(20, 4)])
    assert collapsed["loss"].item() == pytest.approx(4, rel=1e-6)


def test_the_method_is_its_loss():
    model, batch = small("barlow-twins", projector_dim=12, redundancy_weight=0.2).train(), view_pair()
    z1, z2 = model.projector(model.encoder(torch.cat(batch))).chunk(2)
    expected = barlow_twins_loss([z1, z2], 0.2)
    found = model.loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    linears = [m for m in small("barlow-twins").projector if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [2048] * 3
    with pytest.raises(ConfigError, match="redundancy_weight"):
        small("barlow-twins", redundancy_weight=-1.0)


@pytest.mark.parametrize("size", [1e8, 1e18, 1e20, 1e37])
def test_large_features_have_their_correlations(size):
    z1, z2 = embeddings(2)
    expected = barlow_twins_loss([1e8 * z1, 1e8 * z2])
    found = barlow_twins_loss([size * z1.float(), size * z2.float()])
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-4), key


def test_one_row_is_refused():
    with pytest.raises(DataError, match="Barlow Twins loss needs at least 2 images a batch, got 1"):
        barlow_twins_loss([torch.zeros(1, 4), torch.zeros(1, 4)])
