"""Small networks over a row's tokens: transformer, attention pooling, Gaussian head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probjepa._attention import attention
from probjepa.errors import ConfigError
from probjepa.tabular.elbo import bounded_log_variance
from probjepa.typed import DEEPEST

_WIDE = 200  # tokens: with fewer, two small attentions take longer than the pairs that a mask forbids


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and a GELU network, with dropout on what each adds.

    ``nn.TransformerEncoderLayer`` has two more dropouts, on the attention and on the wide hidden layer: on a
    CPU their random numbers cost more than the layer's own arithmetic saves at these sizes.
    """

    def __init__(self, dim: int, n_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, ff_dim), nn.Linear(ff_dim, dim)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, allow: Tensor | None) -> Tensor:
        """Map tokens (B, L, d) to (B, L, d); ``allow`` (B, 1, L, L) is which attends (row) to which."""
        q, k, v = self._heads(x)
        return self._add(x, attention(q, k, v, allow))

    def by_mask(self, shown: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Map a context (B, C, d) and K masks' tokens (B, K, T, d), each mask with the context alone.

        What ``forward`` makes of both in a row by ``attend_by_mask``, without the pairs that it forbids.
        """
        q, k, v = self._heads(shown)
        context = self._add(shown, attention(q, k, v))
        masks, own = asked.shape[1], asked.flatten(0, 1)

        def beside(of: Tensor, mine: Tensor) -> Tensor:
            """The context's keys or values, and a mask's own after them (B·K, H, C + T, d/H)."""
            each = of.unsqueeze(1).expand(-1, masks, -1, -1, -1).flatten(0, 1)
            return torch.cat([each, mine], 2)

        q, own_k, own_v = self._heads(own)
        mixed = attention(q, beside(k, own_k), beside(v, own_v))
        return context, self._add(own, mixed).view_as(asked)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, L, d), (B, H, L, d/H) each."""
        b, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, length, 3, self.n_heads, dim // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Tokens (B, L, d) and what attention made of them (B, H, L, d/H): the rest of the block."""
        x = x + self.drop(self.proj(mixed.transpose(1, 2).reshape(x.shape)))
        out: Tensor = x + self.drop(self.narrow(F.gelu(self.wide(self.norm2(x)))))
        return out


class Transformer(nn.Module):
    """Blocks and a last normalisation, tokens (B, L, d) → (B, L, d).

    Within ``in_bf16`` the blocks' products are in bfloat16; what they add up, and what comes out, is float32.

    Raises
    ------
    ConfigError
        if the heads do not divide the dimension, a size is below 1, or there are over 1000 layers
    """

    bf16 = False

    def __init__(self, dim: int, *, n_layers: int, n_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        if min(dim, n_layers, n_heads, ff_dim) < 1 or n_layers > DEEPEST or dim % n_heads:
            raise ConfigError(
                f"dim {dim}, n_layers {n_layers}, n_heads {n_heads}, ff_dim {ff_dim}: "
                f"use at least 1 of each, at most {DEEPEST} layers, and heads that divide dim"
            )
        self.blocks = nn.ModuleList(Block(dim, n_heads, ff_dim, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, allow: Tensor | None = None) -> Tensor:
        """Encode tokens; ``allow`` (B, L, L), or what broadcasts to it, is which attends (row) to which."""
        if allow is not None:
            allow = allow.unsqueeze(1)
        with self._precision(x.device):
            for block in self.blocks:
                x = block(x, allow)
        out: Tensor = self.norm(x)
        return out

    def asked(self, shown: Tensor, asked: Tensor, n_targets: int) -> Tensor:
        """Encode K masks' tokens (B, K·T, d), each mask with the context (B, C, d) and without the others."""
        context, length = shown.shape[1], asked.shape[1]
        if context + length < _WIDE:
            allow = attend_by_mask(context, n_targets, length // n_targets, asked.device)
            dense: Tensor = self(torch.cat([shown, asked], 1), allow)[:, context:]
            return dense
        masks = asked.reshape(len(asked), n_targets, -1, asked.shape[2])
        with self._precision(asked.device):
            for block in self.blocks:
                assert isinstance(block, Block)
                shown, masks = block.by_mask(shown, masks)
        out: Tensor = self.norm(masks.flatten(1, 2))
        return out

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if not self.bf16:
            return nullcontext()
        # a cache of cast weights goes with the outermost autocast, the fit's own: it would outlive the step
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def in_bf16(network: nn.Module, on: bool = True) -> Iterator[None]:
    """Inside, where it is ``on``, a network's transformers compute in bfloat16, and nothing else does."""
    transformers = [part for part in network.modules() if on and isinstance(part, Transformer)]
    try:
        for part in transformers:
            part.bf16 = True
        yield
    finally:
        for part in transformers:
            part.bf16 = False


class AttentionPool(nn.Module):
    """Tokens (B, L, d) → (B, d): a mean with learned softmax weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pool the tokens, or those that ``keep`` (B, L) names."""
        score: Tensor = self.score(x).squeeze(-1)
        if keep is not None:
            score = score.masked_fill(~keep, -math.inf)
        return (score.softmax(1).unsqueeze(1) @ x).squeeze(1)


class GaussianHead(nn.Linear):
    """(…, d) → mean and log-variance of a diagonal Gaussian, (…, d) each."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2 * dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return μ and log σ²."""
        mean, raw = super().forward(x).chunk(2, -1)
        return mean, bounded_log_variance(raw)


def token_parameter(dim: int) -> nn.Parameter:
    """Return a learned token (1, 1, d)."""
    return nn.Parameter(torch.randn(1, 1, dim) / math.sqrt(dim))


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens (B, n, d) of (B, D, d) at each row's own indices (B, n)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def attend_by_mask(n_context: int, n_targets: int, n_target: int, device: torch.device) -> Tensor:
    """Which token attends to which (1, L, L), where one pass predicts K target masks: L = C + K·T.

    The context attends to itself, and a mask's tokens to the context and to one another. So K masks cost one
    encoding of the context, and none sees another.
    """
    group = torch.zeros(n_context + n_targets * n_target, dtype=torch.long, device=device)
    group[n_context:] = torch.arange(1, n_targets + 1, device=device).repeat_interleave(n_target)
    return ((group[None] == 0) | (group[:, None] == group[None])).unsqueeze(0)
