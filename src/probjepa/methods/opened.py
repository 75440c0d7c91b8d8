"""An encoder that was trained elsewhere, as the same object that a trained method is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from probjepa.backbones import HUBS
from probjepa.backbones.hub import load_pretrained, remade
from probjepa.data import Preprocess
from probjepa.errors import ConfigError
from probjepa.methods.base import Method

_CHANNELS = 3


class OpenedEncoder(Method):
    """Embeddings of an encoder trained elsewhere, prepared as that encoder's own configuration says.

    Parameters
    ----------
    backbone
        ``"hf:NAME"``, ``"timm:NAME"`` or a torch module, float (N, 3, H, W) → (N, D). Nothing is known of how
        a module's images are prepared: it is given pixels in [0, 1], and normalises them itself
    image_size
        side of the square images that it is given; None: its own (a module's must be given)
    pooling
        of a token model: "cls" or "mean"; None: the model's own

    Raises
    ------
    ConfigError
        for an encoder that does not say how its images are prepared, or that fails on such images
    MissingExtraError, ArtifactError
        where transformers or timm is not installed, or has no such model
    """

    name = "encoder"

    def __init__(
        self, backbone: str | nn.Module, *, image_size: int | None = None, pooling: str | None = None
    ) -> None:
        settings: dict[str, Any] | None
        if isinstance(backbone, str):
            if not backbone.startswith(HUBS):
                raise ConfigError(
                    f"no encoder '{backbone}': give {' or '.join(f'{hub}NAME' for hub in HUBS)}"
                )
            module, settings = load_pretrained(backbone, pooling)
        else:
            if pooling is not None:
                raise ConfigError("pooling goes with 'hf:' and 'timm:' encoders: this one pools by itself")
            if image_size is None:
                raise ConfigError("an encoder of your own needs image_size, the side of its images")
            zeros, ones = (0.0,) * _CHANNELS, (1.0,) * _CHANNELS
            settings = {"size": image_size, "channels": _CHANNELS, "mean": zeros, "std": ones}
            module = backbone
        if settings is None:
            raise ConfigError(
                f"{backbone} says nothing of how its images are prepared (no preprocessor_config.json): open "
                "it yourself, and give the module"
            )
        if image_size is not None and "fit" in settings:
            side = round(settings["fit"]["side"] * image_size / settings["size"])
            settings = {
                **settings,
                "size": image_size,
                "fit": {**settings["fit"], "size": image_size, "side": side},
            }
        super().__init__(
            module, channels=settings["channels"], image_size=settings["size"], mean=settings["mean"],
            std=settings["std"],
        )  # fmt: skip
        self.preprocess = Preprocess(**settings)
        own = backbone if isinstance(backbone, str) else None
        self.settings = {"backbone": own, "image_size": image_size, "pooling": pooling}
        self.eval()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **modules: Any) -> Self:
        """Open the same encoder, and prepare its images as was saved; see ``Pretrained``."""
        model = cls(**{**config["settings"], **modules})
        model.preprocess = Preprocess(**config["preprocess"])
        return model

    def reinitialised(self, seed: int = 0) -> Self:
        """Return the same encoder with random weights, made anew from its configuration.

        Raises
        ------
        ConfigError
            for a module of the user's own
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self)(remade(self.encoder), image_size=self.preprocess.size)
        fresh.preprocess = Preprocess(**self.preprocess.config())
        return fresh.to(self.device)
