"""The density of embeddings, against torch's and scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, StudentT, Uniform

from probjepa.errors import ConfigError, DataError
from probjepa.jacobian.latent import as_density, fit_normal, latent_term


@pytest.mark.parametrize("count", [3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fit_is_the_shrunken_normal(count: int, dtype: torch.dtype) -> None:
    rows = (torch.randn(count, 5, dtype=torch.float64) * torch.arange(1, 6) + 20).to(dtype)
    expected = LedoitWolf().fit(rows.double().numpy())
    found = fit_normal(rows)
    np.testing.assert_allclose(found.mean.numpy(), expected.location_, rtol=1e-12)
    np.testing.assert_allclose(found.covariance_matrix.numpy(), expected.covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-80, 1e80, 1e160, 1e300])
def test_the_fit_has_no_unit(scale: float) -> None:
    rows, asked = torch.randn(50, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    expected = fit_normal(rows).log_prob(asked) - 4 * math.log(scale)
    torch.testing.assert_close(fit_normal(rows * scale).log_prob(asked * scale), expected)
    with pytest.raises(DataError, match="reference embeddings do not vary"):
        fit_normal(torch.full((5, 2), scale, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (torch.ones(1, 3), "too few embeddings, 1: give at least 3"),
        (torch.eye(2), "too few embeddings, 2: give at least 3"),
        (torch.tensor([[1.0, 2], [-1, -2], [1, 2], [-1, -2]]), "or along one line alone"),
        (torch.ones(4, 3), "the latent's 4 reference embeddings do not vary"),
        (torch.ones(3), "the latent's reference embeddings"),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "the latent's reference embeddings"),
    ],
)
def test_references_that_are_refused(rows: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        fit_normal(rows)
    assert "\n" not in str(caught.value)


def test_a_density_is_taken_as_it_is_and_a_reference_is_fitted() -> None:
    normal = Normal(torch.zeros(3), 1.0)
    for given in (None, "normal", normal):
        assert as_density(given) is given  # type: ignore[arg-type]
    fitted = as_density(torch.randn(9, 3))
    assert isinstance(fitted, MultivariateNormal)
    assert isinstance(as_density(np.random.default_rng(0).normal(size=(9, 3))), MultivariateNormal)
    for bad in ("Normal", 3, [[1.0, 2.0]]):
        with pytest.raises(ConfigError, match=r"^latent is '.*': use None") as caught:
            as_density(bad)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_term_is_the_log_density_in_float64(dtype: torch.dtype) -> None:
    z = torch.randn(6, 4).to(dtype)
    assert torch.equal(latent_term(None, z), torch.zeros(6).double())
    rows = z.double()
    standard = torch.tensor(
        [sum(-0.5 * (v * v + math.log(2 * math.pi)) for v in row) for row in rows.tolist()]
    )
    torch.testing.assert_close(latent_term("normal", z), standard.double(), rtol=1e-6, atol=0)
    exact = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()).log_prob(rows)
    torch.testing.assert_close(latent_term("normal", z), exact, rtol=1e-14, atol=1e-14)
    wide = MultivariateNormal(torch.ones(4).double(), 2 * torch.eye(4).double())
    torch.testing.assert_close(latent_term(wide, z), wide.log_prob(rows), rtol=1e-14, atol=1e-14)
    single = Independent(StudentT(5.0, torch.zeros(4), torch.ones(4)), 1)  # of float32, so it is given that
    found = latent_term(single, z)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, single.log_prob(z.float()).double())


class Meanless(Distribution):
    """A density that has no mean, as some have none; uniform on [−10, 10]²."""

    arg_constraints: dict[str, object] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size((2,)))

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.dtype == torch.float64
        return Uniform(-10.0, 10.0).log_prob(value).sum(1)


class Single(Meanless):
    """One that has a mean, of float32, and takes nothing else."""

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2)

    def log_prob(self, value: Tensor) -> Tensor:
        assert value.dtype == torch.float32
        return value.sum(1)


def test_a_density_is_given_the_type_of_its_mean() -> None:
    z = torch.randn(3, 2, dtype=torch.float64)
    found = latent_term(Single(), z)
    assert torch.equal(found, z.float().sum(1).double())


def test_a_density_without_a_mean_is_given_float64() -> None:
    found = latent_term(Meanless(), torch.randn(3, 2))
    torch.testing.assert_close(found, torch.full((3,), -2 * math.log(20)).double())


@pytest.mark.parametrize(
    ("density", "text"),
    [
        (Normal(0.0, 1.0), r"batch shape \(\) and event shape \(\)"),
        (Normal(torch.zeros(4), 1.0), r"batch shape \(4,\) and event shape \(\)"),
        (Independent(Normal(torch.zeros(3, 4), 1.0), 1), r"batch shape \(3,\) and event shape \(4,\)"),
        (Independent(Normal(torch.zeros(5), 1.0), 1), r"event shape \(5,\), and the embeddings have 4 dim"),
        (Independent(Normal(torch.zeros(2, 4), 1.0), 2), r"batch shape \(\) and event shape \(2, 4\)"),
    ],
)
def test_a_density_over_another_space_is_refused(density: Distribution, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        latent_term(density, torch.randn(2, 4))
