"""The point prediction's two losses against their formulas in numpy."""

import numpy as np
import pytest
import torch

from probjepa import heads
from probjepa.heads import Deterministic
from probjepa.heads.deterministic import variance_covariance


def setting(loss, n=40, dim=6):
    torch.manual_seed(0)
    head = Deterministic(dim, 3, hidden=(8,), loss=loss).double()
    context = torch.randn(n, 3, dtype=torch.float64)
    target = 2 * torch.randn(n, dim, dtype=torch.float64)
    prediction = head(context)
    return prediction, target, prediction.mean.detach().numpy(), target.numpy()


def test_smooth_l1():
    prediction, target, point, y = setting("smooth-l1")
    apart = np.abs(point - y)
    expected = np.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean(1)
    assert (apart < 1).any() and (apart > 1).any()
    np.testing.assert_allclose(prediction.loss(target).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 40])
def test_alignment_variance_covariance(n):
    prediction, target, point, y = setting("vic", n)
    covariance = np.cov(point.T)
    off_diagonal = covariance - np.diag(np.diag(covariance))
    variance = np.maximum(0, 1 - np.sqrt(point.var(0, ddof=1) + 1e-4)).mean()
    batch = 0.1 * variance + 0.01 * (off_diagonal**2).sum() / 6
    assert variance > 0
    np.testing.assert_allclose(
        prediction.loss(target).detach(), ((point - y) ** 2).mean(1) + batch, rtol=1e-10
    )


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_one_prediction_has_no_batch_terms(shape):
    head = Deterministic(4, 3, loss="vic")
    prediction, target = head(torch.randn(*shape, 3)), torch.randn(*shape, 4)
    torch.testing.assert_close(prediction.loss(target), (prediction.mean - target).square().mean(-1))


def test_the_terms_do_not_depend_on_how_the_batch_is_shaped():
    head = Deterministic(4, 3, loss="vic")
    context, target = torch.randn(12, 3), torch.randn(12, 4)
    flat = head(context).loss(target)
    shaped = head(context.reshape(3, 4, 3)).loss(target.reshape(3, 4, 4))
    torch.testing.assert_close(shaped.flatten(), flat)


@pytest.mark.parametrize("scale", [1.0, 1e10])
def test_uncorrelated_predictions_have_no_covariance(scale):
    """Of orthogonal columns the off-diagonal is a 1e-7th of the diagonal, which must not cancel it away."""
    z = torch.randn(512, 32)
    point = 100 * torch.linalg.qr(z - z.mean(0))[0] * 512**0.5
    _, covariance = variance_covariance(scale * point)
    diagonal = (scale * point.double()).var(0).square().sum() / 32
    assert 0 <= covariance < 1e-12 * diagonal


@pytest.mark.parametrize(("scale", "finite"), [(1e8, True), (1e20, False), (1e37, False)])
def test_covariance_of_large_predictions(scale, finite):
    """The value in float64, which above float32's range is Inf and never NaN."""
    z = torch.randn(40, 6)
    variance, covariance = variance_covariance(scale * z)
    expected = variance_covariance(scale * z.double())[1].float()
    assert variance == 0 and expected.isfinite() == finite
    torch.testing.assert_close(covariance, expected, rtol=1e-4, atol=0)


def test_samples_are_the_point():
    prediction = Deterministic(4, 3)(torch.randn(5, 3))
    assert torch.equal(prediction.sample((2,)), prediction.mean.expand(2, 5, 4))


def test_every_name_of_the_room_is_found_under_itself():
    for name in set(heads.__all__) - {"HEADS"}:
        assert getattr(heads, name).__name__ == name
