"""Settings of a training run: --set key=value and a config file, checked against what the method takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from probjepa.cli.options import Training
from probjepa.errors import ConfigError, short
from probjepa.typed import check_settings, types_of
from probjepa.yaml_files import parse_yaml, read_mapping

# what a run's own config.yaml records beside its settings
_RECORDED = {
    "data_images", "data_sha256", "data_pixels", "data_files", "data_skipped", "val_images", "val_sha256",
    "val_pixels", "val_files", "val_skipped", "hardware", "versions", "processes", "global_batch_size",
    "on_error", "convert", "data", "val", "data_rows", "row_names", "encoder_sha256", "fitted_with",
    "best_epoch", "auto", "data_shards", "stream_lanes", "text",
}  # fmt: skip
# arguments of lightning.Trainer that a run may set
_TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": int,
    "devices": int | list[int] | Literal["auto"],
    "strategy": str,
}
_LARGEST_PATCH, _LEAST_GRID, _MOST_GRID = 16, 7, 32
# arguments that have an option of their own, are handed on, or have no place on a command line
_NOT_SETTABLE = {
    "method": {"backbone_options", "seed"},
    "backbone": {"channels", "image_size"},
    "fit": {"method", "data", "val", "out", "resume", "overwrite", "progress", "convert", "on_error"},
}


def given_settings(method: str, options: Training, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a config file says, and before it what --set and the options in ``names`` say.

    ``names`` are those of options among the settings; a file and --set may use either. Without --config, a
    resumed run's own is read.

    Raises
    ------
    ConfigError
        for what is not in the form of settings, or given twice
    """
    config = options.config
    if config is None and options.resume and (options.out / "config.yaml").is_file():
        config = options.out / "config.yaml"
    given = _renamed(read_config(config, method) if config else {}, names)
    assigned = _renamed(parse_assignments(options.settings or []), names)
    values = {name: getattr(options, option) for option, name in names.items()}
    of_options = {name: value for name, value in values.items() if value is not None}
    recipe = assigned.get("view_recipe")
    if isinstance(recipe, str) and ":" in recipe:  # code, of which only the command line may ask
        from probjepa.data.views import RECIPES

        RECIPES.register(recipe, recipe)
    for name in assigned.keys() & of_options.keys():
        raise ConfigError(f"{name} is given by an option and by --set: give it once")
    return given | assigned | of_options


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for option, name in names.items():
        if option != name and option in given and name in given:
            raise ConfigError(f"{option} and {name} are one setting: give it once")
    return {names.get(key, key): value for key, value in given.items()}


def parse_assignments(items: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` items, the values as in YAML, into a mapping.

    Raises
    ------
    ConfigError
        for an item of another form, or a key that is given twice
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set takes key=value, got '{short(item)}'")
        if key.strip() in settings:
            raise ConfigError(f"--set {short(key.strip())}= is given twice: give it once")
        try:
            settings[key.strip()] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(
                f"cannot read the value '{short(value)}' ({error}): write key=value, the value as in YAML"
            ) from None
    return settings


def read_config(path: Path, method: str) -> dict[str, Any]:
    """Read settings from a YAML file: a flat mapping, or a run's config.yaml.

    Raises
    ------
    ConfigError
        if it cannot be read, is no mapping of names, or is another method's
    """
    content = read_mapping(path)
    settings = {key: value for key, value in content.items() if key not in _RECORDED}
    if isinstance(content.get("method"), str):
        settings["method"] = {"name": content["method"]}
    for group in ("options", "method", "backbone_options"):
        part = settings.pop(group, None) or {}
        if not isinstance(part, Mapping):
            raise ConfigError(f"{group} in {path} takes a mapping, got '{short(part)}'")
        if group == "method" and part.get("name", method) != method:
            raise ConfigError(f"{path} is a config of '{short(part['name'])}', not of '{method}'")
        settings |= {key: value for key, value in part.items() if (group, key) != ("method", "name")}
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"{path} has the key {short(key)}: a setting is a name")
    return settings


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
    from probjepa.data.records import USUAL_SIZE

    filled = {"channels": channels, **settings}
    side = settings.get("image_size") or min(max(size, 16), USUAL_SIZE)
    if not settings.get("backbone"):
        in_general, for_small_greys = _default_backbones(method)
        small_grey = filled["channels"] == 1 and side <= 28
        filled["backbone"] = for_small_greys if small_grey else in_general
    if filled["backbone"] == "vit" and not {"patch_size", "weights"} & settings.keys():
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


def image_types(method: str, backbone: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the types of the settings of a "method", its "backbone", where that is known, and of "fit"."""
    from probjepa.backbones import BACKBONES, is_trained
    from probjepa.methods import METHODS
    from probjepa.training import fit

    types = {"method": types_of(METHODS[method]), "backbone": {}, "fit": types_of(fit) | _TRAINER}
    if backbone is not None:
        types["backbone"] = {"pooling": str} if is_trained(backbone) else types_of(BACKBONES[backbone])
    return {
        place: {name: kind for name, kind in of.items() if name not in _NOT_SETTABLE[place]}
        for place, of in types.items()
    }


def check_early(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, checked before data are opened: the data may choose the backbone, and no more.

    Raises
    ------
    ConfigError
        for one of another type, or a key that is neither the method's, nor of ``fit``, nor of a backbone that
        the run may have
    """
    types = image_types(method)
    known = types["fit"] | types["method"]
    backbone = settings.get("backbone")
    possible = (backbone,) if backbone and isinstance(backbone, str) else _default_backbones(method)
    of_backbones = {key: kind for of in possible for key, kind in image_types(method, of)["backbone"].items()}
    # a backbone's own are checked by sort_settings, once it is chosen: here they are names to suggest
    now = {key: value for key, value in settings.items() if key in known or key not in of_backbones}
    return dict(settings) | check_settings(now, of_backbones | known)


def _default_backbones(method: str) -> tuple[str, str]:
    """Return what a method takes where no backbone is given: in general, and for small grey images."""
    from probjepa.methods import METHODS

    own = inspect.signature(METHODS[method]).parameters["backbone"].default
    return own, "convnet" if own == "resnet18" else own


def sort_settings(method: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings, among them the backbone, by where they go: "method", "backbone" or "fit".

    Raises
    ------
    ConfigError
        for a key that none of them takes, with the nearest name, or a value of another type
    """
    types = image_types(method, settings["backbone"])
    settings = check_settings(settings, types["fit"] | types["backbone"] | types["method"])
    places: dict[str, dict[str, Any]] = {place: {} for place in types}
    for key, value in settings.items():
        place, *other = [place for place, of in types.items() if key in of]
        if other:
            raise ConfigError(f"{key} is a setting of the {place} and of {other[0]}: rename one")
        places[place][key] = value
    return places
