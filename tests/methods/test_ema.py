"""The averaged encoder: its schedule in closed form, its step as a recursion, and that it stays a teacher."""

import math

import pytest
import torch
from torch import nn

from probjepa.errors import ConfigError
from probjepa.methods.ema import EMA


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def test_momentum_follows_the_cosine():
    ema = EMA(student(), momentum=0.99)
    for step, expected in [
        (0, 0.99),
        (25, 1 - 0.01 * (1 + math.sqrt(0.5)) / 2),
        (50, 0.995),
        (100, 1.0),
        (150, 1.0),  # past the end it stays there
    ]:
        assert ema.momentum_at(step, 100) == pytest.approx(expected, abs=1e-12)
    values = [ema.momentum_at(step, 100) for step in range(101)]
    assert values == sorted(values)
    assert ema.momentum_at(0, 0) == 0.99  # no steps to come: no division by zero


def test_momentum_follows_the_line():
    ema = EMA(student(), momentum=0.996, schedule="linear")
    for step, expected in [(0, 0.996), (25, 0.997), (50, 0.998), (100, 1.0), (150, 1.0)]:
        assert ema.momentum_at(step, 100) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        EMA(student(), schedule="linea")


def test_updates_are_the_recursion():
    source = student()
    ema = EMA(source, momentum=0.8)
    expected = [p.detach().double().clone() for p in source.parameters()]
    for step in range(1, 6):
        with torch.no_grad():
            for p in source.parameters():
                p.add_(torch.randn(p.shape))
        tau = 1 - 0.2 * (1 + math.cos(math.pi * step / 5)) / 2
        expected = [
            tau * e + (1 - tau) * p.detach().double()
            for e, p in zip(expected, source.parameters(), strict=True)
        ]
        ema.update(source, step, 5)
    for mine, value in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.double(), value, rtol=0, atol=1e-6)


def test_batch_statistics_are_averaged_like_the_weights():
    source = student()
    ema = EMA(source, momentum=0.9)
    mean, var = torch.zeros(3), torch.ones(3)
    for step in range(1, 5):
        source(torch.randn(32, 4) * 3 + step)
        tau = ema.momentum_at(step, 10)
        mean = tau * mean + (1 - tau) * source[1].running_mean
        var = tau * var + (1 - tau) * source[1].running_var
        ema.update(source, step, 10)
        torch.testing.assert_close(ema.module[1].running_mean, mean)
        torch.testing.assert_close(ema.module[1].running_var, var)
        assert ema.module[1].num_batches_tracked == step  # a count is copied, not averaged
    source(torch.randn(32, 4))
    torch.testing.assert_close(ema.module[1].running_mean, mean)  # and not shared


def test_averaged_statistics_are_those_of_the_averaged_networks_own_activations():
    # weights that rotate: the source's activations and the average's are other numbers
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    ema = EMA(source, momentum=0.99, schedule="linear")
    x = torch.randn(200, 4)
    for step in range(800):
        with torch.no_grad():
            source[0].weight.add_(0.02 * torch.randn(8, 4))
            source[0].bias.add_(0.02)
        source(x)
        ema.update(source, step, 1_000_000)
    own = ema.module[0](x)
    kept = (ema.module[1].running_mean - own.mean(0)).norm()
    copied = (source[1].running_mean - own.mean(0)).norm()
    assert kept < 0.3 * copied


def test_a_teacher_that_uses_its_own_batch():
    source = student()
    ema = EMA(source, momentum=0.9, statistics="batch").train()
    x = torch.randn(32, 4) * 3 + 1
    out = ema.module[1](ema.module[0](x))
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    before = ema.module[1].running_mean.clone()
    source(x * 5)
    ema.update(source, 1, 10)
    assert torch.equal(ema.module[1].running_mean, before)  # its own, of its own activations
    ema.eval()
    assert torch.equal(ema(x), ema(x))
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        EMA(student(), statistics="batches")


def test_it_starts_equal_and_apart():
    source = student()
    ema = EMA(source)
    for mine, theirs in zip(ema.module.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad


def test_it_stays_in_evaluation_mode_inside_a_training_model():
    model = nn.ModuleDict({"student": student()})
    model["teacher"] = EMA(model["student"])
    assert model["student"].training  # copying left the source's mode alone
    for call in (model.train, model.eval, model.train):
        call()
        assert model["teacher"].training == model["student"].training == model.training
        assert not any(m.training for m in model["teacher"].module.modules())
    x = torch.randn(6, 4)
    model.train()
    out = model["teacher"](x)
    assert torch.equal(out, model["teacher"](x))  # dropout would differ
    assert not out.requires_grad
    assert model["teacher"].module[1].num_batches_tracked == 0


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        EMA(student(), momentum)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cast", ["before", "after"])
def test_the_gap_closes_by_the_product_of_the_momenta_in_every_type(dtype, cast):
    source = nn.Linear(32, 32)
    if cast == "before":
        source = source.to(dtype)
    ema = EMA(source, momentum=0.996)
    whole = nn.ModuleList([source, ema]).to(dtype)
    assert whole[0].weight.dtype == dtype
    before = ema.module.weight.detach().double().clone()
    with torch.no_grad():
        source.weight.add_(0.25)
    moved = source.weight.detach().double().clone()
    for step in range(1, 101):
        ema.update(source, step, 1000)
    left = math.prod(ema.momentum_at(step, 1000) for step in range(1, 101))
    assert 0.6 < left < 0.7
    torch.testing.assert_close(ema.module.weight.double(), moved + left * (before - moved), rtol=0, atol=1e-5)
    assert ema.module.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        ema(torch.ones(3, 32, dtype=dtype)), ema.module(torch.ones(3, 32, dtype=ema.module.weight.dtype))
    )
