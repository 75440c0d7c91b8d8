"""Optimisers by name, which parameters they decay, and the rate of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from probjepa.errors import unknown_name

OPTIMIZERS = ("sgd", "adamw")


def is_weight(parameter: nn.Parameter) -> bool:
    """Whether it has two dimensions or more: norms and biases have one."""
    return parameter.ndim > 1


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it has two dimensions: norms and biases have one, learned tokens three."""
    return parameter.ndim == 2


def parameter_groups(
    module: nn.Module, weight_decay: float, decayed: Callable[[nn.Parameter], bool] = is_weight
) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: those that are ``decayed``, and those that are not.

    Parameters with ``requires_grad=False`` (the averaged copies of a teacher) are left out, and empty groups.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if decayed(p)], "weight_decay": weight_decay},
        {"params": [p for p in trainable if not decayed(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
    decayed: Callable[[nn.Parameter], bool] = is_weight,
    **options: Any,
) -> torch.optim.Optimizer:
    """Return the optimiser ``name`` over the trainable parameters of ``module``.

    ``momentum`` is SGD's, ``decayed`` says which parameters decay, ``options`` go to torch's class.

    Raises
    ------
    ConfigError
        if the name is not one of :data:`OPTIMIZERS`
    """
    groups = parameter_groups(module, weight_decay, decayed)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, **options)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, **options)
    raise unknown_name("optimizer", name, OPTIMIZERS)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step.

    The rate is a function of the step alone: there is no scheduler state to save, and nothing drifts on a
    resume.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
