"""What a model does to images before it sees them, the same in training and afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.data.fitting import SMALLEST_SIDE, Fit, central, checked_size
from probjepa.distributions.base import FullPrecision
from probjepa.errors import ConfigError, DataError


class Preprocess(FullPrecision):
    """Resize, crop to the centre square and normalise.

    Parameters
    ----------
    size
        side of the square that comes out, at least 8 pixels
    channels
        1 or 3, what the model was trained on
    mean, std
        per channel, of pixel values in [0, 1]
    fit
        how an encoder trained elsewhere has its images resized, see ``Fit``, or its settings; None:
        bilinearly, the shorter side to ``size``. With it grey images are repeated to ``channels``

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        fit: Fit | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.size = size = checked_size(size)
        check_statistics(channels, mean, std)
        self.channels = channels
        self.fit = fit = Fit(**fit) if isinstance(fit, Mapping) else fit
        self._statistics = ([float(value) for value in mean], [float(value) for value in std])
        self.register_buffer("mean", torch.tensor(self._statistics[0])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self._statistics[1])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (N, C, size, size).

        Parameters
        ----------
        images
            uint8 (N, C, H, W) of any size from 8 pixels: the shorter side is resized to ``size`` (bilinear,
            antialiased) and the centre kept; or floats (N, C, size, size), taken as prepared already

        Raises
        ------
        DataError
            for a wrong shape, channel count or type, or NaN and Inf
        """
        if self.fit is not None and images.ndim == 4 and images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        check_images(images, self.channels)
        if images.is_floating_point():
            if images.shape[2:] != (self.size, self.size):
                raise DataError(
                    f"float images are taken as prepared, and these have shape {tuple(images.shape)}: "
                    f"pass sides of {self.size}, or uint8 images to have them resized"
                )
            finite = torch.isfinite(images).flatten(1).all(1)
            if not bool(finite.all()):
                raise DataError(f"image {int(finite.int().argmin())} holds NaN or Inf: repair or remove it")
            return images.float()
        if self.fit is not None:
            pixels = self.fit.batch(images).float()
        else:
            pixels = resize_centre(images.float(), self.size)
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return (pixels / 255 - mean) / std

    @property
    def opened(self) -> int | Fit:
        """What ``open_images`` takes as ``size`` to open images for it."""
        return self.size if self.fit is None else self.fit

    @property
    def open_channels(self) -> int | None:
        """What ``open_images`` takes as ``channels`` to open images for it."""
        return self.channels if self.fit is None else None

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-able."""
        mean, std = self._statistics
        own = {"size": self.size, "channels": self.channels, "mean": list(mean), "std": list(std)}
        return own if self.fit is None else {**own, "fit": self.fit.config()}

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return ", ".join(f"{key}={value}" for key, value in self.config().items())


def check_statistics(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ConfigError unless there is a mean and a positive std for each of 1 or 3 channels."""
    if channels not in (1, 3):
        raise ConfigError(f"channels is {channels}: pass 1 (grey) or 3 (RGB)")
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"{len(mean)} means and {len(std)} stds for {channels} channels: pass one each")
    if not all(value > 0 for value in std):
        raise ConfigError(f"std is {list(std)}: every value must be positive")


def check_images(images: Tensor, channels: int) -> None:
    """Raise DataError unless ``images`` is uint8 or float (N, channels, H, W) with sides from 8 pixels."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise DataError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: pass uint8 or floats (N, C, H, W)"
        )
    if images.shape[1] != channels:
        one = f"; if they are the {channels} channels of one image x, pass x[None]"
        raise DataError(
            f"the model was trained on {channels}-channel images; these have {images.shape[1]}: "
            "open them with --convert (convert=True), or train on such images"
            f"{one * (images.shape[1] == 1 and len(images) == channels)}"
        )
    if min(images.shape[2:]) < SMALLEST_SIDE:
        raise DataError(
            f"images are {images.shape[3]}×{images.shape[2]} pixels: "
            f"the smallest side allowed is {SMALLEST_SIDE}"
        )


def resize_centre(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of float images (N, C, H, W) to ``size``, and keep the centre square."""
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    left, top, right, bottom = central(width, height)
    images = images[:, :, top:bottom, left:right]
    height, width = images.shape[2:]
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, :, top : top + size, left : left + size]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return the per-channel mean and standard deviation of pixel values in [0, 1].

    Parameters
    ----------
    images
        uint8 (N, C, H, W); the sums are exact, in 64-bit integers, the rest is float64

    Returns
    -------
    tuple of lists
        C means and C standard deviations; the latter at least 1/255, so that dividing by them is safe
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise DataError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: pass some, uint8 (N, C, H, W)"
        )
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for batch in torch.split(images[:, channel], 4096):  # a histogram: no wide copy of a large set
            counts += torch.bincount(batch.flatten(), minlength=256).cpu()
        share = counts.double() / counts.sum()
        mean = (share * values).sum()
        means.append(float(mean))
        stds.append(max(float((share * (values - mean) ** 2).sum().sqrt()), 1 / 255))
    return means, stds
