"""I-JEPA's multi-block masks: which patches the student sees, and which it predicts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probjepa.errors import ConfigError

_REDRAWS = 32
_Range = tuple[float, float]


class MultiBlockMasks:
    """One context block less several target blocks, on a square grid of patches (arXiv 2301.08243).

    A block has one shape for the whole batch (scale and aspect = height/width, both uniform in their ranges
    and independent; the admissible whole-patch shape that is nearest in log scale and log aspect) and a
    uniform location for each image, up to the last row and column. Targets may overlap one another; the
    context is its block less all targets. So that the indices make one tensor, the contexts of a batch are
    cut to the shortest: which patches go is random, as dropping the last would favour the top of the image.
    (The authors' sampler never reaches the last row and column, ties the aspect to the scale, and drops the
    last patches.)

    Where no whole-patch shape is within the ranges (a 4 × 4 grid's targets), the one nearest to their middle
    is taken. Where targets leave fewer than ``min_context`` patches, the image's targets are drawn again, up
    to 32 times, then put upon one another. With the default ranges this never happens from a 5 × 5 grid on.

    Parameters
    ----------
    grid
        patches a side
    targets
        blocks to predict, M ≥ 1
    target_scale, target_aspect
        share of the grid's area, and height/width, of a target block
    context_scale
        share of the context block, a square
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
        min_context: int = 8,
    ) -> None:
        if targets < 1 or min_context < 1:
            raise ConfigError(
                f"masks take at least one target and one patch, got {targets} and {min_context}"
            )
        self.ranges = {"target": (target_scale, target_aspect), "context": (context_scale, (1.0, 1.0))}
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
        height, width = self._shape("target", generator)
        corners = self._corners(batch_size, self.targets, height, width, generator)
        block_height, block_width = self._shape("context", generator)
        context_corners = self._corners(batch_size, 1, block_height, block_width, generator)
        block = self._patches(context_corners, block_height, block_width).flatten(1)
        in_block = torch.zeros(batch_size, self.grid**2, dtype=torch.bool).scatter_(1, block, True)

        def seen(rows: Tensor | slice) -> Tensor:
            hidden = self._patches(corners[rows], height, width).flatten(1)
            return in_block[rows].scatter(1, hidden, False)

        context = seen(slice(None))
        for attempt in range(_REDRAWS + 1):
            short = (context.sum(1) < self.min_context).nonzero()[:, 0]
            if not len(short):
                break
            if attempt < _REDRAWS:
                corners[short] = self._corners(len(short), self.targets, height, width, generator)
            else:
                corners[short] = corners[short, :1]
            context[short] = seen(short)

        keys = torch.rand(context.shape, generator=generator).masked_fill_(~context, -1)
        kept = keys.topk(int(context.sum(1).min()), dim=1, sorted=False).indices.sort(1).values
        return kept, self._patches(corners, height, width)

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
