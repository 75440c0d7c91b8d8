"""A state that an optimiser is given: what its next step could not use is seen before it."""

import copy

import pytest
import torch

from probjepa.training.optim import check_state, make_optimizer


def stepped(name):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    optimizer = make_optimizer(name, net, learning_rate=0.1, weight_decay=0.01, momentum=0.9)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return net, optimizer


def restored(name, state):
    net, optimizer = stepped(name)
    optimizer.load_state_dict(state)
    check_state(optimizer)
    return net, optimizer


def given(name, state):
    net, optimizer = restored(name, state)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_its_own_state_is_taken(name):
    net, optimizer = stepped(name)
    check_state(optimizer)
    given(name, optimizer.state_dict())
    given(
        name, make_optimizer(name, net, learning_rate=0.1, weight_decay=0.01).state_dict()
    )  # before a first step


ODD = [None, True, "x", [1], {"a": 1}, torch.zeros(7), torch.zeros(2, dtype=torch.int64)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_parts_are_named(name, odd):
    whole = stepped(name)[1].state_dict()
    for part in whole["state"][0]:
        if (part, odd is None) == ("momentum_buffer", True) or (part, odd is True) == ("step", True):
            continue  # a first step makes a buffer; torch reads a step as a number
        state = copy.deepcopy(whole)
        state["state"][0][part] = odd
        with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError)):
            restored(name, state)
        state = copy.deepcopy(whole)
        del state["state"][0][part]
        if len(whole["state"][0]) > 1:
            with pytest.raises((ValueError, KeyError)):
                restored(name, state)
    if not isinstance(odd, torch.Tensor):
        state = copy.deepcopy(whole)
        state["state"][0] = odd
        with pytest.raises((ValueError, TypeError, AttributeError, KeyError, IndexError)):
            restored(name, state)
    for setting in ("lr", "weight_decay"):
        state = copy.deepcopy(whole)
        state["param_groups"][0][setting] = odd
        if not isinstance(odd, torch.Tensor):
            with pytest.raises(ValueError, match=setting):
                restored(name, state)
