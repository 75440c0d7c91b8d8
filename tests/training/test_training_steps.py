"""What depends on the step's number alone, and which parameters decay."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from probjepa.errors import ConfigError
from probjepa.training.optim import make_optimizer, parameter_groups
from probjepa.training.schedules import step_seed, warmup_cosine


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    total, warmup = 100, 10
    factors = [warmup_cosine(step, total, warmup) for step in range(total + 1)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    closed_form = np.cos(np.pi / 2 * (np.arange(10, 101) - 10) / 90) ** 2  # ½(1 + cos x) = cos²(x/2)
    np.testing.assert_allclose(factors[10:], closed_form, atol=1e-12)


def test_schedule_without_warm_up_and_with_a_fraction_of_a_step():
    assert warmup_cosine(0, 10, 0) == 1.0
    assert warmup_cosine(5, 10, 0) == pytest.approx(0.5)
    assert warmup_cosine(0, 10, 0.5) == 1.0
    assert all(0 < warmup_cosine(step, 10, 2.5) <= 1 for step in range(10))
    assert warmup_cosine(11, 10, 2) == 0.0


def test_step_seed_has_the_published_first_output_of_splitmix64():
    # the generator seeded with 0 first returns 0xe220a8397b1dcdaf (Vigna, splitmix64.c)
    from probjepa.training.schedules import _splitmix64

    assert _splitmix64(0) == 0xE220A8397B1DCDAF


def test_step_seeds_are_distinct_and_fit_63_bits():
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(500) for rank in range(-1, 3)}
    assert len(seeds) == 5 * 500 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(-1, 0) != step_seed(1, 0)


def test_neighbouring_step_seeds_differ_in_half_of_their_bits():
    flips = [(step_seed(0, step) ^ step_seed(0, step + 1)).bit_count() for step in range(1000)]
    # binomial(63, ½): the mean of 1,000 has a standard error of 0.125
    assert abs(np.mean(flips) - 31.5) < 6 * math.sqrt(63) / 2 / math.sqrt(1000)


def test_norms_biases_and_frozen_parameters_do_not_decay():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    net.teacher = nn.Linear(2, 2).requires_grad_(False)
    net.register_parameter("bias", nn.Parameter(torch.zeros(2, 2)))  # of two dimensions, as a tokenizer's
    net.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 2)))
    decayed, plain = parameter_groups(net, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in (net[0].weight, net[2].weight, net.token)}
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[2].bias, net.bias)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_optimizers_by_name():
    net = nn.Linear(2, 2)
    settings = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    assert make_optimizer("sgd", net, **settings).param_groups[0]["momentum"] == 0.5
    assert isinstance(make_optimizer("adamw", net, **settings), torch.optim.AdamW)
    with pytest.raises(ConfigError, match="unknown optimizer 'adam', did you mean 'adamw'"):
        make_optimizer("adam", net, **settings)
