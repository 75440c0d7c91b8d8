"""Encoders: images (N, C, H, W) → embeddings (N, D). Reading the table of names loads no torch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probjepa.errors import ConfigError, nearest, short, warn
from probjepa.files import first_line
from probjepa.registry import Registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BACKBONES", "build_backbone", "embedding_dim_of", "encoder_of", "is_trained", "names_hub"]

MIN_IMAGE_SIZE = 8

BACKBONES = Registry(
    "backbone",
    {
        "resnet18": "probjepa.backbones.resnet:resnet18",
        "resnet34": "probjepa.backbones.resnet:resnet34",
        "resnet50": "probjepa.backbones.resnet:resnet50",
        "resnet20": "probjepa.backbones.resnet:resnet20",
        "convnet": "probjepa.backbones.convnet:ConvNet",
        "vit": "probjepa.backbones.vit:ViT",
    },
    group="probjepa.backbones",
)
HUBS = ("hf:", "timm:")
_CLASSIFIERS = ("fc", "head", "heads", "classifier", "last_linear")


def names_hub(source: object) -> bool:
    """Whether a backbone, or a model, is the name of an encoder of a hub: ``hf:NAME`` or ``timm:NAME``."""
    return isinstance(source, str | Path) and str(source).startswith(HUBS)


def is_trained(backbone: object) -> bool:
    """Whether a backbone is the name of an encoder that is trained already: of a hub, or of a saved model."""
    if not isinstance(backbone, str | Path):
        return False
    name = str(backbone)
    if name in BACKBONES:
        return False
    weights = ":" in name and name.partition(":")[0] in BACKBONES  # BACKBONE:FILE
    return weights or names_hub(name) or "/" in name or os.path.exists(name)


def encoder_of(
    backbone: str | nn.Module,
    options: Mapping[str, Any],
    *,
    channels: int = 3,
    image_size: int = 32,
    weights: str | Path | Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the encoder that a name or a module stands for, (N, channels, H, W) → (N, D), and its options.

    Parameters
    ----------
    backbone
        a registered name; or a module, which is returned as it is, but for a vision model of transformers,
        whose last hidden state is pooled
    options
        keywords of a registered backbone
    channels, image_size
        see :func:`build_backbone`
    weights
        a checkpoint of a registered backbone, see ``probjepa.backbones.foreign``

    Warns
    -----
    ProbjepaWarning
        of a module whose classifier was left on

    Raises
    ------
    ConfigError
        for an unknown name or option, options or weights beside a module, or weights that do not fit
    ArtifactError
        for weights that cannot be read
    """
    if isinstance(backbone, str):
        if weights is not None:
            from probjepa.backbones.foreign import foreign_encoder

            built, found = foreign_encoder(
                backbone, weights, options, channels=channels, image_size=image_size
            )
            return built, {name: value for name, value in found.items() if name != "image_size"}
        built = build_backbone(backbone, channels=channels, image_size=image_size, **options)
        return built, dict(options)
    if weights is not None:
        raise ConfigError("weights go with a registered backbone's name: this one has its own")
    from torch import nn

    from probjepa.backbones.hub import TransformersEncoder, is_transformers

    if options:
        raise ConfigError("backbone_options go with a backbone's name, not with a module of your own")
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"backbone is {short(repr(backbone))}: give a name of `probjepa list` or a torch module"
        )
    if is_transformers(backbone):
        return TransformersEncoder(backbone), {}
    _warn_of_classifier(backbone)
    return backbone, {}


def _warn_of_classifier(module: nn.Module) -> None:
    """Warn of a module that ends in a layer that is called as classifiers are."""
    from torch import nn

    *_, (name, last) = [("", module), *module.named_children()]
    layers = [part for part in last.modules() if isinstance(part, nn.Linear)]
    if name in _CLASSIFIERS and layers:
        warn(
            f"the last layer of {type(module).__name__}, '{name}' gives {layers[-1].out_features} numbers, "
            f"as a classifier does: for embeddings set its .{name} to torch.nn.Identity()"
        )


def build_backbone(name: str, *, channels: int = 3, image_size: int = 32, **options: Any) -> nn.Module:
    """Build the encoder called ``name``.

    Parameters
    ----------
    name
        a key of ``BACKBONES``
    channels
        channels of its input
    image_size
        side of the images in pixels, at least 8; it picks the default stem of the ResNets
    options
        the backbone's own settings, such as ``width`` (ResNets) or ``widths`` (convnet)

    Returns
    -------
    torch.nn.Module
        (N, channels, H, W) → (N, D), with an attribute ``embedding_dim`` = D

    Raises
    ------
    ConfigError
        for an unknown name or option, or a setting out of its range
    """
    build = BACKBONES[name]
    if image_size < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"backbone '{name}': image_size is {image_size}: use at least {MIN_IMAGE_SIZE} pixels"
        )
    accepted = list(inspect.signature(build).parameters)
    known = [option for option in accepted if option not in ("channels", "image_size")]
    for option in options:
        if option not in known:
            near = nearest(option, known)
            hint = f"did you mean '{near}'? " if near else ""
            raise ConfigError(
                f"backbone '{name}' has no option '{option}': {hint}(known: {', '.join(sorted(known))})"
            )
    if "image_size" in accepted:
        options["image_size"] = image_size
    module: nn.Module = build(channels=channels, **options)
    return module


def embedding_dim_of(module: nn.Module, channels: int, image_size: int) -> int:
    """Return D, the width of the embeddings of any encoder.

    Reads the attribute ``embedding_dim``; a module without one is run once on a batch of zeros
    (2, channels, image_size, image_size) in eval mode, and every sub-module's mode is restored.

    Raises
    ------
    ConfigError
        if the module fails on that batch, or returns anything but a tensor (N, D)
    """
    import torch

    from probjepa.backbones.frozen import evaluating
    from probjepa.draws import forked

    declared = getattr(module, "embedding_dim", None)
    if isinstance(declared, int):
        return declared
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, channels, image_size, image_size, dtype=like.dtype, device=like.device)
    shape = "x".join(map(str, images.shape))
    try:
        with evaluating(module), forked(like.device):  # dropout that is always on draws
            out = module(images)
    except Exception as error:
        raise ConfigError(
            f"backbone {type(module).__name__} fails on images of shape {shape}: {first_line(error)}"
        ) from error
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(images) or not out.shape[1]:
        found = f"a tensor {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise ConfigError(
            f"backbone {type(module).__name__} returned {found} for images of shape {shape}: "
            "it must return one embedding an image, a tensor (N, D); add pooling or flatten its output"
        )
    return out.shape[1]
