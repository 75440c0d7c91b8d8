"""What every method is: an encoder, a loss over views, embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor, nn

from probjepa.backbones import embedding_dim_of, encoder_of, is_trained, names_hub
from probjepa.backbones.architecture import architecture_of, built, remade, standing_in
from probjepa.backbones.encoding import Encoding
from probjepa.backbones.frozen import Frozen, evaluating
from probjepa.backbones.hub import UnpreparedError, pinned, source_of, weights_sha256
from probjepa.data import Preprocess, channel_statistics, default_recipe
from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError, DataError, short
from probjepa.methods.pretrained import Pretrained
from probjepa.model_files import read_weights
from probjepa.registry import LOADERS
from probjepa.typed import check_settings, types_of

if TYPE_CHECKING:
    from probjepa.data import Images


_IMAGE_SIZE = 32


class EncoderSettings(TypedDict, total=False):
    """The keywords of ``Method`` that every method hands on: see there."""

    backbone_options: Mapping[str, Any] | None
    freeze: bool
    channels: int
    image_size: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    view_recipe: str | None
    weights: str | Path | Mapping[str, Any] | None
    seed: int | None


class Method(Pretrained, pipeline_tag="image-feature-extraction"):
    """Base of all methods: a plain ``nn.Module`` on an encoder, with no trainer inside.

    Examples
    --------
    A subclass sets ``name``, hands the encoder's keywords on, and writes ``loss``:

    >>> class Mine(Method):
    ...     name = "mine"
    ...
    ...     def __init__(self, backbone="resnet18", *, weight=1.0, **encoder):
    ...         super().__init__(backbone, **encoder)
    ...         self.weight = weight
    >>> Mine("convnet", image_size=16, weight=2.0).settings["weight"]
    2.0

    Parameters
    ----------
    backbone
        a registered name (``probjepa list``), or any module that maps (N, C, H, W) to (N, D); a vision model
        of transformers is pooled. Or an encoder that is trained already, which brings the preparation of its
        images: ``"hf:NAME"``, ``"timm:NAME"``, a run or model folder, ``owner/name``, or what
        ``probjepa.open_encoder`` returns
    backbone_options
        keywords of a registered backbone, such as ``{"width": 0.25, "stem": "cifar"}``
    freeze
        train what stands on the encoder and nothing in it: it stays as it is, in evaluation mode. A module is
        then opened as ``probjepa.open_encoder`` does
    channels, image_size
        what the encoder is fed: 1 or 3 channels, size × size pixels (≥ 8); None: 32, or a trained encoder's
        own
    mean, std
        channel statistics in [0, 1] units; None: a trained encoder's own, else estimated on the training
        images by ``calibrate``
    view_recipe
        name of the view recipe; None: the default for size and channels
    weights
        a checkpoint of a registered backbone, see ``foreign_encoder``: what of it is the encoder's is loaded.
        A saved model holds the weights, and not where they came from
    seed
        of the initial weights, the same as ``probjepa train --seed`` gives; None: torch's global generator
        draws them, as for any module

    Attributes
    ----------
    takes_embeddings
        whether a frozen encoder's embeddings (N, D) may stand for the views of a loss
    most_views
        of an image that ``loss`` takes: 1, 2, or ``math.inf`` for any number from 2
    frozen_recipe
        what of ``recipe`` differs on a frozen encoder
    encoding
        how the encoder computes where it encodes, which ``precision`` sets

    Raises
    ------
    ConfigError
        for an unknown backbone or option, a setting out of range, or weights that do not fit
    ArtifactError
        for weights or an encoder that cannot be read
    """

    takes_embeddings: ClassVar[bool] = True
    frozen_recipe: ClassVar[Mapping[str, Any]] = {}
    encoder: nn.Module
    preprocess: Preprocess
    encoding: Encoding = Encoding()
    most_views: ClassVar[float] = 2

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        backbone_options: Mapping[str, Any] | None = None,
        freeze: bool = False,
        channels: int = 3,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        view_recipe: str | None = None,
        weights: str | Path | Mapping[str, Any] | None = None,
        seed: int | None = None,  # used by the metaclass
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {channels}")
        if image_size is not None and image_size < 8:
            raise ConfigError(f"image_size must be at least 8 pixels, got {image_size}")
        if (mean is None) != (std is None):
            raise ConfigError("mean and std go together: give both or neither")
        if not isinstance(view_recipe, str | None):
            raise ConfigError(
                f"view_recipe takes the name of a view recipe, got {short(repr(view_recipe))}: give a "
                "module of your own to fit(…, views=module)"
            )
        options = dict(backbone_options or {})
        opened: Method | None = None
        self.source: dict[str, Any] = {}
        if freeze or is_trained(backbone) or isinstance(backbone, Method):
            try:
                opened = self._opened(backbone, options, channels, image_size, weights)
            except UnpreparedError as error:
                if freeze:
                    raise
                backbone, options = error.encoder, {}  # prepared as these settings and the data say
        if opened is not None:
            self.encoder = opened.plain_encoder
            own = opened.preprocess.config() | ({} if mean is None else {"mean": mean, "std": std})
            self.preprocess = Preprocess(**own)
        else:
            size = image_size or _IMAGE_SIZE
            self.encoder, options = encoder_of(
                backbone, options, channels=channels, image_size=size, weights=weights
            )
            self.preprocess = Preprocess(
                size=size,
                channels=channels,
                mean=tuple(mean) if mean is not None else (0.5,) * channels,
                std=tuple(std) if std is not None else (0.25,) * channels,
            )
        size, channels = self.preprocess.size, self.preprocess.channels
        self.embedding_dim = embedding_dim_of(self.encoder, channels, size)
        self.frozen = freeze
        if freeze:
            self.encoder = Frozen(self.encoder, self.embedding_dim)
        self.statistics_given = mean is not None
        self.calibrated = self.statistics_given or opened is not None
        self.view_recipe = view_recipe or default_recipe(size, channels)
        # the channel statistics are the preprocessing's, which is saved beside the settings
        self.settings = {k: v for k, v in self.settings.items() if k not in ("mean", "std", "weights")} | {
            "backbone_options": {**options, **(self.settings.get("backbone_options") or {})},
            "channels": channels,
            "image_size": size,
            "view_recipe": self.view_recipe,
        }
        if opened is not None:
            self._record(opened)

    def _opened(
        self,
        backbone: str | nn.Module,
        options: dict[str, Any],
        channels: int,
        image_size: int | None,
        weights: Any,
    ) -> Method | None:
        """The trained encoder that a backbone stands for, if it stands for one."""
        named = not isinstance(backbone, nn.Module)
        if weights is not None and not named:
            raise ConfigError("weights go with a registered backbone's name: this one has its own")
        if named and weights is None and not is_trained(backbone):
            return None  # random weights, which a saved model's replace
        asked: dict[str, Any] = {"pooling": options.get("pooling")}
        if named and weights is not None:
            asked = {"weights": weights, "backbone_options": options, "image_size": image_size}
        elif unknown := sorted(set(options) - {"pooling"}):
            raise ConfigError(f"a trained encoder has no option '{unknown[0]}' (known: pooling)")
        elif (named and names_hub(backbone)) or not (named or isinstance(backbone, Method)):
            asked["image_size"] = image_size
        opened: Method = LOADERS["encoder"](backbone, **asked)
        size, takes = opened.preprocess.size, opened.preprocess.channels
        if image_size not in (None, size, self.defaults.get("image_size")):
            raise ConfigError(
                f"this encoder takes images of {size} pixels, not of {image_size}: leave image_size out"
            )
        if channels not in (3, takes):
            raise ConfigError(f"this encoder takes {takes} channels, not {channels}: leave channels out")
        if named:
            self.source = {"backbone": str(backbone), "backbone_options": options}
            if weights is not None:
                self.source["weights"] = str(weights) if isinstance(weights, str | Path) else None
        return opened

    def _record(self, opened: Method) -> None:
        """Record a trained encoder as it is made again: by its own name, if it has one."""
        of = opened.settings
        pooling = {"pooling": of["pooling"]} if of.get("pooling") else {}
        self.settings |= {
            "backbone": of.get("backbone"),
            "backbone_options": of.get("backbone_options") or pooling,
        }
        given = {name for name in self._modules_given if name != "backbone"}
        self._modules_given = (*(("backbone",) if of.get("backbone") is None else ()), *sorted(given))

    def config(self) -> dict[str, Any]:
        """Return what config.json holds: the settings, and the preprocessing."""
        return {**super().config(), "preprocess": self.preprocess.config()}

    def _saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As ``Pretrained``; a frozen encoder that is as the hub has it is named, not kept.

        Of another whose name is a hub's or a folder's the architecture is kept, so that neither is needed.
        """
        config, weights = super()._saved()
        name, source = self.settings["backbone"], source_of(self.plain_encoder)
        if self.frozen and name and source and weights_sha256(self.plain_encoder) == source.sha256:
            config["settings"]["backbone"] = pinned(name, source.revision)
            config["encoder_sha256"] = source.sha256
            weights = {key: weights[key] for key in weights.keys() - self._frozen_weights().keys()}
        elif names_hub(name) and (architecture := architecture_of(self.plain_encoder)):
            config["architecture"] = architecture
        return config, weights

    def _restore(self, folder: Path, config: Mapping[str, Any]) -> None:
        """As ``Pretrained``; ArtifactError also for a frozen encoder of other weights."""
        wanted = config.get("encoder_sha256")
        if wanted is None:
            return super()._restore(folder, config)
        source = source_of(self.plain_encoder)
        if (source.sha256 if source else weights_sha256(self.plain_encoder)) != wanted:
            raise ArtifactError(
                f"{folder} was trained on other weights of '{self.settings['backbone']}' than were loaded: "
                "clear the hub's cache of it, or train again"
            )
        read_weights(folder, lambda head: self.load_state_dict({**head, **self._frozen_weights()}))

    def _frozen_weights(self) -> dict[str, Tensor]:
        """What of the state is a frozen encoder's, those of averaged copies among it."""
        parts = tuple(f"{name}." for name, part in self.named_modules() if isinstance(part, Frozen))
        return {key: value for key, value in self.state_dict().items() if key.startswith(parts)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **modules: Any) -> Self:
        """Make a method with fresh weights from what ``config`` returned; see ``Pretrained``."""
        preprocess = check_settings(config["preprocess"], types_of(Preprocess))
        settings = {**config["settings"], "mean": preprocess["mean"], "std": preprocess["std"]}
        pooling = (settings.get("backbone_options") or {}).get("pooling")
        modules = cls._with_encoder(config, modules, pooling)
        if stands_in := names_hub(settings["backbone"]) and "backbone" in modules:
            settings["backbone_options"] = {}
        model = super().from_config({**config, "settings": settings}, **modules)
        if stands_in:
            of = config["settings"]
            model.settings |= {name: of.get(name) for name in ("backbone", "backbone_options")}
            model._modules_given = tuple(name for name in model._modules_given if name != "backbone")
        size, wanted = preprocess["size"], model.preprocess.size
        if size != wanted:
            raise ConfigError(f"the preprocessing has size {size}, and image_size is {wanted}")
        model.preprocess = Preprocess(**preprocess)
        return model

    @classmethod
    def _with_encoder(
        cls, config: Mapping[str, Any], modules: dict[str, Any], pooling: str | None
    ) -> dict[str, Any]:
        """The modules of a saved model, with the one that is filled in the place of a hub's encoder, if any.

        It is the one that was given, or else built of what is known of the architecture.
        """
        if not names_hub(config["settings"]["backbone"]):
            return modules
        encoder = modules.get("backbone")
        if encoder is None and (architecture := config.get("architecture")) is not None:
            encoder = built(architecture)
        if encoder is None:
            return modules
        plain = encoder.plain_encoder if isinstance(encoder, Method) else encoder
        return {**modules, "backbone": standing_in(plain, pooling)}

    def reinitialised(self, seed: int = 0) -> Self:
        """Return the same method with fresh random weights: the baseline that training must beat.

        Raises
        ------
        ConfigError
            for a backbone or a head of the user's own, whose initialisation is not known here
        """
        modules: dict[str, nn.Module] = {}
        for part in self._modules_given:
            if part != "backbone":
                raise ConfigError(f"a {part} of your own cannot be built again: build the baseline yourself")
        if self._modules_given or names_hub(self.settings["backbone"]):
            with forked(seed=seed):
                modules["backbone"] = remade(self.plain_encoder)
        config = self.config()
        if modules and not names_hub(self.settings["backbone"]):
            config["settings"] |= {"backbone_options": {}}
        fresh = self.from_config(config, seed=seed, **modules)
        return fresh.to(self.device).eval()

    @property
    def plain_encoder(self) -> nn.Module:
        """The encoder itself, whether it is frozen or not."""
        return self.encoder.module if isinstance(self.encoder, Frozen) else self.encoder

    @property
    def base_model(self) -> str | None:
        """The repository on the hub of the encoder that the model stands on, if there is one."""
        source = source_of(self.plain_encoder)
        return None if source is None else source.name

    @property
    def device(self) -> torch.device:
        """Device of the encoder's parameters, where images are encoded."""
        return next(self.encoder.parameters(), self.preprocess.mean).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's parameters, which images are given in; losses are float32 at least."""
        kinds = (p.dtype for p in self.encoder.parameters())
        return next((kind for kind in kinds if kind.is_floating_point), torch.float32)

    @property
    def precision(self) -> str:
        """What ``features`` and all that reads them encode in: "float32", unless "bf16" or "auto" is set.

        See ``Encoding``, also for the errors. To be set on the device that the model runs on; it is not saved
        with the model, and training and derivatives (JEPA-SCORE) go without it.
        """
        return self.encoding.precision

    @precision.setter
    def precision(self, asked: str) -> None:
        self.encoding = Encoding(asked, self.device.type)

    @contextmanager
    def _encoding_in(self, precision: str | None) -> Iterator[None]:
        """Set a precision, and then what there was; None: that stays."""
        before = self.encoding
        if precision is not None:
            self.precision = precision
        try:
            yield
        finally:
            self.encoding = before

    def calibrate(self, images: Tensor) -> None:
        """Take mean and standard deviation from uint8 images (N, C, H, W), unless they were given."""
        if not self.calibrated:
            mean, std = channel_statistics(images)
            config = self.preprocess.config() | {"mean": mean, "std": std}
            self.preprocess = Preprocess(**config).to(self.device)
            self.calibrated = True

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (N, C, H, W) to h (N, D): differentiable, in the current mode.

        A batch is uint8, or floats that are prepared already (resized and normalised), as a loss takes them.
        All other doors take images alone: there, floats are pixels in [0, 1].
        """
        h: Tensor = self.encoder(self.preprocess(x.to(self.device)).to(self.dtype))
        return h

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return "loss" and its named terms for a batch of views (as the view recipe makes them)."""
        raise NotImplementedError

    def after_step(self, step: int, total_steps: int) -> None:
        """Do what follows an optimiser step (an EMA update); nothing by default."""

    def features_of(self, h: Tensor) -> dict[str, Tensor]:
        """Everything the model reads from embeddings h (N, D), by name; "h" itself is among it."""
        return {"h": h}

    def open(self, images: Any) -> Images:
        """Return N images as a set: all that ``fit`` takes, see ``as_images``; floats are pixels in [0, 1].

        Raises
        ------
        DataError
            as ``open_images``
        """
        from probjepa.data import as_images  # what reads images is not needed to build a method

        return as_images(images, self.preprocess.opened)

    def batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Return what ``open`` takes in uint8 batches (B, C, H, W), at least one."""
        opened = self.open(images)
        if not len(opened):
            yield opened.get(slice(None))
        for batch, _ in opened.batches(batch_size):
            yield batch

    def features(self, x: Any, batch_size: int = 512, *, scored: bool = True) -> dict[str, Tensor]:
        """Encode N images once, in evaluation mode: "h" and what else the model says (N, …), float32.

        ``x`` is what ``open`` takes. Rows not ``scored`` by the method's own measures, such as a reference
        set's, may go without what only these need. DataError for embeddings with NaN or Inf.
        """
        with evaluating(self):
            batches = (batch.to(self.device) for batch in self.batches(x, batch_size))
            parts = [self.features_of(self.encoding(self, self.preprocess, batch)) for batch in batches]
        features = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        finite = torch.isfinite(features["h"]).flatten(1).all(1)
        if not bool(finite.all()):
            raise DataError(
                f"the encoder gave embeddings with NaN or Inf for {int((~finite).sum())} of {len(finite)} "
                "images: check its weights, and the range of its type if that is float16"
            )
        return features

    def embed(self, x: Any, batch_size: int = 512, *, precision: str | None = None) -> Tensor:
        """Embeddings h (N, D) of N images, all that ``open`` takes; in evaluation mode, without gradients.

        ``precision`` is for this call, which looks at its first images again; None: the model's own.
        """
        with self._encoding_in(precision):
            return self.features(x, batch_size, scored=False)["h"]

    def outputs(self, pixels: Tensor, what: str) -> tuple[Tensor, ...]:
        """Return "embed" (h,), "posterior" (mean, variance) or "likelihood" (score,) of ``example_batch``.

        What ``probjepa.export`` traces: tensor operations alone, no check and no branch on their values.

        Raises
        ------
        ConfigError
            for what the method has not
        """
        if what == "embed":
            return (self(pixels).float(),)
        raise ConfigError(f"a {type(self).__name__} has no {what}: only embed can be exported")

    def example_batch(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random images as ``outputs`` takes them: uint8 (N, C, S, S), resized already."""
        opened = self.preprocess.opened
        side = opened if isinstance(opened, int) else opened.side
        shape = (count, self.preprocess.channels, side, side)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
