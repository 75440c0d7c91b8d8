"""Settings of a training run: --set key=value and a config file, checked against what the method takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probjepa.errors import ConfigError, unknown_name

# what a run's own config.yaml records beside its settings
_RECORDED = {
    "data_images", "data_sha256", "val_images", "val_sha256", "hardware", "versions", "processes",
    "on_error", "convert", "data", "val",
}  # fmt: skip
# arguments of lightning.Trainer that a run may set
_TRAINER = {"accumulate_grad_batches", "devices", "gradient_clip_val", "strategy"}
_LARGEST_PATCH, _LEAST_GRID, _MOST_GRID = 16, 7, 32
# arguments of fit that have an option of their own, or no place on a command line
_NOT_SETTABLE = {
    "method", "data", "val", "out", "resume", "overwrite", "progress", "convert", "on_error",
    "trainer_options",
}  # fmt: skip


@dataclass
class RunSettings:
    """Where each setting goes: to the method, to its backbone, or to ``fit``."""

    method: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)


def parse_value(text: str) -> Any:
    """Read a value as YAML does ("0.1", "true", "[0.5, 0.5]", "null", "inf"); other text stays text.

    >>> parse_value("1e-3"), parse_value("inf"), parse_value("polar")
    (0.001, inf, 'polar')
    """
    import yaml

    try:
        return float(text) if text.strip().lower() in ("inf", "nan") or "e" in text else yaml.safe_load(text)
    except ValueError:  # "e" in a word, not in a number
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value '{text}': write key=value, the value as in YAML") from None


def parse_assignments(items: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` items into a mapping; the later of two equal keys wins."""
    settings = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set takes key=value, got '{item}'")
        settings[key.strip()] = parse_value(value)
    return settings


def read_config(path: Path, method: str) -> dict[str, Any]:
    """Read settings from a YAML file: a flat mapping, or a run's config.yaml.

    Raises
    ------
    ConfigError
        if it cannot be read, is no mapping, or is another method's
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds no settings: write one 'key: value' a line")
    content = {**content, **(content.get("options") or {})}
    flat = {k: v for k, v in content.items() if k not in _RECORDED | {"method", "options"}}
    own = content.get("method", {})
    if isinstance(own, str):
        own = {"name": own}
    if own.get("name", method) != method:
        raise ConfigError(f"{path} is a config of '{own['name']}', not of '{method}'")
    own = {k: v for k, v in own.items() if k != "name"}
    options = own.pop("backbone_options", {}) or {}
    return {**flat, **own, **options}


def fill_in(method: str, settings: Mapping[str, Any], size: int, channels: int) -> dict[str, Any]:
    """Return the settings with what follows from the data: size, channels, backbone and its patches.

    The size is that of the data within 16 to 224 pixels, for a vision transformer rounded down to a multiple
    of 4, or of 8 above 32 pixels. Its patches are the largest of at most 16 pixels that divide the size and
    leave a grid of 7 × 7 or more. A method whose default is a ResNet-18 takes a ConvNet for grey images of at
    most 28 pixels.

    Raises
    ------
    ConfigError
        where no patch divides the size
    """
    from probjepa.methods import METHODS

    filled = {"channels": channels, **settings}
    side = settings.get("image_size") or min(max(size, 16), 224)
    if not settings.get("backbone"):
        own = inspect.signature(METHODS[method]).parameters["backbone"].default
        small_grey = filled["channels"] == 1 and side <= 28
        filled["backbone"] = "convnet" if own == "resnet18" and small_grey else own
    if filled["backbone"] == "vit" and "patch_size" not in settings:
        if not settings.get("image_size"):
            side -= side % (8 if side > 32 else 4)
        patches = [patch for patch in range(1, _LARGEST_PATCH + 1) if side % patch == 0]
        patches = [patch for patch in patches if _LEAST_GRID <= side // patch <= _MOST_GRID]
        if not patches:
            raise ConfigError(
                f"no patch divides images of {side} pixels well: set image_size to a multiple of 8, or "
                "patch_size"
            )
        filled["patch_size"] = patches[-1]
    return {**filled, "image_size": side}


def sort_settings(method: str, settings: Mapping[str, Any]) -> RunSettings:
    """Say for each setting, among them the backbone, where it goes.

    Raises
    ------
    ConfigError
        for a key that neither the method, its backbone nor the training takes, with the nearest name
    """
    from probjepa.backbones import BACKBONES
    from probjepa.methods import METHODS
    from probjepa.training.runs import fit

    backbone = settings["backbone"]
    of_method = dict(inspect.signature(METHODS[method]).parameters)
    of_backbone = dict(inspect.signature(BACKBONES[backbone]).parameters)
    of_fit: dict[str, inspect.Parameter | None] = dict(inspect.signature(fit).parameters)
    del of_method["backbone_options"]
    del of_backbone["channels"]
    for name in _NOT_SETTABLE:
        del of_fit[name]
    of_fit |= dict.fromkeys(_TRAINER)
    sorted_settings = RunSettings()
    for key, value in settings.items():
        for parameters, place in (
            (of_method, sorted_settings.method),
            (of_backbone, sorted_settings.backbone),
            (of_fit, sorted_settings.fit),
        ):
            if key in parameters:
                place[key] = _checked(key, value, parameters[key])
                break
        else:
            raise unknown_name("setting", key, of_method | of_backbone | of_fit)
    return sorted_settings


def _checked(key: str, value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return the value if it is of the kind of the parameter's default (where that says a kind)."""
    default = parameter.default if parameter else None
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
    kind = type(default)
    if kind not in kinds or type(value) is kind or (kind is float and type(value) is int):
        return value
    if kind is str and isinstance(value, bool):  # channels_last: "auto", true or false
        return value
    raise ConfigError(f"the setting {key} takes {kinds[kind]}, got '{value}'")
