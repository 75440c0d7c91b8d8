"""Conditional densities that are known exactly, to train predictive heads on and hold them against."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def _normal_log_density(x, mean, scale):
    """log N(x; mean, scale² I) over the last axis."""
    dim = x.shape[-1]
    return -0.5 * ((x - mean) / scale).square().sum(-1) - dim * math.log(scale * math.sqrt(2 * math.pi))


class TwoMoons:
    """One of two half circles, by class, blurred; the density is the arc's integral (midpoint rule)."""

    context_dim, noise = 2, 0.15
    probe = torch.tensor([0.0, 1.0])

    def _arc(self, context, angle):
        x, y = angle.cos(), angle.sin()
        first = torch.stack([x - 0.5, y - 0.25], -1)
        second = torch.stack([0.5 - x, 0.25 - y], -1)
        return torch.where(context[..., :1] > 0.5, first, second)

    def contexts(self, n, generator):
        return F.one_hot(torch.randint(2, (n,), generator=generator), 2).float()

    def targets(self, context, generator):
        angle = math.pi * torch.rand(len(context), generator=generator)
        return self._arc(context, angle) + self.noise * torch.randn(len(context), 2, generator=generator)

    def log_prob(self, context, target):
        angle = math.pi * (torch.arange(256) + 0.5) / 256
        arc = self._arc(context.unsqueeze(1), angle)
        each = _normal_log_density(target.unsqueeze(1), arc, self.noise)
        return torch.logsumexp(each, 1) - math.log(256)


class Ring:
    """A blurred circle whose radius is the context; the density has a Bessel function in closed form."""

    context_dim, noise = 1, 0.25
    probe = torch.tensor([1.0])

    def contexts(self, n, generator):
        return 0.8 + 0.4 * torch.rand(n, 1, generator=generator)

    def targets(self, context, generator):
        angle = 2 * math.pi * torch.rand(len(context), generator=generator)
        circle = context * torch.stack([angle.cos(), angle.sin()], -1)
        return circle + self.noise * torch.randn(len(context), 2, generator=generator)

    def log_prob(self, context, target):
        rho, r, variance = target.norm(dim=-1), context[:, 0], self.noise**2
        bessel = torch.special.i0e(rho * r / variance).log() + rho * r / variance
        return -math.log(2 * math.pi * variance) - (rho.square() + r.square()) / (2 * variance) + bessel


class Bimodal:
    """Two Gaussians on either side of the origin: the context moves them apart and weighs them."""

    context_dim, noise = 2, 0.3
    probe = torch.tensor([0.2, -0.5])

    def _modes(self, context):
        mode = torch.stack([1 + 0.3 * context[:, 0], 0.7 * context[:, 1]], -1)
        return mode, torch.sigmoid(1.5 * context[:, 0])

    def contexts(self, n, generator):
        return 2 * torch.rand(n, 2, generator=generator) - 1

    def targets(self, context, generator):
        mode, weight = self._modes(context)
        sign = torch.where(torch.rand(len(context), generator=generator) < weight, 1.0, -1.0)
        return sign.unsqueeze(-1) * mode + self.noise * torch.randn(len(context), 2, generator=generator)

    def log_prob(self, context, target):
        mode, weight = self._modes(context)
        right = weight.log() + _normal_log_density(target, mode, self.noise)
        left = (1 - weight).log() + _normal_log_density(target, -mode, self.noise)
        return torch.logaddexp(right, left)


DENSITIES = {"two moons": TwoMoons(), "ring": Ring(), "bimodal": Bimodal()}


def train(head, density, steps, batch=512, learning_rate=2e-3, seed=0):
    """Fit a head to a density: Adam with a cosine schedule, fresh draws every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    for _ in range(steps):
        context = density.contexts(batch, generator)
        loss = head(context).loss(density.targets(context, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 3.0)
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def nll_gap(head, density, n=4000, seed=1):
    """Held-out mean of log p_true − log p_head in nats, on n new pairs: an estimate of their divergence."""
    generator = torch.Generator().manual_seed(seed)
    context = density.contexts(n, generator)
    target = density.targets(context, generator)
    return (density.log_prob(context, target) - head(context).log_prob(target)).mean().item()


def energy_distance(x, y):
    """2E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ between two samples (N, D), without the pairs of a point with itself."""

    def within(z):
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


@torch.no_grad()
def energy_gap(head, density, n=2000, seed=2, **options):
    """Energy distance between n samples of the head and n of the truth, both at the density's ``probe``."""
    generator = torch.Generator().manual_seed(seed)
    truth = density.targets(density.probe.expand(n, -1), generator)
    return energy_distance(head(density.probe).sample((n,), generator, **options), truth)
