"""Random numbers in float64, a small vision transformer, and the paper's own formulation in float64 as the reference."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    def __init__(
        self, dim: int = 16, size: int = 16, patch: int = 4, depth: int = 2, norm: bool = True
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(*[Block(dim, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        return self.norm(self.blocks(tokens))[:, 0]


def reference_spectrum(module: nn.Module, images: Tensor) -> Tensor:
    """torch.autograd.functional.jacobian and svdvals, one image at a time, all in float64."""
    precise = copy.deepcopy(module).double()
    rows = []
    for image in images.double().split(1):
        jacobian = torch.autograd.functional.jacobian(lambda x: precise(x).sum(0), image)
        rows.append(torch.linalg.svdvals(jacobian.flatten(1)))
    return torch.stack(rows)


def reference_score(module: nn.Module, images: Tensor, keep: int | None = None) -> Tensor:
    return reference_spectrum(module, images)[:, :keep].clamp(min=1e-6).log().sum(1)
