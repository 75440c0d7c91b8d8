"""I-JEPA's multi-block masks: which patches the student sees, and which it predicts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probjepa.errors import ConfigError

_REDRAWS = 32
_CANDIDATES = 8  # layouts drawn for each image that is left
_Range = tuple[float, float]


class MultiBlockMasks:
    """One context block less several target blocks, on a square grid of patches (arXiv 2301.08243).

    A block has one shape for the whole batch. Scale and aspect = height/width are uniform in their ranges and
    independent; the admissible whole-patch shape that is nearest in log scale and log aspect is taken. Each
    image has its own, uniform location of every block, up to the last row and column. Targets may overlap one
    another; the context is its block less all targets, whole.

    Contexts of one batch must make one tensor, so they have one length. The length is that of one image drawn
    by these rules, and the others are drawn until theirs is the same. So an image's masks have the same
    distribution in a batch of 1 and of 256; images of a batch share shapes and length, nothing else. (The
    authors' code cuts all contexts to the shortest of the batch: the larger the batch, the less is seen. Its
    sampler also never reaches the last row and column, and ties the aspect to the scale.)

    The context's aspect has a range, since on grids of 8 × 8 to 12 × 12 patches the whole grid is the only
    square within the usual scales.

    Where no whole-patch shape is within the ranges (a 4 × 4 grid's targets), the one nearest to their middle
    is taken. Where targets leave fewer than ``min_context`` patches, they are drawn again, up to 32 times,
    then put upon one another. With the default ranges the first happens on a 7 × 7 grid alone, of those
    from 5 × 5 on, and there rarely, and the second in practice never.

    Parameters
    ----------
    grid
        patches a side
    targets
        blocks to predict, M ≥ 1
    target_scale, target_aspect
        share of the grid's area, and height/width, of a target block
    context_scale, context_aspect
        the same of the context block
    min_context
        patches that every context keeps, at least

    Raises
    ------
    ConfigError
        for ranges out of order, or a grid too small to keep ``min_context`` patches beside a target

    Examples
    --------
    >>> context, targets = MultiBlockMasks(8)(32, torch.Generator().manual_seed(0))
    >>> targets.shape
    torch.Size([32, 4, 12])
    """

    def __init__(
        self,
        grid: int,
        *,
        targets: int = 4,
        target_scale: _Range = (0.15, 0.2),
        target_aspect: _Range = (0.75, 1.5),
        context_scale: _Range = (0.85, 1.0),
        context_aspect: _Range = (0.85, 1 / 0.85),
        min_context: int = 8,
    ) -> None:
        if targets < 1 or min_context < 1:
            raise ConfigError(
                f"masks take at least one target and one patch, got {targets} and {min_context}"
            )
        self.ranges = {"target": (target_scale, target_aspect), "context": (context_scale, context_aspect)}
        for (low, high), (flat, tall) in self.ranges.values():
            if not 0 < low <= high <= 1 or not 0 < flat <= tall < math.inf:
                raise ConfigError(
                    f"masks take 0 < scale ≤ 1 and 0 < aspect, each (low, high), got {(low, high)} and "
                    f"{(flat, tall)}"
                )
        self.grid = grid
        self.targets = targets
        self.min_context = min_context
        self.shapes = {name: _block_shapes(grid, *ranges) for name, ranges in self.ranges.items()}
        smallest = int(self.shapes["context"].prod(1).min()) - int(self.shapes["target"].prod(1).max())
        if smallest < min_context:
            raise ConfigError(
                f"a grid of {grid}×{grid} patches may keep {max(smallest, 0)} context patches beside a "
                f"target, and {min_context} are wanted: use smaller patches"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how often it draws depends on what it drew
    def __call__(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the masks of a batch, on the CPU.

        Parameters
        ----------
        batch_size
            N ≥ 1 images
        generator
            of the CPU; None: torch's global one

        Returns
        -------
        tuple of Tensor
            indices of the context's patches (N, Tc), ascending, and of the targets' (N, M, Tt), row by row
        """
        shapes = [*self._shape("target", generator), *self._shape("context", generator)]
        corners, seen, piled = self._first(shapes, generator)
        length = int(seen.sum())
        found = 1
        corners, seen = corners.repeat(batch_size, 1), seen.repeat(batch_size, 1)
        for _ in range(_REDRAWS):
            if found == batch_size:
                break
            count = _CANDIDATES * (batch_size - found)
            other, visible = self._layouts(count, shapes, generator, piled)
            fit = (visible.sum(1) == length).nonzero()[: batch_size - found, 0]
            corners[found : found + len(fit)], seen[found : found + len(fit)] = other[fit], visible[fit]
            found += len(fit)
        # where the length is rarer than one in hundreds, the images that are left have the first one's layout
        context = seen.nonzero()[:, 1].reshape(batch_size, length)
        return context, self._patches(corners, *shapes[:2])

    def _first(self, shapes: list[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor, bool]:
        """Layout of one image with at least ``min_context`` patches, and whether its targets are piled up."""
        for _ in range(_REDRAWS + 1):
            corners, seen = self._layouts(1, shapes, generator, False)
            if int(seen.sum()) >= self.min_context:
                return corners, seen, False
        return *self._layouts(1, shapes, generator, True), True

    def _layouts(
        self, count: int, shapes: list[int], generator: torch.Generator | None, piled: bool
    ) -> tuple[Tensor, Tensor]:
        """Top left patches (count, M) of targets, and the patches (count, grid²) that the contexts see."""
        height, width, block_height, block_width = shapes
        corners = self._corners(count, self.targets, height, width, generator)
        if piled:
            corners = corners[:, :1].repeat(1, self.targets)
        block = self._corners(count, 1, block_height, block_width, generator)
        seen = torch.zeros(count, self.grid**2, dtype=torch.bool)
        seen.scatter_(1, self._patches(block, block_height, block_width).flatten(1), True)
        return corners, seen.scatter_(1, self._patches(corners, height, width).flatten(1), False)

    def _shape(self, block: str, generator: torch.Generator | None) -> tuple[int, int]:
        """Height and width: the admissible shape nearest to a uniform scale and aspect."""
        scale, aspect = (
            low + (high - low) * float(torch.rand((), generator=generator))
            for low, high in self.ranges[block]
        )
        shapes = self.shapes[block]
        height, width = shapes[_distance(shapes, self.grid, scale, aspect).argmin()].tolist()
        return int(height), int(width)

    def _corners(
        self, count: int, blocks: int, height: int, width: int, generator: torch.Generator | None
    ) -> Tensor:
        """Top left patches (count, blocks) of blocks that lie within the grid, uniform."""
        top = torch.randint(self.grid - height + 1, (count, blocks), generator=generator)
        left = torch.randint(self.grid - width + 1, (count, blocks), generator=generator)
        return top * self.grid + left

    def _patches(self, corners: Tensor, height: int, width: int) -> Tensor:
        """Patches (…, height·width) of the blocks at top left patches (…)."""
        offsets = torch.arange(height)[:, None] * self.grid + torch.arange(width)
        return corners.unsqueeze(-1) + offsets.flatten()


def _distance(shapes: Tensor, grid: int, scale: float, aspect: float) -> Tensor:
    """Distances (K,) of shapes (K, 2) to a scale and an aspect, in log scale plus log aspect."""
    height, width = shapes.double().unbind(1)
    return (height * width / (grid**2 * scale)).log().abs() + (height / width / aspect).log().abs()


def _block_shapes(grid: int, scale: _Range, aspect: _Range) -> Tensor:
    """Shapes (K, 2) of whole patches within both ranges; none: the one nearest to their middle."""
    sides = torch.arange(1, grid + 1)
    shapes = torch.cartesian_prod(sides, sides)
    height, width = shapes.double().unbind(1)
    share, ratio, slack = height * width / grid**2, height / width, 1e-9
    within = (share >= scale[0] - slack) & (share <= scale[1] + slack)
    within &= (ratio >= aspect[0] - slack) & (ratio <= aspect[1] + slack)
    if within.any():
        return shapes[within]
    middle = _distance(shapes, grid, math.sqrt(scale[0] * scale[1]), math.sqrt(aspect[0] * aspect[1]))
    return shapes[middle.argmin()].unsqueeze(0)
