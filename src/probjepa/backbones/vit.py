"""A vision transformer that can encode a subset of the patches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probjepa.backbones._checks import check_channels, check_images
from probjepa.backbones.transformer import Transformer, sincos_positions, start_linear
from probjepa.errors import ConfigError, DataError

_STD = 0.02
_MOST_TOKENS = 1000


class ViT(nn.Module):
    """Patches + positions → pre-norm transformer → pooling: (N, C, H, W) → (N, D).

    The defaults are the I-JEPA encoder for 64 px: an 8 × 8 grid of patches, 18 million parameters. For 16 px
    take ``patch_size=4``; ``width=192, depth=6, heads=4`` trains on a CPU.

    Parameters
    ----------
    channels
        1 or 3
    image_size
        side in pixels, divisible by ``patch_size``; other sizes that are may be encoded, too
    patch_size
        side of a patch in pixels
    width
        D, divisible by 4 and by ``heads``
    depth, heads, mlp_ratio
        see ``Transformer``
    positions
        "sincos": fixed, 2-D; "learned": a parameter, resized bicubically for images of another size
    prefix_tokens
        learned tokens before the patches: a class token, and registers
    pooling
        "cls": the first of these tokens; "mean": the patches; None: "cls" where there is one

    Raises
    ------
    ConfigError
        for a setting out of its range
    DataError
        by ``forward`` and ``tokens``, for images of another shape, or not divisible by the patch
    """

    positions: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 64,
        patch_size: int = 8,
        width: int = 384,
        depth: int = 10,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "learned"] = "sincos",
        prefix_tokens: int = 0,
        pooling: Literal["cls", "mean"] | None = None,
    ) -> None:
        super().__init__()
        check_channels("ViT", channels)
        if not isinstance(patch_size, int) or patch_size < 1 or image_size % patch_size:
            raise ConfigError(
                f"ViT: image_size {image_size} is not divisible by patch_size {patch_size}: change either"
            )
        if positions not in ("sincos", "learned"):
            raise ConfigError(f"ViT: positions is '{positions}': use 'sincos' or 'learned'")
        if pooling not in (None, "cls", "mean") or (pooling == "cls" and not prefix_tokens):
            raise ConfigError(f"ViT: pooling is '{pooling}': use 'mean', or 'cls' with prefix_tokens")
        if not 0 <= prefix_tokens <= _MOST_TOKENS:
            raise ConfigError(f"ViT: prefix_tokens is {prefix_tokens}: use 0 to {_MOST_TOKENS}")
        self.channels = channels
        self.prefix_tokens = prefix_tokens
        self.pooling = pooling or ("cls" if prefix_tokens else "mean")
        self.patch_size = patch_size
        self.embedding_dim = width
        self.grid = image_size // patch_size
        self.patch_embedding = nn.Linear(channels * patch_size**2, width)
        start_linear(self.patch_embedding)
        self.transformer = Transformer(width, depth, heads, mlp_ratio)
        fixed = sincos_positions(self.grid, self.grid, width)
        if positions == "learned":
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty_like(fixed), std=_STD))
        else:
            self.register_buffer("positions", fixed, persistent=False)
        if prefix_tokens:
            self.prefix = nn.Parameter(nn.init.trunc_normal_(torch.empty(prefix_tokens, width), std=_STD))

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode images (N, C, H, W) to normalised tokens (N, T, D), patches row by row.

        Parameters
        ----------
        images
            prepared float images
        keep
            indices of the patches to encode, (N, T′) or (T′,) for all images alike: no other patch is looked
            at, and the cost is that of T′ tokens. None: all
        """
        return self._encode(images, keep)[:, self.prefix_tokens :]

    def _encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The prefix's tokens and the patches'."""
        check_images("ViT", images, self.channels)
        size = self.patch_size
        count, channels, height, width = images.shape
        rows, columns = height // size, width // size
        if height % size or width % size:
            raise DataError(
                f"ViT got images of {height}x{width} pixels: resize them to multiples of its patch, {size}"
            )
        patches = images.reshape(count, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(count, rows * columns, channels * size * size)
        positions: Tensor = self.positions
        if (rows, columns) != (self.grid, self.grid):
            if isinstance(positions, nn.Parameter):
                positions = resized_positions(positions, rows, columns)
            else:
                positions = sincos_positions(rows, columns, self.embedding_dim).to(positions)
        if keep is not None:
            keep = keep.to(images.device)
            positions = positions[keep]
            if keep.ndim == 1:
                patches = patches[:, keep]
            else:
                patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        tokens = self.patch_embedding(patches) + positions
        if self.prefix_tokens:
            tokens = torch.cat([self.prefix.expand(count, -1, -1), tokens], 1)
        out: Tensor = self.transformer(tokens)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token, or the mean of the patches' normalised tokens: (N, D)."""
        return self._encode(images)[:, 0] if self.pooling == "cls" else self.tokens(images).mean(1)


def resized_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resize positions (G·G, D) of a square grid to (rows·columns, D), bicubically and antialiased."""
    grid = math.isqrt(len(positions))
    square = positions.T.reshape(1, -1, grid, grid)
    resized = F.interpolate(square, (rows, columns), mode="bicubic", antialias=True)
    return resized[0].flatten(1).T
