"""Optimisers by name, which parameters they decay, and the rate of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probjepa.errors import short, unknown_name

OPTIMIZERS = ("sgd", "adamw")


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups: those that decay and those that do not, by their rate.

    Those of one dimension and those named "bias" do not decay; all others do, embeddings, positions and
    learned tokens among them: the rule of I-JEPA's and T-JEPA's public code. Parameters with
    ``requires_grad=False`` (the averaged copies of a teacher) are left out, and empty groups. "rate" is a
    group's share of the learning rate: ``layer_decay`` to the power of the layers from there to the top of
    ``module.encoder``, see ``layers_of``.
    """
    depths: dict[nn.Parameter, int] = {}
    if layer_decay != 1:
        layers = layers_of(module.encoder)  # type: ignore[arg-type]
        depths = {p: len(layers) - index for index, layer in enumerate(layers) for p in layer}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            decays = p.ndim > 1 and not name.endswith("bias")
            groups.setdefault((depths.get(p, 0), not decays), []).append(p)
    return [
        {"params": params, "weight_decay": weight_decay * (not plain), "rate": layer_decay**depth}
        for (depth, plain), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_of(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Return an encoder's parameters layer by layer, from the images up.

    Its layers are the parts, in the order in which they were made, of the smallest module that holds nine
    tenths of its weights: the blocks of a vision transformer, the stages of a ResNet. What was made before
    them (patches, positions) is the first layer, what was made after them (a last norm) belongs to the last.
    """
    total = sum(p.numel() for p in encoder.parameters())
    trunk, within = encoder, True
    while within:
        large = [m for m in trunk.children() if sum(p.numel() for p in m.parameters()) >= 0.9 * total]
        within = bool(large) and bool(list(large[0].children()))
        trunk = large[0] if within else trunk
    parts = [list(part.parameters()) for part in trunk.children()]
    layers = [part for part in parts if part] or [[]]
    inside = {p for part in parts for p in part}
    before, after = list(trunk.parameters(recurse=False)), list[nn.Parameter]()
    seen = {*before}
    for p in encoder.parameters():
        if p not in inside and p not in seen:
            (after if seen & inside else before).append(p)
        seen.add(p)
    layers[-1] += after
    return [before, *layers] if before else layers


def make_optimizer(
    name: str,
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
    layer_decay: float = 1.0,
    **options: Any,
) -> torch.optim.Optimizer:
    """Return the optimiser ``name`` over the trainable parameters of ``module``.

    ``momentum`` is SGD's, ``options`` go to torch's class; see ``parameter_groups`` for what decays.

    Raises
    ------
    ConfigError
        if the name is not one of :data:`OPTIMIZERS`
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    groups = parameter_groups(module, weight_decay, layer_decay)
    kinds = {(p.device.type, p.dtype) for group in groups for p in group["params"]}
    if kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}:
        # 2 to 6 times as fast there; a GPU has torch's own default. Of narrower types the fused SGD of torch
        # 2.13 moves the last few weights of a tensor alone
        options = {"fused": True, **options}
    made: torch.optim.Optimizer
    if name == "sgd":
        made = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, **options)
    else:
        made = torch.optim.AdamW(groups, lr=learning_rate, **options)
    # a scaler is to unscale the gradients itself: Lightning clips none that a fused step would unscale
    made._step_supports_amp_scaling = False
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step.

    The rate is a function of the step alone: there is no scheduler state to save, and nothing drifts on a
    resume. Each group has its own share of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a state that an optimiser was given would fail, or change, its next step.

    Of every parameter it holds the same names, each a number or a tensor of the parameter's shape; each
    group's settings are of the types of the defaults. Tensors get the parameter's memory order: a fused step
    reads both as they lie.
    """
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            value = group.get(name)
            alike = [isinstance(value, bool | None)] if default is None else _alike(value, default)
            if not all(alike):
                raise ValueError(f"the optimiser's {name} is {short(repr(value))}")
        states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
        if not all(isinstance(state, dict) for state in states) or len(set(map(frozenset, states))) > 1:
            raise ValueError("the optimiser's state lacks parts of some weights")
    for p, state in optimizer.state.items():
        for name, value in state.items():
            fits = isinstance(value, Tensor) and value.shape in (p.shape, ()) and value.is_floating_point()
            if not (fits or (value is None and name == "momentum_buffer")):
                raise ValueError(f"the optimiser's {name} of a weight is {short(repr(value))}")
            if isinstance(value, Tensor) and value.ndim and value.stride() != p.stride():
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _alike(value: Any, default: Any) -> list[bool]:
    """Whether each part of a setting is of its default's kind."""
    if isinstance(default, tuple):
        whole = isinstance(value, tuple | list) and len(value) == len(default)
        return [whole, *(isinstance(part, float) for part in value)] if whole else [False]
    if isinstance(default, bool):
        return [isinstance(value, bool | None)]
    return [isinstance(value, float | int | Tensor) and not isinstance(value, bool)]
