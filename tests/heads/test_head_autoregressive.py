"""The autoregressive head: no leak (Jacobian), a density (quadrature), and samples of that density."""

from functools import reduce

import pytest
import torch

from probjepa.heads import Autoregressive


def build(dim, hidden, components=3, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    head = Autoregressive(dim, 2, hidden=hidden, components=components).to(dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return head.eval()


CONTEXT = torch.tensor([0.4, -1.1], dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(20, 11, 7), (7, 11, 20), (11, 20, 7), (7,), (16, 8), (8, 16)], ids=str)
def test_parameters_depend_on_all_earlier_targets_and_no_other(hidden):
    prediction = build(7, hidden)(CONTEXT)
    target = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for jacobian in torch.autograd.functional.jacobian(prediction.parameters_at, target):
        depends = (jacobian != 0).any(1)  # (coordinate, target)
        assert torch.equal(depends, torch.ones(7, 7).tril(-1).bool())


@pytest.mark.parametrize(("dim", "hidden"), [(384, None), (768, None), (10, (10, 10))])
def test_paths_through_the_masks_are_strictly_lower_triangular(dim, hidden):
    head = Autoregressive(dim, 2, hidden=hidden, components=2)
    paths = reduce(lambda seen, layer: ((layer.mask.float() @ seen) > 0).float(), head.layers, torch.eye(dim))
    expected = torch.ones(dim, dim).tril(-1).repeat_interleave(6, 0)
    assert torch.equal(paths, expected)


def test_default_widths():
    assert Autoregressive(384, 2).widths == [1024, 768, 512]
    assert Autoregressive(600, 2).widths == [1024, 768, 600]


def test_every_coordinate_sees_the_context():
    head = build(5, (9, 6))
    target = torch.randn(5, dtype=torch.float64)
    for jacobian in torch.autograd.functional.jacobian(lambda c: head(c).parameters_at(target), CONTEXT):
        assert (jacobian != 0).all()


@pytest.mark.parametrize("components", [1, 4])
def test_the_density_integrates_to_one_in_one_dimension(components):
    head = build(1, (6, 5), components)
    with torch.no_grad():
        head.actnorm.shift.fill_(0.7)
        head.actnorm.log_scale.fill_(-0.4)
    grid = torch.linspace(-60, 60, 60_001, dtype=torch.float64).unsqueeze(1)
    density = head(CONTEXT).log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_the_density_integrates_to_one_in_two_dimensions():
    head = build(2, (12, 8, 6))
    with torch.no_grad():
        head.actnorm.shift.copy_(torch.tensor([0.5, -1.0]))
        head.actnorm.log_scale.copy_(torch.tensor([0.3, -0.2]))
    axis = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    with torch.no_grad():
        density = head(CONTEXT).log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-6)


def test_log_prob_is_the_sum_of_one_dimensional_mixtures():
    head = build(4, (9, 5))
    with torch.no_grad():
        head.actnorm.shift.normal_()
        head.actnorm.log_scale.normal_()
    prediction = head(CONTEXT)
    target = torch.randn(8, 4, dtype=torch.float64)
    log_weights, means, scales = prediction.parameters_at(target)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(log_weights.exp()), torch.distributions.Normal(means, scales)
    )
    y = (target - head.actnorm.shift) * head.actnorm.log_scale.exp()
    expected = mixture.log_prob(y).sum(1) + head.actnorm.log_scale.sum()
    torch.testing.assert_close(prediction.log_prob(target), expected)


@pytest.mark.parametrize(
    ("dim", "hidden"),
    [(6, (20, 11, 7)), (6, (7, 9)), (37, (40, 64))],  # 37: more coordinates than one block has
    ids=str,
)
def test_incremental_sampling_is_ancestral_sampling(dim, hidden):
    """Against a plain sampler that runs the whole network for each coordinate, on the same random numbers."""
    head = build(dim, hidden)
    with torch.no_grad():
        head.actnorm.shift.normal_()
        head.actnorm.log_scale.normal_(std=0.3)
    context = torch.randn(3, 2, dtype=torch.float64)
    prediction = head(context)
    fast = prediction.sample((4,), torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4, 3, dim, dtype=torch.float64, generator=generator)
    slow = torch.zeros(4, 3, dim, dtype=torch.float64)
    for i in range(dim):
        log_weights, means, scales = (p[..., i, :] for p in prediction.parameters_at(slow))
        uniform = torch.rand(4, 3, dtype=torch.float64, generator=generator)
        below = log_weights.exp().cumsum(-1) < uniform.unsqueeze(-1)
        chosen = below.sum(-1, keepdim=True)
        y = (means.gather(-1, chosen) + scales.gather(-1, chosen) * noise[..., i : i + 1]).squeeze(-1)
        slow[..., i] = y * (-head.actnorm.log_scale[i]).exp() + head.actnorm.shift[i]
        slow = slow.detach()
    torch.testing.assert_close(fast, slow)


def test_samples_have_the_density():
    """The mean log-density of draws is minus the entropy, which quadrature gives too."""
    head = build(2, (12, 8))
    prediction = head(CONTEXT)
    drawn = prediction.log_prob(prediction.sample((20_000,), torch.Generator().manual_seed(0))).detach()
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    with torch.no_grad():
        log_density = prediction.log_prob(torch.cartesian_prod(axis, axis))
    expected = (log_density.exp() * log_density).sum() * (axis[1] - axis[0]) ** 2
    assert abs(drawn.mean() - expected) < 3 * drawn.std() / len(drawn) ** 0.5


def test_a_uniform_of_exactly_zero_draws_no_component_without_weight(monkeypatch):
    """A generator's uniforms are in [0, 1): the first component, of weight 0 here, is never drawn."""
    head = Autoregressive(2, 3, components=2, hidden=[4])
    with torch.no_grad():
        for parameter in (*head.film.parameters(), *head.direct.parameters(), head.layers[-1].weight):
            parameter.zero_()
        logits, means, raw = head.layers[-1].bias.view(2, 3, 2).unbind(1)
        logits.copy_(torch.tensor([-200.0, 0.0]))
        means.copy_(torch.tensor([-50.0, 50.0]))
        raw.fill_(-20.0)
    monkeypatch.setattr(torch, "rand", lambda shape, *, generator, **of: torch.zeros(shape, **of))
    assert (head(torch.zeros(3)).sample((5,)) > 40).all()
