"""The pre-norm transformer and the fixed positions that vision encoders and predictors share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probjepa._attention import attention
from probjepa.errors import ConfigError
from probjepa.typed import DEEPEST

_INIT_STD = 0.02
_NORM_EPS = 1e-6  # ViT's


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), GELU inside: (N, T, D) → (N, T, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp_in = nn.Linear(width, round(mlp_ratio * width))
        self.mlp_out = nn.Linear(round(mlp_ratio * width), width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token (N, T, D) attend to every other of its row."""
        count, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention(query, key, value)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(count, tokens, width))
        out: Tensor = x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return out


class Transformer(nn.Module):
    """``depth`` pre-norm blocks and a last LayerNorm: (N, T, D) → (N, T, D).

    Linear weights start from N(0, 0.02²) cut at ±2, biases at 0; the two projections that block l (from 1)
    adds to the residual stream are divided by √(2l), as in I-JEPA's code (arXiv 2301.08243).

    Parameters
    ----------
    width
        D, divisible by ``heads``
    depth
        blocks
    heads
        attention heads of a block
    mlp_ratio
        hidden width of the MLP over D

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"transformer: {name} must be a whole number, at least 1, got {value!r}")
        if depth > DEEPEST:
            raise ConfigError(f"transformer: depth is {depth}: use at most {DEEPEST}")
        if width % heads:
            raise ConfigError(f"transformer: width {width} is not divisible by {heads} heads: change either")
        if not 1 <= mlp_ratio * width < math.inf:
            raise ConfigError(f"transformer: mlp_ratio is {mlp_ratio}: use a positive factor, usually 4")
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        start_linear(self)
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, start=1):
                for name in ("attention_out", "mlp_out"):
                    block.get_submodule(name).weight.div_(math.sqrt(2 * layer))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to normalised tokens (N, T, D)."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


def start_linear(module: nn.Module) -> None:
    """Start every linear layer of a module: weights from N(0, 0.02²) cut at ±2, biases at 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
            nn.init.zeros_(layer.bias)


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D positions (rows·columns, width), row by row (MAE, arXiv 2111.06377).

    [sin(y·ω), cos(y·ω), sin(x·ω), cos(x·ω)], ω_k = 10000^(−4k/width), k < width/4; y, x count patches.

    Raises
    ------
    ConfigError
        for a width that is not divisible by 4
    """
    if width % 4:
        raise ConfigError(f"2-D sin-cos positions take a width divisible by 4, got {width}")
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * frequencies
    x = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * frequencies
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], 1).float()
