"""Vision encoders of transformers and timm, with the preprocessing of their own configuration."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError
from probjepa.files import first_line, regular
from probjepa.model_files import quiet
from probjepa.registry import required

# an encoder, and the arguments of a ``Preprocess`` for it; None: its folder says nothing of that
Loaded = tuple[nn.Module, dict[str, Any] | None]
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# what an image processor may be asked to do: images are RGB as they are opened, and have no labels here
_STEPS = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"}
_OF_LABELS = {"do_convert_annotations", "do_reduce_labels"}
# the last is RADIO's, with its registers
_CLASS_TOKENS = {"cls_token", "class_embedding", "cls_register_token"}
_OTHER_TOKENS = {"distillation_token", "register_tokens"}
_OF_ONE_MODEL = {"include_top", "keep_aspect_ratio"}  # what changes images by another name


class UnpreparedError(ConfigError):
    """An ``encoder``, loaded, that says nothing of how its images are prepared."""

    def __init__(self, message: str, encoder: nn.Module) -> None:
        super().__init__(message)
        self.encoder = encoder


def _check_files(folder: Path) -> None:
    """Raise OSError if a folder, where there is one, holds a pipe or a device: it would be opened."""
    for file in folder.glob("*"):
        if not file.is_dir():
            regular(file)


def _pool(tokens: Tensor, pooling: Literal["cls", "mean"], prefix: int) -> Tensor:
    return tokens[:, 0] if pooling == "cls" else tokens[:, prefix:].mean(1)


def _choose(name: str, pooling: str | None, has_class_token: bool) -> Literal["cls", "mean"]:
    if pooling not in (None, "cls", "mean"):
        raise ConfigError(f"pooling is '{pooling}': use 'cls' or 'mean'")
    if pooling == "cls" and not has_class_token:
        raise ConfigError(f"{name} has no class token: use pooling='mean'")
    return "cls" if pooling == "cls" or (pooling is None and has_class_token) else "mean"


def load_pretrained(name: str, pooling: str | None = None) -> Loaded:
    """Load ``"hf:NAME"`` or ``"timm:NAME"``: the encoder, in evaluation mode, and its preprocessing.

    torch's generator stays as it is.

    Raises
    ------
    MissingExtraError, ArtifactError, ConfigError
        see :func:`load_transformers` and :func:`load_timm`
    """
    kind, _, rest = name.partition(":")
    # the weights that are replaced may be drawn
    with forked(), quiet("huggingface_hub"), tensors_alone():
        return load_transformers(rest, pooling) if kind == "hf" else load_timm(rest, pooling)


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Have torch.load read tensors alone, whoever calls it: timm up to 1.0.24 unpickles a folder's files."""
    ours = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a model of transformers; it need not be installed to say no."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)


class Source(NamedTuple):
    """Where on the hub an encoder is from: repository, commit, and a hash of the weights that came."""

    name: str
    revision: str
    sha256: str


def source_of(module: nn.Module) -> Source | None:
    """Return where on the hub an encoder is from, if that is known."""
    return module.source if isinstance(module, TransformersEncoder) else None


def pinned(name: str, revision: str) -> str:
    """Return ``"hf:NAME@REVISION"`` for ``"hf:NAME"``, or for another revision's name."""
    return f"{name.partition('@')[0]}@{revision}"


def weights_sha256(module: nn.Module) -> str:
    """Return a short hash of a module's weights, whatever their device, type and names.

    Of another float type they are the same as long as no number differs.
    """
    parts = []
    for value in module.state_dict().values():
        if value.is_floating_point():
            exact = value.detach().to("cpu", torch.float32).contiguous()
            parts.append(hashlib.sha256(exact.numpy()).digest())
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()[:16]


def _image_tower(model: nn.Module) -> nn.Module:
    """What of a model of transformers encodes images: CLIP's and the like's tower, a classifier's body."""
    tower: nn.Module = getattr(model, "vision_model", getattr(model, "base_model", model))
    # the ``base_model`` of DINOv3 is its blocks alone
    return model if "hidden_states" in inspect.signature(tower.forward).parameters else tower


def _prefix_tokens(model: nn.Module) -> dict[str, int]:
    """How many tokens of each kind stand before the patches."""
    if getattr(getattr(model, "config", None), "model_type", None) == "dinov3_convnext":
        return {"cls_token": 1}  # the mean of its feature map, put before the map
    counts = {}
    for path, value in model.named_parameters():
        *parents, name = path.split(".")
        # that of a pooling head (AIMv2) or of a later stage (CvT) is not among the tokens that come out
        if name in _CLASS_TOKENS | _OTHER_TOKENS and not {"head", "stages"} & set(parents):
            counts[name] = value.shape[-2] if value.ndim > 1 else 1
    return counts


@contextmanager
def _unmasked(config: Any) -> Iterator[None]:
    """Let a masked autoencoder see all patches, of which it hides some in evaluation too."""
    hidden = getattr(config, "mask_ratio", None)
    if hidden:
        config.mask_ratio = 0.0
    try:
        yield
    finally:
        if hidden:
            config.mask_ratio = hidden


class TransformersEncoder(nn.Module):
    """A vision model of transformers: pixel values (N, C, H, W) → (N, K), the last hidden state pooled.

    Raises
    ------
    ConfigError
        for a model that takes no images, or pooling="cls" on a model without a class token
    """

    def __init__(self, model: nn.Module, pooling: str | None = None) -> None:
        super().__init__()
        self.source: Source | None = None
        self.model: nn.Module = _image_tower(model)
        takes = getattr(self.model, "main_input_name", "pixel_values")
        if takes != "pixel_values":
            raise ConfigError(f"{type(model).__name__} takes {takes}, not images: give a vision model")
        counts = _prefix_tokens(self.model)
        has_class_token = bool(counts.keys() & _CLASS_TOKENS)
        self.prefix = sum(counts.values())
        self.pooling = _choose(type(model).__name__, pooling, has_class_token)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class token, or the mean of the patch tokens (or of a feature map)."""
        with _unmasked(getattr(self.model, "config", None)):
            hidden: Tensor = self.model(pixels, **self._order(pixels)).last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else _pool(hidden, self.pooling, self.prefix)

    def _order(self, pixels: Tensor) -> dict[str, Tensor]:
        """What keeps a masked autoencoder's patches in their places, which it shuffles to hide some."""
        patch: Any = getattr(getattr(self.model, "config", None), "patch_size", None)
        if "noise" not in inspect.signature(self.model.forward).parameters or not isinstance(patch, int):
            return {}  # Hiera takes it too, and shuffles nothing where it only encodes
        patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        return {"noise": torch.arange(patches, device=pixels.device).float().expand(len(pixels), -1)}


def load_transformers(name: str, pooling: str | None = None) -> Loaded:
    """Load ``NAME`` or ``NAME@REVISION`` from the hub, or a local folder, with its processor's settings.

    The encoder is in evaluation mode. A folder without a processor's configuration gives no settings of a
    preprocessing.

    Raises
    ------
    MissingExtraError
        without transformers
    ArtifactError
        if there is no such model
    """
    transformers = required("transformers", "hf")
    # unset, code in the model's folder is asked about on standard input
    ours: dict[str, Any] = {"trust_remote_code": False}
    repository = name
    try:
        _check_files(Path(name))
        if not Path(name).exists():
            repository, _, revision = name.partition("@")
            # one commit for all of it, whatever is uploaded meanwhile
            config = Path(hf_hub_download(repository, "config.json", revision=revision or None))
            ours["revision"] = config.parent.name
        model = transformers.AutoModel.from_pretrained(repository, **ours)
    except Exception as error:  # its errors differ between versions
        raise ArtifactError(
            f"no model 'hf:{name}', on this disk or on the hub: {first_line(error)}"
        ) from error
    encoder = TransformersEncoder(model, pooling).eval()
    if "revision" in ours:
        encoder.source = Source(repository, ours["revision"], weights_sha256(encoder))
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(repository, **ours)
    except (OSError, ValueError):
        return encoder, None
    return encoder, processor_settings(processor.to_dict(), f"hf:{name}")


def processor_settings(processor: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the arguments of a ``Preprocess`` that prepares images as an image processor says.

    Raises
    ------
    ConfigError
        for a processor that does something else: no square, borders, another filter or order of channels
    """
    asked = {key for key in processor if key.startswith("do_") or key in _OF_ONE_MODEL}
    if unknown := sorted(key for key in asked - _STEPS - _OF_LABELS if processor[key]):
        raise ConfigError(
            f"{name} prepares its images with {', '.join(unknown)}, which is not known here: give the module "
            "itself"
        )
    size, side, stretch = _sides(processor, name)
    how = processor.get("resample", 3)
    if how not in _FILTERS:
        raise ConfigError(
            f"{name} resizes its images with Pillow's filter {how}: only 2 and 3 are known here"
        )
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    shift = float(bool(processor.get("rescale_offset", False)))
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return {
        "size": size,
        "channels": 3,
        "mean": [(float(value) + shift) / scale for value in mean],
        "std": [float(value) / scale for value in std],
        "fit": {"size": size, "side": side, "interpolation": _FILTERS[how], "stretch": stretch},
    }


def _sides(processor: Mapping[str, Any], name: str) -> tuple[int, int, bool]:
    """The side of what an image processor makes, what it resizes to before, and whether it stretches."""
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    resized = _side(size, name) if processor.get("do_resize", True) else None
    if str(processor.get("image_processor_type")).startswith("Levit") and resized and "shortest_edge" in size:
        resized = int(256 / 224 * resized)
    stretch = "height" in size
    if processor.get("crop_pct") is not None and resized is not None:  # ConvNeXt's
        large = resized >= 384
        return resized, resized if large else int(resized / processor["crop_pct"]), large
    cropped = processor.get("do_center_crop", False)
    if resized and not stretch and not cropped:
        raise ConfigError(f"{name} keeps the shape of its images: only squares are known here")
    kept = _side(crop, name) if cropped else resized
    if kept is None:
        raise ConfigError(f"{name} does not say what size its images have: give the module itself")
    return kept, max(kept, resized or kept), stretch


def _side(size: Mapping[str, Any], name: str) -> int:
    of = {"shortest_edge": size["shortest_edge"]} if "shortest_edge" in size else size
    sides = [int(value) for value in of.values() if value]
    if not sides or len(set(sides)) > 1:
        raise ConfigError(f"{name} takes images of {dict(size)}: only squares are known here")
    return sides[0]


class TimmEncoder(nn.Module):
    """A model of timm without its classifier: (N, C, H, W) → (N, K).

    ``name`` and ``options`` are what timm makes it from, without weights: a name of timm's own, and of a
    hub's repository or a folder the arguments that stand there.
    """

    def __init__(
        self, model: Any, pooling: str | None, name: str, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.name, self.options = model, name, dict(options or {})
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.pooling = None if pooling is None else _choose(type(model).__name__, pooling, self.prefix > 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the model's own pooled features, or the tokens pooled as asked."""
        if self.pooling is None:
            out: Tensor = self.model(pixels)
            return out
        hidden: Tensor = self.model.forward_features(pixels)
        if hidden.ndim == 4:
            return hidden.mean((1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else (2, 3))
        return _pool(hidden, self.pooling, self.prefix)


def load_timm(name: str, pooling: str | None = None) -> Loaded:
    """Load a pretrained timm model in evaluation mode, with the settings of its data configuration.

    Raises
    ------
    MissingExtraError
        without timm
    ArtifactError
        if there is no such model
    """
    timm = required("timm", "timm")
    try:
        _check_files(Path(name.removeprefix("local-dir:")))
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # its errors differ between versions
        raise ArtifactError(f"no model 'timm:{name}': {first_line(error)}") from error
    data = timm.data.resolve_model_data_config(model)
    return TimmEncoder(model, pooling, *_made_of(timm, name)).eval(), data_settings(data, f"timm:{name}")


def _made_of(timm: Any, name: str) -> tuple[str, dict[str, Any]]:
    """What timm makes a model from whose name may be a repository's or a folder's; the name if not known."""
    kind, _, rest = name.replace("hf_hub:", "hf-hub:").partition(":")
    if kind not in ("local-dir", "hf-hub"):
        return name.rpartition("/")[2], {}
    with suppress(Exception):  # its configurations and functions differ between versions
        if kind == "local-dir":
            config = json.loads((Path(rest) / "config.json").read_text(encoding="utf-8"))
            return config["architecture"], dict(config.get("model_args") or {})
        _, own, *options = timm.models.load_model_config_from_hf(rest)  # early versions know no arguments
        return own, dict(*options)
    return name, {}


def data_settings(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the arguments of a ``Preprocess`` that prepares images as a timm data configuration says.

    Raises
    ------
    ConfigError
        for one that does something else: no square, borders, another filter
    """
    channels, *sides = data["input_size"]
    size, how = int(sides[0]), str(data["interpolation"])
    side = math.floor(size / data["crop_pct"])
    if sides[0] != sides[1] or side < size or data["crop_mode"] == "border" or how not in _FILTERS.values():
        what = {key: data[key] for key in ("input_size", "crop_pct", "crop_mode", "interpolation")}
        raise ConfigError(f"{name} prepares its images as is not known here ({what}): give the module itself")
    stretch = data["crop_mode"] == "squash"
    return {
        "size": size,
        "channels": int(channels),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "fit": {"size": size, "side": side, "interpolation": how, "stretch": stretch, "even": True},
    }
