"""I-JEPA's predictor: the trunk that turns a context into a vector for each hidden patch, and its head."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probjepa.backbones.transformer import Transformer, sincos_positions, start_linear
from probjepa.errors import ConfigError, unknown_name
from probjepa.heads import HEADS


class Predictor(nn.Module):
    """Context tokens and the positions of hidden patches → one context vector a hidden patch.

    Each target block is predicted on its own: its mask tokens see the context and one another.

    Parameters
    ----------
    dim
        D, of the context tokens
    grid
        patches a side
    width, depth, heads
        of the transformer
    """

    positions: Tensor

    def __init__(self, dim: int, grid: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.entry = nn.Linear(dim, width)
        start_linear(self.entry)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.transformer = Transformer(width, depth, heads)
        self.register_buffer("positions", sincos_positions(grid, grid, width), persistent=False)

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Return c (N, M, Tt, width).

        Parameters
        ----------
        tokens
            (N, Tc, D), of the context's patches
        context, targets
            indices (N, Tc) and (N, M, Tt), or (Tc,) and (M, Tt) for all images alike
        """
        blocks, asked = targets.shape[-2:]
        seen = self.entry(tokens) + self.positions[context]
        seen = seen.unsqueeze(1).expand(-1, blocks, -1, -1)
        hidden = self.mask_token + self.positions[targets]
        x = torch.cat([seen, hidden.expand(tokens.shape[0], -1, -1, -1)], 2)
        out: Tensor = self.transformer(x.flatten(0, 1))[:, -asked:]
        return out.reshape(tokens.shape[0], blocks, asked, out.shape[-1])


def build_head(head: str | nn.Module, dim: int, context_dim: int, options: dict[str, Any]) -> nn.Module:
    """Return a head by name, built with its options, or the module that was given.

    Raises
    ------
    ConfigError
        for an unknown name or option, options of a module, or what is neither a name nor a module
    """
    if isinstance(head, str):
        build: Callable[..., nn.Module] = HEADS[head]
        known = set(inspect.signature(build).parameters) - {"dim", "context_dim"}
        for option in options:
            if option not in known:
                raise unknown_name(f"option of head '{head}'", option, known)
        return build(dim, context_dim, **options)
    if options:
        raise ConfigError("head_options go with a head's name, not with a module of your own")
    if not isinstance(head, nn.Module):
        raise ConfigError(f"head is {head!r}: give a name of probjepa.heads.HEADS or a module")
    return head
