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


@pytest.mark.parametrize(("name", "reference"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_the_plain_one_in_whatever_order_weights_and_state_lie(name, reference, order):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(3, 4, 3)
    ours = copy.deepcopy(plain)
    optimizer = make_optimizer(name, ours, learning_rate=0.1, weight_decay=0.01)
    assert optimizer.param_groups[0]["fused"]
    groups = [{"params": [plain.weight], "weight_decay": 0.01}, {"params": [plain.bias], "weight_decay": 0.0}]
    other = reference(groups, lr=0.1, **({"momentum": 0.9} if name == "sgd" else {}))
    for step in range(3):
        if step == 1:  # the state is of a run in the plain order
            saved = optimizer.state_dict()
            ours.to(memory_format=order)
            optimizer = make_optimizer(name, ours, learning_rate=0.1, weight_decay=0.01)
            optimizer.load_state_dict(saved)
            check_state(optimizer)
        for net, of in ((plain, other), (ours, optimizer)):
            of.zero_grad()
            net(torch.arange(300.0).reshape(1, 3, 10, 10).sin()).square().mean().backward()
            of.step()
    for expected, found in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
