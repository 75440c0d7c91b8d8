"""ResNet-18, 34 and 50, and CIFAR's ResNet-20, without the classifier, with torchvision's parameter names.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the bottleneck strides in its
3x3 convolution, as torchvision's does ("ResNet v1.5"). The "cifar" stem is that of SimCLR and its successors:
a 3x3 convolution of stride 1 and no max-pool. ResNet-20 is section 4.2's, with shortcuts of option A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from probjepa.backbones._checks import check_channels, check_images
from probjepa.errors import ConfigError

Stem = Literal["cifar", "imagenet"]
# up to this side the "cifar" stem is the default: the other divides the side by 4 before the first block
_LARGEST_CIFAR_STEM_SIZE = 64


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class Padding(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, zeros for the channels that are more."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        before = (outputs - inputs) // 2
        self.stride, self.pad = stride, (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, inputs, H, W) → (N, planes, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self, inputs: int, planes: int, stride: int, shortcut: Callable[..., nn.Module] = _shortcut
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if (stride, inputs) == (1, planes) else shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(F(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (N, inputs, H, W) → (N, 4·planes, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if (stride, inputs) == (1, outputs) else _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(F(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + shortcut)


class ResNet(nn.Module):
    """A residual network up to its global average pool: (N, channels, H, W) → (N, embedding_dim).

    Parameters
    ----------
    block
        ``BasicBlock`` or ``Bottleneck``, or what makes one of (inputs, planes, stride=…)
    depths
        blocks in each stage
    channels
        1 or 3
    stem
        "cifar": 3x3 convolution, stride 1, no max-pool; "imagenet": 7x7, stride 2, then max-pool
    width
        factor on the channels of every stage (``planes``, then twice as many as the stage before), each
        rounded to a multiple of 8
    planes
        channels of the first stage

    Raises
    ------
    ConfigError
        for a setting out of its range
    DataError
        by ``forward``, for images of another shape or below 8 pixels
    """

    def __init__(
        self,
        block: Callable[..., BasicBlock | Bottleneck],
        depths: Sequence[int],
        *,
        channels: int = 3,
        stem: Stem = "cifar",
        width: float = 1.0,
        planes: int = 64,
    ) -> None:
        super().__init__()
        check_channels("ResNet", channels)
        if stem not in ("cifar", "imagenet"):
            raise ConfigError(f"ResNet: stem is '{stem}': use 'cifar' or 'imagenet'")
        if not 0 < width <= 16:
            raise ConfigError(f"ResNet: width is {width}: use a factor above 0 and up to 16")
        widths = [max(8, 8 * round(planes * 2**stage * width / 8)) for stage in range(len(depths))]
        self.channels = channels

        if stem == "cifar":
            self.conv1 = _conv(channels, widths[0], 3)
        else:
            self.conv1 = _conv(channels, widths[0], 7, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)

        inputs = widths[0]
        self.stages = [f"layer{stage}" for stage in range(1, len(depths) + 1)]
        for stage, depth, outputs in zip(self.stages, depths, widths, strict=True):
            blocks: list[nn.Module] = []
            for index in range(depth):
                made = block(inputs, outputs, stride=2 if stage != "layer1" and index == 0 else 1)
                blocks.append(made)
                inputs = outputs * made.expansion
            self.add_module(stage, nn.Sequential(*blocks))
        self.embedding_dim = inputs

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the globally average-pooled features (N, embedding_dim)."""
        check_images("ResNet", images, self.channels)
        x: torch.Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x.mean(dim=(2, 3))


def _build(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    channels: int,
    image_size: int,
    stem: Stem | None,
    width: float,
) -> ResNet:
    if stem is None:
        stem = "cifar" if image_size <= _LARGEST_CIFAR_STEM_SIZE else "imagenet"
    return ResNet(block, depths, channels=channels, stem=stem, width=width)


def resnet18(
    *, channels: int = 3, image_size: int = 32, stem: Stem | None = None, width: float = 1.0
) -> ResNet:
    """ResNet-18, D = 512. ``stem=None`` picks "cifar" for images up to 64 pixels, "imagenet" above."""
    return _build(BasicBlock, (2, 2, 2, 2), channels, image_size, stem, width)


def resnet34(
    *, channels: int = 3, image_size: int = 32, stem: Stem | None = None, width: float = 1.0
) -> ResNet:
    """ResNet-34, D = 512. ``stem=None`` picks "cifar" for images up to 64 pixels, "imagenet" above."""
    return _build(BasicBlock, (3, 4, 6, 3), channels, image_size, stem, width)


def resnet50(
    *, channels: int = 3, image_size: int = 32, stem: Stem | None = None, width: float = 1.0
) -> ResNet:
    """ResNet-50, D = 2048. ``stem=None`` picks "cifar" for images up to 64 pixels, "imagenet" above."""
    return _build(Bottleneck, (3, 4, 6, 3), channels, image_size, stem, width)


def resnet20(*, channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-20 for CIFAR, D = 64: three stages of 16, 32 and 64 channels, shortcuts without parameters."""
    block = partial(BasicBlock, shortcut=Padding)
    return ResNet(block, (3, 3, 3), channels=channels, width=width, planes=16)
