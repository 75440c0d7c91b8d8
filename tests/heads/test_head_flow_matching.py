"""Flow matching with fields known in closed form: the loss, the solver, the samples and the density."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from probjepa.errors import ConfigError
from probjepa.heads import FlowMatching
from probjepa.heads.base import Head

COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.8]], dtype=torch.float64)


class GaussianField(nn.Module):
    """The velocity of least loss when the target is N(c, Σ): m + (tΣ − (1−t)I)((1−t)²I + t²Σ)⁻¹(y − tm)."""

    def __init__(self, covariance):
        super().__init__()
        self.covariance = covariance

    def encode(self, context):
        return context

    def forward(self, y, t, mean):
        eye = torch.eye(len(self.covariance), dtype=y.dtype)
        t = t[..., None, None]
        gain = (t * self.covariance - (1 - t) * eye) @ torch.linalg.inv(
            (1 - t) ** 2 * eye + t**2 * self.covariance
        )
        return mean + (gain @ (y - t.squeeze(-1) * mean).unsqueeze(-1)).squeeze(-1)


class LinearField(nn.Module):
    """v = Ay at all times: the flow is exp(A)."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def encode(self, context):
        return context

    def forward(self, y, t, code):
        return y @ self.matrix.T


def with_field(field, dim, context_dim=2, **settings):
    head = FlowMatching(dim, context_dim, width=4, blocks=1, code_width=4, **settings).double().eval()
    assert isinstance(head, Head)
    head._dtype_keeper = head.velocity  # the field has no parameters to tell the head's type
    head.velocity = field
    return head


def gaussian(n=(), **settings):
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    head = with_field(GaussianField(COVARIANCE), 2, **settings)
    return head(mean.expand(*n, 2)), MultivariateNormal(mean, COVARIANCE)


def test_samples_of_a_gaussian():
    prediction, truth = gaussian()
    n = 20_000
    drawn = prediction.sample((n,), torch.Generator().manual_seed(0))
    error = (truth.covariance_matrix.diagonal() / n).sqrt()
    assert ((drawn.mean(0) - truth.mean).abs() < 3 * error).all()
    # the standard error of a covariance: √((Σᵢⱼ² + ΣᵢᵢΣⱼⱼ)/n)
    diagonal = COVARIANCE.diagonal()
    error = ((COVARIANCE**2 + diagonal[:, None] * diagonal) / n).sqrt()
    assert ((drawn.T.cov() - COVARIANCE).abs() < 3 * error).all()


def test_the_mean_of_a_gaussian_is_exact():
    prediction, truth = gaussian((3,))
    torch.testing.assert_close(prediction.mean, truth.mean.expand(3, 2))


def test_the_density_of_a_gaussian():
    prediction, truth = gaussian()
    rows = truth.sample((50,))
    exact = truth.log_prob(rows)
    error = {k: (prediction.log_prob(rows, steps=k) - exact).abs().max().item() for k in (25, 50, 100)}
    assert error[25] < 0.02
    assert error[25] / error[50] > 3 and error[50] / error[100] > 3  # Heun's rule is of second order


def test_euler_is_of_first_order():
    prediction, truth = gaussian(solver="euler")
    rows = truth.sample((50,))
    exact = truth.log_prob(rows)
    coarse, fine = ((prediction.log_prob(rows, steps=k) - exact).abs().max() for k in (100, 200))
    assert 1.6 < coarse / fine < 2.5


@pytest.mark.parametrize(
    ("scale", "scored", "heun"), [(1, 0.999, 1.0), (0.3, 0.299, 0.301), (0.1, 0.098, 0.102)]
)
def test_the_scale_of_samples_is_what_the_docstring_says(scale, scored, heun):
    """A linear field's samples are a multiple of the noise."""
    head = with_field(GaussianField(scale**2 * torch.eye(2).double()), 2)
    prediction, noise = (
        head(torch.zeros(2).double()),
        torch.randn(1, 2, generator=torch.Generator(), dtype=torch.float64),
    )
    for of, expected in ((prediction.for_scores(), scored), (prediction, heun)):
        drawn = of.sample((1,), torch.Generator())
        assert (drawn / noise).flatten().tolist() == pytest.approx([expected] * 2, abs=5e-4)


def test_the_density_for_scores_of_a_gaussian():
    prediction, truth = gaussian()
    rows = truth.sample((50,))
    # in two dimensions the exact trace costs no more than two probes
    error = prediction.for_scores().log_prob(rows) - truth.log_prob(rows)
    assert error.abs().max() < 0.05
    # two Rademacher vectors: Σ's off-diagonal is the estimate's error, 0 on average over many elements
    many, truth = gaussian((4000,))
    rows = truth.sample((4000,))
    error = many.for_scores().log_prob(rows, trace="hutchinson") - truth.log_prob(rows)
    assert error.std() > 0.1
    assert abs(error.mean()) < 3 * error.std() / math.sqrt(4000) + 0.02


def test_the_loss_of_the_best_field_is_the_conditional_variance():
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    scale2 = 0.3
    head = with_field(GaussianField(scale2 * torch.eye(2).double()), 2)
    torch.manual_seed(0)
    loss = head(mean.expand(40_000, 2)).loss(mean + math.sqrt(scale2) * torch.randn(40_000, 2).double())
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    left = scale2 + 1 - (t * scale2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * scale2)
    expected = torch.trapezoid(left, t)
    assert abs(loss.mean() - expected) < 3 * loss.std() / math.sqrt(len(loss))


def linear(dim, **settings):
    matrix = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / dim**0.5
    head = with_field(LinearField(matrix), dim, **settings)
    y = torch.randn(4, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = y @ torch.linalg.matrix_exp(-matrix).T
    exact = -0.5 * noise.square().sum(1) - dim / 2 * math.log(2 * math.pi) - matrix.trace()
    return head(torch.zeros(4, 2).double()), y, exact


def test_the_exact_trace_of_a_linear_field():
    prediction, y, exact = linear(6)
    torch.testing.assert_close(prediction.log_prob(y, steps=400), exact, rtol=1e-4, atol=1e-4)


def test_the_estimated_trace_is_unbiased():
    prediction, y, exact = linear(6)
    estimates = prediction.log_prob(
        y.expand(2000, 4, 6), trace="hutchinson", probes=1, steps=60
    )  # one probe each
    error = estimates.std(0) / math.sqrt(2000)
    assert (error > 0).all()
    assert ((estimates.mean(0) - exact).abs() < 3 * error + 1e-3).all()
    many = prediction.log_prob(y.expand(500, 4, 6), trace="hutchinson", probes=16, steps=60)
    torch.testing.assert_close(many.std(0), estimates.std(0) / 4, rtol=0.2, atol=0)


def test_the_estimate_repeats_with_its_seed_and_serves_wide_targets():
    prediction, y, exact = linear(65)
    first = prediction.log_prob(y)
    assert torch.equal(first, prediction.log_prob(y, trace="hutchinson"))
    assert not torch.equal(first, prediction.log_prob(y, seed=1))
    torch.testing.assert_close(prediction.log_prob(y, trace="exact", steps=100), exact, rtol=1e-3, atol=1e-3)


def test_the_density_of_a_network_integrates_to_one():
    torch.manual_seed(0)
    head = FlowMatching(2, 2, width=12, blocks=1, code_width=6).double().eval()
    with torch.no_grad():
        head.velocity.exit[-1].weight.normal_(std=0.3)
        head.velocity.exit[-1].bias.normal_(std=0.3)
    axis = torch.linspace(-7, 7, 71, dtype=torch.float64)
    density = head(torch.randn(2).double()).log_prob(torch.cartesian_prod(axis, axis), steps=30).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=2e-3)


def test_an_untrained_field_leaves_the_noise():
    head = FlowMatching(3, 2, width=8).eval()
    drawn = head(torch.zeros(2)).sample((5,), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))


def test_a_density_asks_for_a_known_trace():
    prediction, y, _ = linear(3)
    with pytest.raises(ConfigError, match="'auto', 'exact' or 'hutchinson'"):
        prediction.log_prob(y, trace="slq")
    with pytest.raises(ConfigError, match="probes"):
        prediction.log_prob(y, probes=0)
