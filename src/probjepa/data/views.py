"""View recipes: from a batch of uint8 images to the random views that a joint-embedding method compares."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from probjepa.data.augment import (
    ColourJitter,
    RandomAffineCrop,
    RandomBlur,
    RandomGrey,
    RandomResizedCrop,
    RandomSolarise,
)
from probjepa.data.fitting import SMALLEST_SIDE, checked_size
from probjepa.data.preprocess import check_images, check_statistics
from probjepa.distributions.base import FullPrecision, full_precision
from probjepa.draws import forked
from probjepa.errors import ConfigError, DataError, ProbjepaError, short
from probjepa.files import first_line
from probjepa.registry import Registry

# Each takes (size, channels) and returns, for each view, its transformations in order.
RECIPES = Registry(
    "view recipe",
    {
        "byol-32": "probjepa.data.views:byol_32",
        "byol-32-solarised": "probjepa.data.views:byol_32_solarised",
        "byol-224": "probjepa.data.views:byol_224",
        "digits": "probjepa.data.views:digits",
        "ijepa": "probjepa.data.views:ijepa",
        "multi-crop": "probjepa.data.views:multi_crop",
    },
    group="probjepa.view_recipes",
)


class Views(FullPrecision):
    """Random views of a batch, normalised; each view has its own pipeline, each image its own parameters.

    Parameters
    ----------
    branches
        for each view, its transformations of float batches in [0, 1]
    channels
        1 or 3, what the branches take
    mean, std
        per channel, of pixel values in [0, 1]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        branches: Sequence[Sequence[nn.Module]],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        check_statistics(channels, mean, std)
        self.channels = channels
        self.branches = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, generator_seed: int | None = None) -> list[Tensor]:
        """Return the views, each float32 (B, C, size, size), on the images' device.

        Parameters
        ----------
        images
            uint8 (B, C, H, W), of any size from 8 pixels
        generator_seed
            the same seed gives the same views and leaves torch's generators as they were; None draws from
            torch's global generator

        Raises
        ------
        DataError
            for a wrong type, shape or channel count
        """
        check_images(images, self.channels)
        if images.dtype != torch.uint8:
            raise DataError(f"views are made of uint8 images, not {images.dtype}: open them with open_images")
        # all parameters come from the CPU's generator
        seeded = nullcontext() if generator_seed is None else forked(seed=generator_seed)
        # autocast would crop in half precision, which has fewer grey levels than the image
        with seeded, full_precision(images):
            pixels = images.float().div_(255)
            mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
            return [(branch(pixels) - mean).div_(std) for branch in self.branches]


def views(
    recipe: str,
    *,
    size: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    count: int | None = None,
) -> Views:
    """Return the views of a recipe.

    Parameters
    ----------
    recipe
        a name of ``RECIPES``
    size
        side of the views in pixels
    channels
        1 or 3
    mean, std
        per channel, of pixel values in [0, 1]
    count
        views an image, the recipe's own over and over; None: as many as it has

    Raises
    ------
    ConfigError
        for an unknown recipe, one that fails, or a setting out of its range
    """
    size = checked_size(size)
    if count is not None and count < 1:
        raise ConfigError(f"count is {count}: pass at least 1 view")
    if ":" in recipe and recipe not in RECIPES:
        raise ConfigError(
            f"the view recipe {short(recipe)} names code, which is run where you ask for it and by no file: "
            f"give it again, --set view_recipe={short(recipe)}"
        )
    make = RECIPES[recipe]
    try:
        branches = list(make(size, channels))
        while count is not None and 0 < len(branches) < count:
            branches += make(size, channels)
        return Views(branches[:count], channels, mean, std)
    except ProbjepaError:
        raise
    except Exception as error:  # of a recipe of the user's own
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(
            f"the view recipe '{short(recipe)}' makes no views ({why}): it takes (size, channels) and "
            "returns a list of modules for each view"
        ) from error


def default_recipe(size: int, channels: int) -> str:
    """Return the recipe that suits images of this size: digits for small grey ones, else BYOL's."""
    if channels == 1 and size <= 28:
        return "digits"
    return "byol-32" if size <= 64 else "byol-224"


def byol_32(size: int, channels: int) -> list[list[nn.Module]]:
    """BYOL's views at CIFAR size: crop, flip, colours, grey; no blur (Grill et al. 2020, appendix B)."""
    return [_colourful(size, channels) for _ in range(2)]


def byol_32_solarised(size: int, channels: int) -> list[list[nn.Module]]:
    """As byol-32, and solarise with p = 0 / 0.2 in the two views."""
    first, second = byol_32(size, channels)
    return [first, [*second, RandomSolarise(0.2)]]


def byol_224(size: int, channels: int) -> list[list[nn.Module]]:
    """BYOL's views: as byol-32, and blur with p = 1 / 0.1 and solarise with p = 0 / 0.2 in the two views."""
    kernel = _tenth(size)
    first, second = _colourful(size, channels), _colourful(size, channels)
    first.append(RandomBlur(kernel, (0.1, 2.0), p=1.0))
    second.append(RandomBlur(kernel, (0.1, 2.0), p=0.1))
    second.append(RandomSolarise(0.2))
    return [first, second]


def multi_crop(size: int, channels: int) -> list[list[nn.Module]]:
    """Two large crops and four small ones, of half the side (96 of 224), as SwAV's (Caron et al. 2020).

    Areas of 0.14 to 1 and of 0.05 to 0.14; colours as in byol-32, and above 64 px a blur with p = ½. For
    encoders that take images of both sizes.

    Raises
    ------
    ConfigError
        for a side under 16 pixels: that of a small crop is at least 8
    """
    if size < 2 * SMALLEST_SIDE:
        raise ConfigError(
            f"size is {size}: multi-crop's small views have half of it, so pass at least {2 * SMALLEST_SIDE} "
            "pixels, or another view recipe"
        )
    small = 96 if size == 224 else size // 2
    branches = [_colourful(size, channels, (0.14, 1.0)) for _ in range(2)]
    branches += [_colourful(small, channels, (0.05, 0.14)) for _ in range(4)]
    if size > 64:
        for branch, side in zip(branches, (size, size, *(small,) * 4), strict=True):
            branch.append(RandomBlur(_tenth(side), (0.1, 2.0), p=0.5))
    return branches


def digits(size: int, channels: int) -> list[list[nn.Module]]:
    """Views of written characters: crop, small turn, shift and shear; neither flips nor colours."""
    return [[RandomAffineCrop(size, scale=(0.4, 1.0))] for _ in range(2)]


def ijepa(size: int, channels: int) -> list[list[nn.Module]]:
    """One view for masked prediction: a large crop and a flip (Assran et al. 2023; they do not flip)."""
    return [[RandomResizedCrop(size, scale=(0.3, 1.0))]]


def _tenth(size: int) -> int:
    """A tenth of the side, odd, for a kernel: 23 at 224 px."""
    return max(3, 2 * (size // 20) + 1)


def _colourful(size: int, channels: int, scale: tuple[float, float] = (0.08, 1.0)) -> list[nn.Module]:
    steps: list[nn.Module] = [
        RandomResizedCrop(size, scale=scale),
        ColourJitter((0.4, 0.4, 0.2, 0.1), channels, p=0.8),
    ]
    return [*steps, RandomGrey(0.2)] if channels == 3 else steps
