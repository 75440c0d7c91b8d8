"""Encoders of transformers and timm without their weights: built again, or from what a saved model keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from probjepa.backbones.hub import TimmEncoder, TransformersEncoder
from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError
from probjepa.files import first_line
from probjepa.model_files import quiet
from probjepa.registry import required


def architecture_of(encoder: nn.Module) -> dict[str, Any] | None:
    """Return what ``built`` makes an encoder of transformers from, as JSON has it; None for another."""
    if not isinstance(encoder, TransformersEncoder):
        return None
    model: Any = encoder.model
    config = json.loads(model.config.to_json_string(use_diff=False))
    del config["transformers_version"]
    return {"pooling": encoder.pooling, "transformers": {k: v for k, v in config.items() if k != "auto_map"}}


def built(architecture: Mapping[str, Any], name: str) -> nn.Module:
    """Build an encoder with random weights, in evaluation mode, of what ``architecture_of`` returned.

    torch's generator stays as it is.

    Raises
    ------
    MissingExtraError
        without transformers
    ArtifactError
        where transformers does not know the architecture; the message calls it ``name``
    """
    transformers = required("transformers", "hf")
    try:
        config = dict(architecture["transformers"])
        with forked(), quiet("huggingface_hub"):
            of = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
            model = transformers.AutoModel.from_config(of, trust_remote_code=False)
            return TransformersEncoder(model, architecture["pooling"]).eval()
    except Exception as error:  # its errors differ between versions
        raise ArtifactError(
            f"transformers {transformers.__version__} cannot build '{name}' ({first_line(error)}): install "
            "the version that it was saved with"
        ) from error


def remade(encoder: nn.Module) -> nn.Module:
    """Return the same encoder with fresh random weights, or raise ConfigError for another module."""
    if isinstance(encoder, TransformersEncoder):
        model: Any = encoder.model
        return TransformersEncoder(type(model)(model.config), encoder.pooling).eval()
    if isinstance(encoder, TimmEncoder):
        timm = required("timm", "timm")
        fresh = timm.create_model(encoder.name, pretrained=False, num_classes=0)
        return TimmEncoder(fresh, encoder.pooling, encoder.name).eval()
    raise ConfigError("a module of your own cannot be built again: build the baseline yourself")
