"""The Gaussian and the mixture density head against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from probjepa.heads import Gaussian, MixtureDensity, base
from probjepa.heads.base import draw_component, gaussian_log_density


def randomised(head, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return head.double()


CONTEXT = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = 2 * torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def as_torch(prediction):
    weights, means, scales = prediction.mixture
    return MixtureSameFamily(Categorical(weights), Independent(Normal(means, scales), 1))


def test_gaussian_log_prob():
    prediction = randomised(Gaussian(6, 3, hidden=(8,)))(CONTEXT)
    expected = Independent(Normal(prediction.mean, prediction.stddev), 1)
    torch.testing.assert_close(prediction.log_prob(TARGET), expected.log_prob(TARGET))
    torch.testing.assert_close(prediction.variance, expected.variance)
    torch.testing.assert_close(prediction.entropy(), expected.entropy())


@pytest.mark.parametrize("x", [1e15, 1e33, 3e38])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_gradients_of_a_far_value_are_finite(x, scale):
    """Where the distance is held, it has no gradient: what is left is that of log σ."""
    mean, scale = torch.tensor(0.5, requires_grad=True), torch.tensor(scale, requires_grad=True)
    density = gaussian_log_density(torch.tensor(x), mean, scale)
    assert density.item() == pytest.approx(-0.5 * 1e18, rel=1e-6)
    found = torch.autograd.grad(density, (mean, scale))
    assert found[0] == 0 and found[1].item() == pytest.approx(-1 / scale.item())


def test_gaussian_samples_differentiate():
    prediction = randomised(Gaussian(6, 3, hidden=(8,)))(CONTEXT)
    drawn = prediction.rsample((4,), torch.Generator().manual_seed(0))
    noise = torch.randn(4, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(drawn.sum(), prediction._scale)
    torch.testing.assert_close(slope, noise.sum(0))


@pytest.mark.parametrize("cls", [Gaussian, MixtureDensity])
def test_scales_start_near_one_and_never_vanish(cls):
    prediction = cls(6, 3)(CONTEXT.float())
    scale = prediction.stddev if cls is Gaussian else prediction.mixture.scales
    assert ((scale > 0.3) & (scale < 3)).all()
    head = cls(6, 3, hidden=())
    with torch.no_grad():
        head.net[-1].bias.fill_(-100)
    prediction = head(CONTEXT.float())
    scale = prediction.stddev if cls is Gaussian else prediction.mixture.scales
    torch.testing.assert_close(scale, torch.full_like(scale, 1e-3))


def test_mixture_log_prob_mean_and_variance():
    prediction = randomised(MixtureDensity(6, 3, components=4, hidden=(8,)))(CONTEXT)
    expected = as_torch(prediction)
    torch.testing.assert_close(prediction.log_prob(TARGET), expected.log_prob(TARGET))
    torch.testing.assert_close(prediction.mean, expected.mean)
    torch.testing.assert_close(prediction.variance, expected.variance)


def test_mixture_weights():
    prediction = randomised(MixtureDensity(6, 3, components=4, hidden=(8,)))(CONTEXT)
    entropy = Categorical(prediction.mixture.weights).entropy()
    torch.testing.assert_close(prediction.entropy_of_weights, entropy)
    torch.testing.assert_close(prediction.effective_components, entropy.exp())
    even = MixtureDensity(6, 3, components=4, hidden=())
    with torch.no_grad():
        for p in even.parameters():
            p.zero_()
    torch.testing.assert_close(even(CONTEXT.float()).effective_components, torch.full((9,), 4.0))


def test_a_weight_of_zero_has_no_entropy():
    head = MixtureDensity(6, 3, components=2, hidden=())
    with torch.no_grad():
        head.net[-1].bias[0] = 2000
    prediction = head(CONTEXT.float())
    torch.testing.assert_close(prediction.effective_components, torch.ones(9))


def test_the_loss_adds_the_log_variance_penalty():
    head = randomised(MixtureDensity(6, 3, components=4, hidden=(8,), log_variance_weight=0.5))
    prediction = head(CONTEXT)
    penalty = prediction.mixture.scales.square().log().square().mean((1, 2))
    expected = -as_torch(prediction).log_prob(TARGET) / 6 + 0.5 * penalty
    torch.testing.assert_close(prediction.loss(TARGET), expected)


def test_component_means_start_apart():
    torch.manual_seed(0)
    means = MixtureDensity(384, 192)(torch.zeros(1, 192)).mixture.means[0]
    apart = torch.pdist(means) / math.sqrt(384)
    assert (apart > 0.4).all()


def test_samples_follow_the_components():
    head = MixtureDensity(1, 1, components=3, hidden=())
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    with torch.no_grad():
        head.net[-1].weight.zero_()
        head.net[-1].bias.copy_(torch.cat([logits, torch.tensor([-9.0, 0.0, 9.0]), torch.zeros(3)]))
    drawn = head(torch.zeros(1)).sample((20_000,), torch.Generator().manual_seed(0)).squeeze()
    for share, center in ((0.5, -9), (0.3, 0), (0.2, 9)):
        near = drawn[(drawn - center).abs() < 4.5]
        assert abs(len(near) / 20_000 - share) < 3 * math.sqrt(share * (1 - share) / 20_000)
        assert abs(near.std().item() - (math.log(2) + 1e-3)) < 3 * 0.7 / math.sqrt(2 * len(near))


def test_drawn_components_have_their_weights():
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, -50.0, 0.0]], dtype=torch.float64)
    drawn = draw_component(logits, torch.Size((30_000, 2)), torch.Generator().manual_seed(0))
    share = torch.nn.functional.one_hot(drawn, 3).double().mean(0)
    weights = logits.softmax(-1)
    assert ((share - weights).abs() <= 3 * (weights * (1 - weights) / 30_000).sqrt() + 1e-9).all()


def test_a_component_without_weight_is_never_drawn(monkeypatch):
    """Not even by a uniform number of exactly 0, or of exactly the sum of the weights before it."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])  # weights 0, ½, 0, ½
    for number, index in ((0.0, 1), (0.25, 1), (0.5, 3), (0.75, 3)):
        monkeypatch.setattr(base.torch, "rand", lambda shape, number=number, **_: torch.full(shape, number))
        assert draw_component(logits, torch.Size((3,)), None).tolist() == [index] * 3
