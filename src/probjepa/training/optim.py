"""Optimisers by name, and which parameters they decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from probjepa.errors import unknown_name

OPTIMIZERS = ("sgd", "adamw")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: weights with decay, norms and biases (ndim ≤ 1) without.

    Parameters with ``requires_grad=False`` (the averaged copies of a teacher) are left out, and empty groups.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, module: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimiser ``name`` over the trainable parameters of ``module`` (``momentum`` is SGD's).

    Raises
    ------
    ConfigError
        if the name is not one of :data:`OPTIMIZERS`
    """
    groups = parameter_groups(module, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    raise unknown_name("optimizer", name, OPTIMIZERS)
