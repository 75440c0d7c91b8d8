"""A vision transformer without a class token, which can encode a subset of the patches."""

from __future__ import annotations

from torch import Tensor, nn

from probjepa.backbones._checks import check_channels, check_images
from probjepa.backbones.transformer import Transformer, sincos_positions, start_linear
from probjepa.errors import ConfigError, DataError


class ViT(nn.Module):
    """Patches + fixed 2-D sin-cos positions → pre-norm transformer → mean: (N, C, H, W) → (N, D).

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
    ) -> None:
        super().__init__()
        check_channels("ViT", channels)
        if not isinstance(patch_size, int) or patch_size < 1 or image_size % patch_size:
            raise ConfigError(
                f"ViT: image_size {image_size} is not divisible by patch_size {patch_size}: change either"
            )
        self.channels = channels
        self.patch_size = patch_size
        self.embedding_dim = width
        self.grid = image_size // patch_size
        self.patch_embedding = nn.Linear(channels * patch_size**2, width)
        start_linear(self.patch_embedding)
        self.transformer = Transformer(width, depth, heads, mlp_ratio)
        positions = sincos_positions(self.grid, self.grid, width)
        self.register_buffer("positions", positions, persistent=False)

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
        check_images("ViT", images, self.channels)
        size = self.patch_size
        count, channels, height, width = images.shape
        rows, columns = height // size, width // size
        if height % size or width % size:
            raise DataError(
                f"ViT got images of {height}x{width} pixels: resize them to multiples of its patch, {size}"
            )
        patches = images.reshape(count, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(count, rows * columns, -1)
        positions = self.positions
        if (rows, columns) != (self.grid, self.grid):
            positions = sincos_positions(rows, columns, self.embedding_dim).to(positions)
        if keep is not None:
            keep = keep.to(images.device)
            positions = positions[keep]
            if keep.ndim == 1:
                patches = patches[:, keep]
            else:
                patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        out: Tensor = self.transformer(self.patch_embedding(patches) + positions)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the normalised tokens (N, D)."""
        return self.tokens(images).mean(1)
