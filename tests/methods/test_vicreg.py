"""VICReg's terms against loops in numpy, their known zeros, and the whole method's gradient."""

import numpy as np
import pytest
import torch
from baseline_cases import check_full_precision, check_gradients, embeddings, small, view_pair
from torch import nn

from probjepa.errors import ConfigError, DataError
from probjepa.methods.vicreg import vicreg_loss


def by_hand(z1, z2):
    """The three terms with np.cov and a loop over pairs of features."""
    z1, z2 = z1.numpy(), z2.numpy()
    n, d = z1.shape
    invariance = sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    hinges, covariances = [], []
    for z in (z1, z2):
        cov = np.cov(z, rowvar=False)
        hinges.append(np.mean([max(0.0, 1 - np.sqrt(cov[j, j] + 1e-4)) for j in range(d)]))
        covariances.append(sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d)
    return invariance, np.mean(hinges), sum(covariances)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (2.0, 0.5, 3.0)])
def test_loss_is_its_formula(weights):
    z1, z2 = embeddings(2)
    invariance, variance, covariance = by_hand(z1, z2)
    terms = vicreg_loss([z1, z2], *weights)
    assert terms["invariance"].item() == pytest.approx(invariance, rel=1e-12)
    assert terms["variance"].item() == pytest.approx(variance, rel=1e-12)
    assert terms["covariance"].item() == pytest.approx(covariance, rel=1e-12)
    total = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
    assert terms["loss"].item() == pytest.approx(total, rel=1e-12)
    assert variance > 0  # the hinge is at work
    swapped = vicreg_loss([z2, z1], *weights)
    assert all(swapped[k].item() == pytest.approx(v.item(), rel=1e-12) for k, v in terms.items())


def test_gradients_and_precision():
    z1, z2 = embeddings(2, n=6, dim=3)
    check_gradients(lambda a, b: vicreg_loss([a, b])["loss"], z1, z2)
    check_full_precision(lambda a, b: vicreg_loss([a, b])["loss"], z1, z2)


def test_loss_is_zero_for_equal_white_views():
    # orthogonal columns of mean 0 and unbiased variance 4
    q, _ = np.linalg.qr(np.c_[np.ones(20), np.random.default_rng(0).normal(size=(20, 4))])
    z = torch.from_numpy(q[:, 1:] * 2 * np.sqrt(19))
    terms = vicreg_loss([z, z.clone()])
    assert all(v.item() == pytest.approx(0, abs=1e-12) for v in terms.values())
    collapsed = vicreg_loss([torch.ones(20, 4), torch.ones(20, 4)])
    assert collapsed["variance"].item() == pytest.approx(1 - 0.01, abs=1e-6)  # √1e-4 is left
    assert collapsed["covariance"].item() == 0


def test_the_method_is_its_loss():
    model, batch = small("vicreg", projector_dim=12, invariance_weight=3.0).train(), view_pair()
    z1, z2 = model.projector(model.encoder(torch.cat(batch))).chunk(2)
    expected = vicreg_loss([z1, z2], 3.0)
    found = model.loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    linears = [m for m in small("vicreg").projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias) for m in linears] == [
        (16, 2048, None),
        (2048, 2048, None),
        (2048, 2048, None),
    ]


def test_wrong_settings_and_batches():
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"covariance_weight (must be|takes) a finite number"):
            small("vicreg", covariance_weight=weight)
    with pytest.raises(DataError, match="at least 2 images"):
        vicreg_loss([torch.zeros(1, 4), torch.zeros(1, 4)])
    with pytest.raises(DataError, match="takes two or more views"):
        small("vicreg", projector_dim=8).loss(view_pair(count=1))


@pytest.mark.parametrize("size", [1e8, 1e20, 1e37])
def test_large_features_have_a_loss(size):
    """The value in float64, which above float32's range is Inf and never NaN."""
    z1, z2 = (size * z for z in embeddings(2))
    expected = vicreg_loss([z1, z2])
    for key, value in vicreg_loss([z1.float(), z2.float()]).items():
        torch.testing.assert_close(value, expected[key].float(), rtol=1e-4, atol=0)
    assert vicreg_loss([z1.float(), z1.float()])["loss"] > 1e30
