"""SIGReg against numpy quadrature, its closed-form null value, and laws that are not N(0, I)."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from probjepa.errors import ConfigError, DataError
from probjepa.methods.sigreg import sigreg


def plain_epps_pulley(projection: np.ndarray, s: float) -> float:
    """One direction, by a loop over the whole line's 33 points."""
    t = np.linspace(-3 * s, 3 * s, 33)
    values = [
        (abs(np.mean(np.exp(1j * tj * projection)) - np.exp(-(tj**2) / 2)) ** 2)
        * np.exp(-(tj**2) / (2 * s**2))
        for tj in t
    ]
    return len(projection) * np.trapezoid(values, t)


def directions(count: int, dim: int, seed: int) -> np.ndarray:
    normal = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (normal / normal.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize(("dim", "resolution"), [(1, 1.0), (3, 2.5), (20, 1.0)])
def test_matches_quadrature(dim, resolution):
    z = np.random.default_rng(dim).normal(0.3, 1.4, (50, dim))
    expected = np.mean([plain_epps_pulley(z @ a, resolution) for a in directions(7, dim, 5)])
    found = sigreg(torch.from_numpy(z), 7, torch.Generator().manual_seed(5), resolution=resolution)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_null_value_and_alternatives():
    # E|φ_N − φ|² = (1 − φ²)/N for samples of the target itself
    null, _ = quad(lambda t: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), -3, 3)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(200, 256, 4, generator=generator, dtype=torch.float64)
    values = torch.stack([sigreg(z, 16, generator) for z in draws])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - null) < 4 * error + 0.01
    normal = draws[0]
    others = [normal + 0.7, 2 * normal, 0.3 * normal, normal.sign(), normal[:, :1].expand(-1, 4)]
    assert all(sigreg(z, 256, generator) > 4 * null for z in others)


def test_a_finer_resolution_sees_finer_structure():
    # a normal rounded to a grid of one standard deviation: its characteristic function is 1 again at t = 2π
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    z = z / z.std()
    nulls = [
        quad(lambda t, s=s: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / (2 * s**2)), -3 * s, 3 * s)[0]
        for s in (1, 3)
    ]
    assert sigreg(z, 1) < 2 * nulls[0]
    assert sigreg(z, 1, resolution=3.0) > 50 * nulls[1]


def test_gradient_descent_makes_points_gaussian():
    generator = torch.Generator().manual_seed(1)
    z = (torch.rand(400, 2, generator=generator) * 0.2).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        sigreg(z, 32, generator).backward()
        optimiser.step()
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.1)
    assert torch.allclose(torch.cov(z.T), torch.eye(2), atol=0.2)


@pytest.mark.parametrize(
    ("shape", "count", "error"), [((5,), 4, DataError), ((0, 3), 4, DataError), ((5, 3), 0, ConfigError)]
)
def test_refuses(shape, count, error):
    with pytest.raises(error, match="SIGReg"):
        sigreg(torch.zeros(shape), count)


@pytest.mark.parametrize("resolution", [0.0, 3.5, float("nan")])
def test_refuses_a_resolution(resolution):
    with pytest.raises(ConfigError, match="resolution"):
        sigreg(torch.zeros(5, 3), 4, resolution=resolution)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_float32_of_narrow_numbers_and_under_autocast(dtype):
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = sigreg(z.float(), 16, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(z, 16, torch.Generator().manual_seed(1))
    for found in (inside, sigreg(z, 16, torch.Generator().manual_seed(1))):
        assert found.dtype == torch.float32 and torch.equal(found, expected)
