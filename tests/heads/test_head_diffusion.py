"""Diffusion with the exact noise predictor of a Gaussian: the loss, the schedule and the DDIM samples."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from probjepa.heads import Diffusion
from probjepa.heads.diffusion import DiffusionPrediction

KEPT = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
MEAN = torch.tensor([0.8, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.8]], dtype=torch.float64)


class GaussianNoise(Diffusion):
    """Predicts E[ε|x] when the target is N(c, Σ): √(1−ᾱ)·(ᾱΣ + (1−ᾱ)I)⁻¹(x − √ᾱ·c)."""

    def __init__(self, covariance, **settings):
        super().__init__(2, 2, width=4, blocks=1, code_width=4, **settings)
        self.covariance = covariance

    def forward(self, context):
        return DiffusionPrediction(self, context)

    def gain(self, kept):
        eye = torch.eye(len(self.covariance), dtype=torch.float64)
        kept = kept[..., None, None]
        return (1 - kept).sqrt() * torch.linalg.inv(kept * self.covariance + (1 - kept) * eye)

    def noise(self, x, level, mean):
        kept = KEPT[level]
        shifted = x - kept.sqrt().unsqueeze(-1) * mean
        return (self.gain(kept) @ shifted.unsqueeze(-1)).squeeze(-1)


def exact_head(covariance=COVARIANCE, **settings):
    return GaussianNoise(covariance, **settings).double().eval()


def ddim_moments(head, steps):
    """Mean and covariance of DDIM's output under the exact predictor: each step is affine in x."""
    eye = torch.eye(2, dtype=torch.float64)
    levels = head.levels(steps)
    kept = torch.cat([KEPT[levels], torch.ones(1, dtype=torch.float64)])
    mean, root = torch.zeros(2, dtype=torch.float64), eye
    for now, after in pairwise(kept):
        stretch = (after / now).sqrt()
        noise = (1 - after).sqrt() - stretch * (1 - now).sqrt()
        gain = head.gain(now)
        mean = stretch * mean + noise * gain @ (mean - now.sqrt() * MEAN)
        root = (stretch * eye + noise * gain) @ root
    return mean, root @ root.T


def assert_within_three_errors(drawn, mean, covariance):
    n, diagonal = len(drawn), covariance.diagonal()
    assert ((drawn.mean(0) - mean).abs() < 3 * (diagonal / n).sqrt()).all()
    error = ((covariance**2 + diagonal[:, None] * diagonal) / n).sqrt()
    assert ((drawn.T.cov() - covariance).abs() < 3 * error).all()


def test_the_schedule():
    np.testing.assert_allclose(Diffusion(2, 2).kept_signal, KEPT, rtol=1e-6)


@pytest.mark.parametrize("steps", [25, 50, 1000])
def test_levels_run_from_the_noisiest_to_the_cleanest(steps):
    levels = Diffusion(2, 2).levels(steps)
    assert levels[0] == 999 and (levels.diff() < 0).all() and len(levels) <= steps
    if steps <= 50:
        assert len(levels) == steps
        angle = KEPT[levels].sqrt().arccos()
        assert angle.diff().abs().max() < 1.2 * angle[0] / steps


def test_samples_of_a_gaussian():
    """At 1,000 steps DDIM's own error is below the standard error; at 50 it is for a thousand draws."""
    for steps, n in ((1000, 20_000), (50, 1000)):
        drawn = exact_head()(MEAN).sample((n,), torch.Generator().manual_seed(0), steps=steps)
        assert_within_three_errors(drawn, MEAN, COVARIANCE)


@pytest.mark.parametrize("steps", [50, 25])
def test_samples_follow_the_ddim_recursion(steps):
    head = exact_head(steps=steps)
    drawn = head(MEAN).sample((50_000,), torch.Generator().manual_seed(0))
    assert_within_three_errors(drawn, *ddim_moments(head, steps))


@pytest.mark.parametrize(("steps", "scale", "expected"), [(50, 1, 0.976), (25, 1, 0.952), (50, 0.1, 0.088)])
def test_how_far_ddim_narrows_is_what_the_docstring_says(steps, scale, expected):
    head = exact_head(scale**2 * torch.eye(2, dtype=torch.float64))
    _, covariance = ddim_moments(head, steps)
    assert covariance[0, 0].sqrt().item() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("scale", "expected"), [(1, 1.0), (0.3, 0.289), (0.1, 0.093)])
def test_samples_for_scores_have_the_scale_that_the_docstring_says(scale, expected):
    """Of an exact predictor: f = (ε̂ − √(1 − ᾱ)·x)/√ᾱ makes the samples a multiple of the noise."""
    head = exact_head(scale**2 * torch.eye(2, dtype=torch.float64))

    def departure(x, level, code):
        return (head.noise(x, level, code) - (1 - KEPT[level]).sqrt() * x) / KEPT[level].sqrt()

    head.departure = departure
    drawn = head(torch.zeros(2, dtype=torch.float64)).for_scores().sample((1,), torch.Generator())
    noise = torch.randn(1, 2, generator=torch.Generator(), dtype=torch.float64)
    assert (drawn / noise).flatten().tolist() == pytest.approx([expected] * 2, abs=5e-4)


def test_samples_for_scores_of_a_gaussian():
    head = exact_head()
    head.departure = lambda x, level, code: (
        (head.noise(x, level, code) - (1 - KEPT[level]).sqrt() * x) / KEPT[level].sqrt()
    )
    drawn = head(MEAN).for_scores().sample((2000,), torch.Generator().manual_seed(0))
    assert_within_three_errors(drawn, MEAN, COVARIANCE)


def test_ddim_is_deterministic_given_the_noise():
    """The same starting noise ends in the same place whatever the batch: nothing random on the way."""
    prediction = exact_head()(MEAN)
    drawn = prediction.sample((6,), torch.Generator().manual_seed(0))
    noise = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, _ = ddim_moments(exact_head(), 50)
    slope, *_ = torch.linalg.lstsq(noise, drawn - mean)
    torch.testing.assert_close(noise @ slope, drawn - mean)


def test_the_loss_of_the_best_predictor():
    """For N(c, I) the noise left unexplained at level t is ᾱₜ."""
    head = exact_head(torch.eye(2, dtype=torch.float64))
    torch.manual_seed(0)
    loss = head(MEAN.expand(40_000, 2)).loss(MEAN + torch.randn(40_000, 2, dtype=torch.float64))
    assert abs(loss.mean() - KEPT.mean()) < 3 * loss.std() / math.sqrt(len(loss))


def test_an_untrained_predictor_is_the_best_one_for_a_standard_normal():
    torch.manual_seed(0)
    head = Diffusion(8, 2, width=8)
    loss = head(torch.zeros(5000, 2)).loss(torch.randn(5000, 8))
    assert abs(loss.mean() - KEPT.mean()) < 3 * loss.std() / math.sqrt(5000)
    drawn = head(torch.zeros(2)).sample((20_000,), torch.Generator().manual_seed(0))
    assert (drawn.std(0) - 0.976).abs().max() < 3 * 0.976 / math.sqrt(2 * 20_000)


def test_the_network_is_told_the_level_as_a_share_of_a_thousand():
    """A network that answers with its time: ε̂ = √(1 − ᾱₜ)·x + √ᾱₜ·t/1000, in the loss and along the way."""
    head = Diffusion(3, 2, width=4, blocks=1, code_width=4)
    head.network.forward = lambda y, t, code: t.unsqueeze(-1).expand_as(y)
    level = torch.arange(1000)
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    kept = KEPT.float().unsqueeze(-1)
    expected = (1 - kept).sqrt() * x + kept.sqrt() * (level / 1000).unsqueeze(-1)
    torch.testing.assert_close(head.noise(x, level, None), expected)
    assert torch.equal(head.departure(x[:1], torch.tensor(250), None), torch.full((1, 3), 0.25))


def test_a_wrong_network_does_not_blow_up_the_samples():
    head = Diffusion(8, 2, width=8)
    with torch.no_grad():
        head.network.exit[-1].bias.fill_(1.0)
    assert head(torch.zeros(2)).sample((500,), torch.Generator().manual_seed(0)).abs().max() < 20
