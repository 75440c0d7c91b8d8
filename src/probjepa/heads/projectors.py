"""Projectors and predictors of joint-embedding methods: linear layers with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from probjepa.errors import ConfigError


def projector(
    widths: Sequence[int],
    *,
    last_norm: Literal["none", "plain", "affine"] = "none",
    last_bias: bool = True,
) -> nn.Sequential:
    """Return Linear–BatchNorm–ReLU layers and a last linear one: (N, widths[0]) → (N, widths[-1]).

    A layer that a normalisation follows has no bias: the normalisation takes it out again.

    Parameters
    ----------
    widths
        of the input, of each hidden layer, and of the output
    last_norm
        of the output: "none", "plain" (BatchNorm without scale and shift) or "affine"
    last_bias
        whether an output without normalisation has a bias

    Raises
    ------
    ConfigError
        for fewer than two widths, one that is no whole number ≥ 1, or an unknown ``last_norm``
    """
    if len(widths) < 2 or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ConfigError(
            f"a projector has at least one layer, of whole widths ≥ 1: got the widths {list(widths)}"
        )
    if last_norm not in ("none", "plain", "affine"):
        raise ConfigError(f"last_norm must be 'none', 'plain' or 'affine', got '{last_norm}'")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and last_norm == "none"))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def equal_widths(dim: int, width: int, layers: int) -> list[int]:
    """Return the widths of a projector of ``layers`` layers from ``dim``, all of one width.

    Raises
    ------
    ConfigError
        unless ``layers`` is a whole number ≥ 1
    """
    if not isinstance(layers, int) or layers < 1:
        raise ConfigError(f"projector_layers must be a whole number ≥ 1, got {layers!r}")
    return [dim, *[width] * layers]
