"""How an image of any shape becomes the square that an encoder trained elsewhere takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.errors import ConfigError
from probjepa.typed import check_plain

if TYPE_CHECKING:
    from PIL import Image


SMALLEST_SIDE = 8  # pixels


def checked_size(size: Any) -> int:
    """Return the side of a square in pixels; ConfigError unless it is a whole number from 8 on."""
    side: int = check_plain("size", size, int)
    if side < SMALLEST_SIDE:
        raise ConfigError(f"size is {side}: pass at least {SMALLEST_SIDE} pixels")
    return side


def central(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of an image's middle, at most eight times as long as wide.

    The centre square is kept after resizing: a strip resized as a whole takes memory without bound.
    """
    kept = min(width, 8 * height), min(height, 8 * width)
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    return left, top, left + kept[0], top + kept[1]


@dataclass(frozen=True)
class Fit:
    """Resize, then keep the centre: to the pixel as transformers and torchvision do it with Pillow.

    Parameters
    ----------
    size
        side of the square that comes out
    side
        what the shorter side is resized to before the centre is kept
    interpolation
        "bilinear" or "bicubic", both antialiased
    stretch
        resize the whole image to ``side`` × ``side``, whatever its shape
    even
        where half the rest around the centre is no whole number, round it to even (torchvision), not down
        (transformers)

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    size: int
    side: int
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    stretch: bool = False
    even: bool = False

    def __post_init__(self) -> None:
        if self.side < self.size:
            raise ConfigError(f"the shorter side is resized to {self.side}, less than the size {self.size}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation is '{self.interpolation}': use 'bilinear' or 'bicubic'")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing."""
        if self.stretch:
            return self.side, self.side
        shorter = min(width, height)
        return int(self.side * width / shorter), int(self.side * height / shorter)

    def margin(self, length: int) -> int:
        """Return how much is cut off before the centre of so many pixels."""
        rest = length - self.size
        return round(rest / 2) if self.even else rest // 2

    def image(self, image: Image.Image) -> Image.Image:
        """Return the ``side`` × ``side`` pixels around what ``batch`` keeps."""
        box = (0, 0, *image.size) if self.stretch else central(*image.size)
        width, height = self.resized(box[2] - box[0], box[3] - box[1])
        if image.size != (width, height):
            from PIL import Image

            how = Image.Resampling[self.interpolation.upper()]
            image = image.resize((width, height), how, box)
        left, top = (self.margin(length) - self.margin(self.side) for length in (width, height))
        return image.crop((left, top, left + self.side, top + self.side))

    def batch(self, images: Tensor) -> Tensor:
        """Return the centres of uint8 images (N, C, H, W), resized where they are not: (N, C, size, size)."""
        if images.shape[2:] != (self.side, self.side):
            if not self.stretch:
                left, top, right, bottom = central(images.shape[3], images.shape[2])
                images = images[:, :, top:bottom, left:right]
            images = self._resize(images, *self.resized(images.shape[3], images.shape[2]))
        top, left = (self.margin(length) for length in images.shape[2:])
        return images[:, :, top : top + self.size, left : left + self.size]

    def _resize(self, images: Tensor, width: int, height: int) -> Tensor:
        how: dict[str, Any] = {"mode": self.interpolation, "antialias": True, "align_corners": False}
        if images.device.type == "cpu":  # torch's own kernel for bytes works as Pillow does
            return F.interpolate(images, (height, width), **how)
        pixels = images.float()  # halves up, as Pillow does
        for shape in ((images.shape[2], width), (height, width)):  # Pillow rounds between the two directions
            pixels = F.interpolate(pixels, shape, **how).add_(0.5).floor_().clamp_(0, 255)
        return pixels.to(torch.uint8)

    def config(self) -> dict[str, Any]:
        """Return the arguments, JSON-able."""
        return asdict(self)


def side_and_fit(size: int | Fit | None) -> tuple[int | None, Fit | None]:
    """Return the side that images are opened with, None for their own, and how they come to it, if by a Fit.

    Raises
    ------
    ConfigError
        for a size that is no whole number from 8 on
    """
    if isinstance(size, Fit):
        return size.side, size
    return None if size is None else checked_size(size), None
