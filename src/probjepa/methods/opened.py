"""An encoder that was trained elsewhere, as the same object that a trained method is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from probjepa.backbones import build_backbone, names_hub
from probjepa.backbones.architecture import remade
from probjepa.backbones.foreign import foreign_encoder
from probjepa.backbones.hub import UnpreparedError, load_pretrained
from probjepa.data import Preprocess
from probjepa.draws import forked
from probjepa.errors import ConfigError
from probjepa.files import first_line
from probjepa.methods.base import Method

_CHANNELS = 3
# the public releases': ImageNet's statistics, and above the size of CIFAR and the like 224 of 256 pixels
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP, _SMALL = 224 / 256, 64


class OpenedEncoder(Method):
    """Embeddings of an encoder trained elsewhere, prepared as that encoder's own configuration says.

    Parameters
    ----------
    backbone
        ``"hf:NAME"``, ``"timm:NAME"`` or a torch module, float (N, 3, H, W) → (N, D), which is put in
        evaluation mode. Nothing is known of how a module's images are prepared: it is given pixels in [0, 1],
        and normalises them itself. Or a registered name, for ``weights``
    image_size
        side of the square images that it is given; None: its own (a module's must be given)
    pooling
        of a token model: "cls" or "mean"; None: the model's own
    weights
        a checkpoint of a registered backbone, see ``probjepa.backbones.foreign``. Its images are resized
        bicubically, the shorter side to 8/7 of ``image_size`` (up to 64 pixels: to ``image_size``) before the
        centre is kept
    backbone_options
        of a registered backbone, where the shapes of its weights do not say them
    mean, std
        with ``weights``: channel statistics in [0, 1] units; None: ImageNet's

    Raises
    ------
    ConfigError
        for an encoder that does not say how its images are prepared, that fails on such images, whose
        embeddings are not of its ``embedding_dim``, or that gives another embedding of an image each time or
        in another batch
    MissingExtraError, ArtifactError
        where transformers or timm is not installed, or has no such model
    """

    name = "encoder"

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        image_size: int | None = None,
        pooling: str | None = None,
        weights: str | Path | Mapping[str, Any] | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        settings: dict[str, Any] | None
        own: dict[str, Any] = {"backbone": backbone, "image_size": image_size, "pooling": pooling}
        if isinstance(backbone, str) and not names_hub(backbone):
            options = {**(backbone_options or {}), **({} if pooling is None else {"pooling": pooling})}
            if weights is not None:
                module, options = foreign_encoder(backbone, weights, options, image_size=image_size)
                own["image_size"] = options.pop("image_size")
            else:  # of a saved model, which are loaded next
                module = build_backbone(backbone, image_size=image_size or 0, **options)
            size = own["image_size"]
            side = size if size <= _SMALL else round(size / _CROP)
            if (mean is None) != (std is None):
                raise ConfigError("mean and std go together: give both or neither")
            of_images = (_MEAN, _STD) if mean is None else (mean, std)
            settings = {"size": size, "channels": _CHANNELS, "mean": of_images[0], "std": of_images[1]}
            settings["fit"] = {"size": size, "side": side}
            own |= {"pooling": None, "backbone_options": options}
        elif weights is not None or backbone_options or mean is not None or std is not None:
            raise ConfigError("weights, backbone_options, mean and std go with a registered backbone's name")
        elif isinstance(backbone, str):
            module, settings = load_pretrained(backbone, pooling)
        else:
            if pooling is not None:
                raise ConfigError("pooling goes with 'hf:' and 'timm:' encoders: this one pools by itself")
            if image_size is None:
                raise ConfigError("an encoder of your own needs image_size, the side of its images")
            zeros, ones = (0.0,) * _CHANNELS, (1.0,) * _CHANNELS
            settings = {"size": image_size, "channels": _CHANNELS, "mean": zeros, "std": ones}
            module, own["backbone"] = backbone, None
        if settings is None:
            raise UnpreparedError(
                f"{backbone} says nothing of how its images are prepared (no preprocessor_config.json): open "
                "it yourself, and give the module",
                module,
            )
        if image_size is not None and settings["size"] != image_size:
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
        self.settings = own
        self.eval()
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        """Raise ConfigError unless an image has one embedding, each time, whatever stands beside it."""
        images = self.example_batch(2, torch.Generator().manual_seed(0))
        images[1] //= 8  # a dark one, which would move the statistics of a batch
        try:
            with torch.no_grad(), forked(self.device, seed=0):
                outs = [self(batch).cpu() for batch in (images[:1], images[:1], images)]
        except Exception as error:  # whatever a user's own module makes of it
            raise ConfigError(f"the encoder fails on its images: {first_line(error)}") from error
        shapes = [tuple(out.shape) for out in outs]
        if shapes != [(count, self.embedding_dim) for count in (1, 1, 2)] or outs[0].is_complex():
            raise ConfigError(
                f"the encoder gives {shapes[0]} for one image and {shapes[2]} for two ({outs[0].dtype}): "
                f"each is to have one embedding of its embedding_dim, {self.embedding_dim} real numbers"
            )
        first, again, beside = (out.float() for out in outs)
        largest = float(first.nan_to_num().abs().max())
        if not torch.allclose(first, again, rtol=0, atol=1e-2 * largest, equal_nan=True):
            raise ConfigError(
                "two embeddings of the same image differ: the encoder draws random numbers in evaluation "
                "mode (dropout, masking): turn that off first"
            )
        if not torch.allclose(first, beside[:1], rtol=0, atol=0.1 * largest, equal_nan=True):
            raise ConfigError(
                "the embedding of an image depends on the others of its batch: take the batch's statistics "
                "out (batch normalisation: track_running_stats=True)"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **modules: Any) -> Self:
        """Open the same encoder, and prepare its images as was saved; see ``Pretrained``."""
        settings = config["settings"]
        modules = cls._with_encoder(config, modules, settings.get("pooling"))
        if names_hub(settings["backbone"]) and "backbone" in modules:
            model = cls(modules["backbone"], image_size=config["preprocess"]["size"])
            model.settings = dict(settings)
            model._modules_given = ()
        else:
            model = cls(**{**settings, **modules})
        model.preprocess = Preprocess(**config["preprocess"])
        return model

    def reinitialised(self, seed: int = 0) -> Self:
        """Return the same encoder with random weights, made again from its configuration.

        Raises
        ------
        ConfigError
            for a module of the user's own
        """
        registered = "backbone_options" in self.settings
        with forked(seed=seed):
            fresh = (
                type(self)(**self.settings)
                if registered
                else type(self)(remade(self.encoder), image_size=self.preprocess.size)
            )
        fresh.preprocess = Preprocess(**self.preprocess.config())
        return fresh.to(self.device)
