"""What every encoder asks of its input and its settings."""

from __future__ import annotations

import torch

from probjepa.backbones import MIN_IMAGE_SIZE
from probjepa.errors import ConfigError, DataError


def check_channels(name: str, channels: int) -> None:
    """Raise ConfigError unless ``channels`` is 1 or 3."""
    if channels not in (1, 3):
        raise ConfigError(f"{name}: channels is {channels}: use 1 (greyscale) or 3 (RGB)")


def check_images(name: str, images: torch.Tensor, channels: int) -> None:
    """Raise DataError unless ``images`` is (N, channels, H, W) with sides of at least 8 pixels."""
    if images.ndim != 4:
        raise DataError(f"{name} got a tensor of shape {tuple(images.shape)}: give images as (N, C, H, W)")
    if images.shape[1] != channels:
        raise DataError(
            f"{name} was built for {channels} channels and got images with {images.shape[1]}: "
            "convert the images, or build it with that many channels"
        )
    if min(images.shape[2:]) < MIN_IMAGE_SIZE:
        raise DataError(
            f"{name} got images of {images.shape[2]}x{images.shape[3]} pixels: "
            f"resize them to at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}"
        )
