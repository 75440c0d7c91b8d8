"""Diagonal Gaussians against torch.distributions and quadrature."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from probjepa.distributions.gaussian import kl_diagonal_gaussians


def parameters(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def normal(mean, log_var):
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


@pytest.mark.parametrize("shape", [(1,), (5,), (7, 3), (2, 4, 6)])
def test_kl_is_torchs(shape):
    q, p = parameters(*shape), parameters(*shape, seed=1)
    found = kl_diagonal_gaussians(*q, *p)
    assert found.shape == shape[:-1]
    assert torch.allclose(found, kl_divergence(normal(*q), normal(*p)), rtol=1e-12)
    standard = normal(torch.zeros_like(q[0]), torch.zeros_like(q[0]))
    assert torch.allclose(kl_diagonal_gaussians(*q), kl_divergence(normal(*q), standard), rtol=1e-12)


def test_kl_broadcasts_the_second_one():
    q, p = parameters(7, 3), parameters(3, seed=1)
    expected = kl_divergence(normal(*q), normal(*(x.expand(7, 3) for x in p)))
    assert torch.allclose(kl_diagonal_gaussians(*q, *p), expected, rtol=1e-12)


def test_kl_is_nought_for_equals_and_keeps_its_digits_beside():
    mean, log_var = parameters(4, 3)
    assert torch.equal(kl_diagonal_gaussians(mean, log_var, mean, log_var), torch.zeros(4).double())
    # ½(eʳ − r − 1) = r²/4 + r³/12 + …; the float32 sum eʳ − r − 1 would be rounding noise
    r = torch.full((1, 1), 1e-4)
    found = kl_diagonal_gaussians(torch.zeros(1, 1), r)
    assert found.item() == pytest.approx(1e-8 / 4, rel=1e-4)


def test_kl_gradient():
    q, p = parameters(3, 2), parameters(3, 2, seed=1)
    arguments = [x.requires_grad_() for x in (*q, *p)]
    assert torch.autograd.gradcheck(kl_diagonal_gaussians, arguments)


def test_a_number_in_float64_keeps_its_digits():
    mean, log_var = parameters(5)
    whole = torch.full_like(log_var, 0.3)
    by_number = kl_diagonal_gaussians(mean, log_var, 0.1, 0.3)
    by_tensor = kl_diagonal_gaussians(mean, log_var, torch.full_like(mean, 0.1), whole)
    torch.testing.assert_close(by_number, by_tensor, rtol=1e-14, atol=0)
