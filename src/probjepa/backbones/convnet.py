"""A small convolutional encoder for tiny images, quick enough to train on one CPU core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from probjepa.backbones._checks import check_channels, check_images
from probjepa.errors import ConfigError


class ConvNet(nn.Module):
    """Stages of conv3x3-BN-ReLU and a global average pool: (N, channels, H, W) → (N, widths[-1]).

    The first stage keeps the resolution, each further stage halves it. Meant for images of 8 to 64 pixels.

    Parameters
    ----------
    channels
        1 or 3
    widths
        output channels of the stages; the last is the embedding dimension D

    Raises
    ------
    ConfigError
        for a setting out of its range
    DataError
        by ``forward``, for images of another shape or below 8 pixels
    """

    def __init__(self, *, channels: int = 1, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        check_channels("ConvNet", channels)
        if not widths or min(widths) < 1:
            raise ConfigError(f"ConvNet: widths is {list(widths)}: give one positive width for each stage")
        self.channels = channels
        self.embedding_dim = widths[-1]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip([channels, *widths], widths, strict=False)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=1 if index == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.stages = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, D)."""
        check_images("ConvNet", images, self.channels)
        embeddings: torch.Tensor = self.stages(images).mean(dim=(2, 3))
        return embeddings
