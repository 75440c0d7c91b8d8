"""BYOL's loss against numpy, its targets against an average by hand, and where gradients stop."""

import copy
import math

import pytest
import torch
from baseline_cases import check_full_precision, check_gradients, embeddings, rows_cosine, small, view_pair
from torch import nn

from probjepa.errors import ConfigError
from probjepa.methods.byol import byol_loss
from probjepa.methods.simsiam import direction_spread

NARROW = {"projector_dim": 10, "hidden_dim": 14}


def test_loss_is_its_formula():
    p1, p2, t1, t2 = embeddings(4)
    expected = (2 - 2 * rows_cosine(p1, t2)).mean() + (2 - 2 * rows_cosine(p2, t1)).mean()
    assert byol_loss([p1, p2], [t1, t2]).item() == pytest.approx(expected, rel=1e-12)
    assert byol_loss([p2, p1], [t2, t1]).item() == pytest.approx(expected, rel=1e-12)
    distance = sum(
        (nn.functional.normalize(p) - nn.functional.normalize(t)).square().sum(1).mean()
        for p, t in ((p1, t2), (p2, t1))
    )
    assert byol_loss([p1, p2], [t1, t2]).item() == pytest.approx(distance.item(), rel=1e-12)
    check_full_precision(lambda a, b, c, d: byol_loss([a, b], [c, d]), p1, p2, t1, t2)
    check_gradients(lambda p, q: byol_loss([p, q], [t1, t2]), p1, p2)


def test_loss_at_its_optimum_is_zero():
    p1, p2 = embeddings(2)
    assert byol_loss([p1, p2], [0.5 * p2, 2 * p1]).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss([p1, p2], [-p2, -p1]).item() == pytest.approx(8, abs=1e-12)


def test_no_gradient_reaches_the_targets():
    p1, p2, t1, t2 = (x.requires_grad_() for x in embeddings(4))
    byol_loss([p1, p2], [t1, t2]).backward()
    assert t1.grad is None and t2.grad is None
    assert p1.grad.abs().max() > 0 and p2.grad.abs().max() > 0
    model = small("byol", **NARROW).train()
    model.loss(view_pair())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    online = [*model.encoder.parameters(), *model.projector.parameters(), *model.predictor.parameters()]
    assert all(p.grad is not None for p in online)
    assert sum(p.requires_grad for p in model.parameters()) == len(online)


def test_targets_use_the_batchs_statistics_and_averaged_weights():
    model, batch = small("byol", **NARROW).train(), view_pair()
    with torch.no_grad():  # an average that is not the online network
        for p in model.target.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    average = copy.deepcopy(model.target.module).train()
    images = torch.cat(batch)
    t1, t2 = average(images).chunk(2)
    p1, p2 = model.predictor(model.projector(model.encoder(images))).chunk(2)
    terms = model.loss(batch)
    assert terms["loss"].item() == pytest.approx(byol_loss([p1, p2], [t1, t2]).item(), abs=1e-5)
    spread = direction_spread(model.projector(model.encoder(images)))
    assert terms["spread"].item() == pytest.approx(spread.item(), abs=1e-5)
    running = average.eval()(images)
    assert not torch.allclose(running, torch.cat([t1, t2]), atol=0.1)
    assert model.eval().loss(batch)["loss"].isfinite()
    assert not model.target.module.training


def test_the_average_follows_encoder_and_projector():
    model = small("byol", ema_momentum=0.9, **NARROW).train()
    sources = [*model.encoder.parameters(), *model.projector.parameters()]
    expected = [p.detach().clone() for p in sources]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 5):
        optimizer.zero_grad()
        model.loss(view_pair(seed=step))["loss"].backward()
        optimizer.step()
        model.after_step(step, 4)
        tau = 1 - 0.1 * (math.cos(math.pi * step / 4) + 1) / 2
        expected = [tau * old + (1 - tau) * p.detach() for old, p in zip(expected, sources, strict=True)]
    for a, b in zip(model.target.parameters(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected[0], sources[0])


def test_layers_are_the_papers():
    model = small("byol")
    for net, first in ((model.projector, 16), (model.predictor, 256)):
        assert [type(layer) for layer in net] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert (net[0].in_features, net[0].out_features, net[3].out_features) == (first, 4096, 256)
    assert model.target.momentum == 0.996


def test_wrong_settings():
    with pytest.raises(ConfigError, match="momentum"):
        small("byol", ema_momentum=1.5, **NARROW)
    with pytest.raises(ConfigError, match="whole widths"):
        small("byol", hidden_dim=0)
