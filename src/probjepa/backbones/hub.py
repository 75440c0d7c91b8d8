"""Vision encoders of transformers and timm, with the preprocessing of their own configuration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probjepa.errors import ArtifactError, ConfigError, MissingExtraError
from probjepa.files import first_line, regular

Loaded = tuple[nn.Module, Callable[[Tensor], Tensor] | None]


def _extra(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra) from None


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

    Raises
    ------
    MissingExtraError, ArtifactError, ConfigError
        see :func:`load_transformers` and :func:`load_timm`
    """
    kind, _, rest = name.partition(":")
    return load_transformers(rest, pooling) if kind == "hf" else load_timm(rest, pooling)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a model of transformers; it need not be installed to say no."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)


class TransformersEncoder(nn.Module):
    """A vision model of transformers: pixel values (N, C, H, W) → (N, K), the last hidden state pooled.

    Raises
    ------
    ConfigError
        for pooling="cls" on a model without a class token
    """

    def __init__(self, model: nn.Module, pooling: str | None = None) -> None:
        super().__init__()
        # CLIP, SigLIP and the like: the image tower
        self.model: nn.Module = getattr(model, "vision_model", model)
        parts = dict(self.model.named_parameters())
        names = {name.rsplit(".", 1)[-1]: value for name, value in parts.items()}
        has_class_token = "cls_token" in names or "class_embedding" in names
        registers = names["register_tokens"].shape[1] if "register_tokens" in names else 0
        self.prefix = has_class_token + registers
        self.pooling = _choose(type(model).__name__, pooling, has_class_token)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class token, or the mean of the patch tokens (or of a feature map)."""
        hidden: Tensor = self.model(pixels).last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else _pool(hidden, self.pooling, self.prefix)


def load_transformers(name: str, pooling: str | None = None) -> Loaded:
    """Load ``name`` from the hub or a local folder, in evaluation mode, with its image processor.

    A folder without a processor's configuration gives no preprocessing: it takes prepared floats only.

    Raises
    ------
    MissingExtraError
        without transformers
    ArtifactError
        if there is no such model
    """
    transformers = _extra("transformers", "hf")
    ours = {"trust_remote_code": False}  # unset, code in the model's folder is asked about on standard input
    try:
        _check_files(Path(name))
        model = transformers.AutoModel.from_pretrained(name, **ours)
    except Exception as error:  # its errors differ between versions
        raise ArtifactError(
            f"no model 'hf:{name}', on this disk or on the hub: {first_line(error)}"
        ) from error
    encoder = TransformersEncoder(model, pooling).eval()
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, **ours)
    except (OSError, ValueError):
        return encoder, None

    def preprocess(images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        arrays = list(images.permute(0, 2, 3, 1).cpu().numpy())
        values: Tensor = processor(images=arrays, input_data_format="channels_last", return_tensors="pt")[
            "pixel_values"
        ]
        return values

    return encoder, preprocess


class TimmEncoder(nn.Module):
    """A model of timm without its classifier: (N, C, H, W) → (N, K)."""

    def __init__(self, model: Any, pooling: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.pooling = None if pooling is None else _choose(type(model).__name__, pooling, self.prefix > 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the model's own pooled features, or the tokens pooled as asked."""
        if self.pooling is None:
            out: Tensor = self.model(pixels)
            return out
        return _pool(self.model.forward_features(pixels), self.pooling, self.prefix)


def load_timm(name: str, pooling: str | None = None) -> Loaded:
    """Load a pretrained timm model in evaluation mode, with the transform of its own data configuration.

    Raises
    ------
    MissingExtraError
        without timm
    ArtifactError
        if there is no such model
    """
    timm = _extra("timm", "timm")
    try:
        _check_files(Path(name.removeprefix("local-dir:")))
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # its errors differ between versions
        raise ArtifactError(f"no model 'timm:{name}': {first_line(error)}") from error
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def preprocess(images: Tensor) -> Tensor:
        from PIL import Image

        pixels = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return torch.stack([transform(Image.fromarray(array)) for array in arrays])

    return TimmEncoder(model, pooling).eval(), preprocess
