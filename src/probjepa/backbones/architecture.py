"""Encoders of transformers and timm without their weights: built again, or from what a saved model keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from probjepa.backbones.hub import TimmEncoder, TransformersEncoder, is_transformers, tensors_alone
from probjepa.draws import forked
from probjepa.errors import ConfigError
from probjepa.model_files import quiet
from probjepa.registry import required

# of a configuration: what says nothing of the weights, and what may read or run something else
_NEEDLESS = {"transformers_version", "_name_or_path", "id2label", "label2id", "architectures"}
_ELSEWHERE = re.compile(r".*(_implementation|auto_map|quantization|checkpoint|backbone|pretrained|timm).*")


def architecture_of(encoder: nn.Module) -> dict[str, Any] | None:
    """Return what ``built`` makes a hub's encoder from, as JSON has it; None where it cannot."""
    if isinstance(encoder, TransformersEncoder):
        model: Any = encoder.model
        config = json.loads(model.config.to_json_string(use_diff=False))
        own = {key: value for key, value in config.items() if key not in _NEEDLESS and not _is_elsewhere(key)}
        architecture = {"pooling": encoder.pooling, "transformers": own}
    elif isinstance(encoder, TimmEncoder):
        architecture = _of_timm(encoder)
    else:
        return None
    with torch.device("meta"):  # where nothing is drawn; some models cannot be built there
        again = built(architecture)
    again = again or built(architecture)
    if again is None or _shapes(again) != _shapes(encoder):
        return None
    return architecture


def built(architecture: Mapping[str, Any]) -> nn.Module | None:
    """Build an encoder with random weights, in evaluation mode, of what ``architecture_of`` returned.

    None for what this transformers or timm does not know, and for a configuration that names anything beside
    itself: code, files, another library's model. torch's generator stays as it is.

    Raises
    ------
    MissingExtraError
        without the library
    """
    build = _built_by_timm if "timm" in architecture else _built_by_transformers
    library = required("timm", "timm") if "timm" in architecture else required("transformers", "hf")
    try:
        with forked(), quiet("huggingface_hub"), tensors_alone():
            encoder = build(library, architecture)
    except Exception:  # its errors differ between versions
        return None
    return None if encoder is None else encoder.eval()


def _built_by_transformers(transformers: Any, architecture: Mapping[str, Any]) -> nn.Module | None:
    config = dict(architecture["transformers"])
    if _names_more(config):
        return None
    of = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    model = transformers.AutoModel.from_config(of, trust_remote_code=False)
    return TransformersEncoder(model, architecture["pooling"])


def _of_timm(encoder: TimmEncoder) -> dict[str, Any]:
    return {"pooling": encoder.pooling, "timm": {"name": encoder.name, "options": encoder.options}}


def _built_by_timm(timm: Any, architecture: Mapping[str, Any]) -> nn.Module | None:
    name, options = architecture["timm"]["name"], architecture["timm"]["options"]
    if _names_more(options) or not timm.is_model(name):
        return None
    model = timm.create_model(name, pretrained=False, **{**options, "num_classes": 0})
    return TimmEncoder(model, architecture["pooling"], name, options)


def standing_in(module: nn.Module, pooling: str | None) -> nn.Module:
    """Return a module that stands in for a hub's encoder, its tokens pooled as that one's were."""
    if is_transformers(module):
        return TransformersEncoder(module, pooling)
    if isinstance(module, TransformersEncoder):
        pooled = TransformersEncoder(module.model, pooling)
        pooled.source = module.source
        return pooled
    if isinstance(module, TimmEncoder):
        return TimmEncoder(module.model, pooling, module.name, module.options)
    return module


def remade(encoder: nn.Module) -> nn.Module:
    """Return the same encoder with fresh random weights, or raise ConfigError for another module."""
    if isinstance(encoder, TransformersEncoder):
        model: Any = encoder.model
        return TransformersEncoder(type(model)(model.config), encoder.pooling).eval()
    if isinstance(encoder, TimmEncoder):
        fresh = _built_by_timm(required("timm", "timm"), _of_timm(encoder))
        if fresh is not None:
            return fresh.eval()
    raise ConfigError("a module of your own cannot be built again: build the baseline yourself")


def _is_elsewhere(key: object) -> bool:
    return _ELSEWHERE.fullmatch(str(key)) is not None


def _names_more(value: Any) -> bool:
    """Whether a part of a configuration, at any depth, may read or run something else."""
    if isinstance(value, Mapping):
        of_timm = "timm" in str(value.get("model_type", ""))
        return of_timm or any(_is_elsewhere(key) or _names_more(part) for key, part in value.items())
    return isinstance(value, list) and any(map(_names_more, value))


def _shapes(encoder: nn.Module) -> dict[str, Any]:
    return {key: value.shape for key, value in encoder.state_dict().items()}
