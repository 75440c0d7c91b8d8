"""From a name to a model of any kind: the one room that knows every table of models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from probjepa.backbones import BACKBONES, names_hub
from probjepa.backbones.frozen import learns
from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError, short, unknown_name, warn
from probjepa.methods import METHODS, MODELS, Method
from probjepa.methods.opened import OpenedEncoder
from probjepa.model_files import damaged, model_folder, read_config, takes_no
from probjepa.tabular import TABLE_METHODS
from probjepa.typed import checked
from probjepa.yaml_files import recorded

_HUB = {"revision", "token", "cache_dir", "local_files_only"}  # what is passed on to huggingface_hub


def load(
    source: str | Path,
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    **hub: Any,
) -> Any:
    """Load any saved model from a run folder, a model folder or a hub repository, in evaluation mode.

    A model of tables is returned as the fitted estimator that it was.

    Parameters
    ----------
    source
        ``RUN``, ``RUN/model`` or ``owner/name`` on the hub; or ``BACKBONE:FILE``, see ``open_encoder``
    backbone
        the module to fill, for a model that was built on a backbone of the user's own, or in the place of an
        encoder of a hub
    head
        the module to fill, for an ``IJEPA`` that was built with a head of the user's own
    networks
        name → module to fill, for a model that was built with networks of the user's own (``VarJEPA``)
    hub
        ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as huggingface_hub takes them; a module
        fills the argument of its name, of a method of the user's own

    Raises
    ------
    ArtifactError
        if there is no model, it is damaged, or it was written in another format
    ConfigError
        for the name of an encoder of a hub (``hf:NAME``), or an argument that has no place
    """
    if (named := _checkpoint(source)) is not None:
        for name, value in {"backbone": backbone, "head": head, "networks": networks, **hub}.items():
            if value is not None:
                raise ConfigError(f"{name} goes with a saved model, and {source} is a checkpoint")
        return OpenedEncoder(named[0], weights=named[1])
    own = {name: value for name, value in hub.items() if isinstance(value, nn.Module)}
    modules = {"backbone": backbone, "head": head, "networks": networks, **own}
    of_hub = {name: value for name, value in hub.items() if name not in own}
    if unknown := sorted(set(of_hub) - _HUB):
        raise unknown_name("option of load", unknown[0], _HUB)
    if names_hub(source):
        raise ConfigError(f"{short(source, 200)} is an encoder, and no saved model: open it by open_encoder")
    folder = model_folder(source, of_hub)
    config = read_config(folder)
    given = {name: module for name, module in modules.items() if module is not None}
    kind = kind_of(config, folder)
    if given and "estimator" in config:
        raise takes_no(folder, kind, min(given))
    with forked():  # the weights that are replaced are drawn
        return kind.from_folder(folder, config, **given)


def open_encoder(
    name_or_module: str | Path | nn.Module,
    *,
    image_size: int | None = None,
    pooling: str | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> Method:
    """Open any encoder as what a trained method is to every command: ``embed``, ``features``, ``preprocess``.

    Parameters
    ----------
    name_or_module
        ``"hf:NAME"``, ``"timm:NAME"`` (``"timm:local-dir:PATH"`` too), a run or model folder, ``owner/name``;
        a torch module, float (N, 3, H, W) → (N, D), which is given pixels in [0, 1] and put in evaluation
        mode (a warning says so of batch normalisation or dropout in training); or a registered backbone, for
        ``weights``: ``"resnet50:FILE"`` says both
    image_size
        side of the square images that it is given; None: its own (a module's must be given)
    pooling
        of a token model: "cls" or "mean"; None: the model's own
    weights
        a checkpoint of a registered backbone ("resnet50"): a file of torch's or of safetensors, or what one
        holds
    options
        ``mean``, ``std`` and ``backbone_options`` beside ``weights``, see ``OpenedEncoder``

    Raises
    ------
    ConfigError
        for an encoder that does not say how its images are prepared, that fails on them, or whose size or
        pooling is its own
    MissingExtraError, ArtifactError
        where transformers or timm is not installed, or there is no such model
    """
    if weights is None and not isinstance(name_or_module, nn.Module):
        name_or_module, weights = _checkpoint(name_or_module) or (name_or_module, None)
    module = isinstance(name_or_module, nn.Module) and not isinstance(name_or_module, Method)
    if module or weights is not None or names_hub(name_or_module):
        encoder: Any = name_or_module
        trained = module and any(map(learns, encoder.modules()))
        opened = OpenedEncoder(encoder, image_size=image_size, pooling=pooling, weights=weights, **options)
        if trained:
            warn(
                f"this {type(encoder).__name__} is in evaluation mode from here on: call its train() where "
                "its training goes on"
            )
        return opened
    if image_size is not None or pooling is not None:
        raise ConfigError(
            "image_size (--size) and pooling go with 'hf:', 'timm:' and modules: this one has its own"
        )
    if options:
        option = next(iter(options))
        raise ConfigError(f"{option} goes with a registered backbone's weights: a saved model has its own")
    model = name_or_module if isinstance(name_or_module, nn.Module) else load(name_or_module)
    if not isinstance(model, Method):
        raise ConfigError(
            f"{name_or_module} holds a {type(model).__name__}, which is no model of images: load opens it; "
            "embed, score and evaluate take one of tables, and curate with --rank-only"
        )
    return model


def is_of_tables(source: str | Path) -> bool:
    """Whether a model, on this disk or on the hub, is of tables; False where it cannot be read."""
    try:
        return (folder := _folder_of(source)) is not None and "estimator" in read_config(folder)
    except ArtifactError:
        return False


def check_there(source: str | Path) -> None:
    """Raise ArtifactError for a model that is neither on this disk nor on the hub, or says not what it is."""
    if (folder := _folder_of(source)) is not None:
        read_config(folder)


def _folder_of(source: str | Path) -> Path | None:
    """The folder of a saved model; None for an encoder of another library."""
    return None if names_hub(source) or _names_backbone(source) else model_folder(source, {})


def target_of(source: str | Path) -> str | None:
    """Return the column that the run of a model of tables left out as its target; None: no run says any."""
    return _recorded(source, "target")


def fitted_to(source: str | Path) -> str | None:
    """Return the hash, as a run has it, of the table that a model was fitted to; None: no run says it."""
    return _recorded(source, "data_sha256")


def _recorded(source: str | Path, name: str) -> str | None:
    """A text among the settings of the run that a model is of."""
    settings = _run_settings(source)
    if settings is None:
        return None
    found: str | None = checked(f"{name}, in {settings},", recorded(settings, name), str | None)
    return found


def row_names_of(source: str | Path) -> tuple[str, ...]:
    """Return the column that named the rows of the table that a model was fitted to; (): no run says any."""
    from probjepa.tabular.files import recorded_row_names

    settings = _run_settings(source)
    return () if settings is None else recorded_row_names(settings)


def text_of(source: str | Path) -> dict[str, Any]:
    """Return how the text that the run of a model of tables was fitted to is written; {}: no run says it."""
    from probjepa.tabular.text_files import recorded_text

    settings = _run_settings(source)
    return {} if settings is None else recorded_text(settings)


def _run_settings(source: str | Path) -> Path | None:
    """Where the run that a model is of would say its settings; None: it stands in no run's folder."""
    folder = model_folder(source, {})
    return folder.parent / "config.yaml" if folder.name == "model" else None


def _names_backbone(source: str | Path) -> bool:
    """Whether a source that is no file or folder begins with a registered backbone's name."""
    return str(source).partition(":")[0] in BACKBONES and not os.path.exists(source)


def _checkpoint(source: str | Path) -> tuple[str, str] | None:
    """The backbone and the file of ``BACKBONE:FILE``; ConfigError for a backbone alone, or for no name."""
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"{short(repr(source))} is no name of a model: give a name, a folder or a torch module (weights "
            "go with a backbone's name, open_encoder('resnet50', weights=…))"
        )
    if not _names_backbone(source):
        return None
    name, _, file = str(source).partition(":")
    if not file:
        raise ConfigError(f"the backbone '{name}' alone has no weights: give '{name}:FILE'")
    return name, file


def kind_of(config: Mapping[str, Any], folder: Path) -> Any:
    """Return the class of the model that a config.json describes; ArtifactError for one that is not known."""
    if "estimator" in config:
        name = str(config["estimator"])
        for table in TABLE_METHODS:
            if TABLE_METHODS.path(table).replace(":", ".").rpartition(".")[2] == name:
                return TABLE_METHODS[table]
        raise ArtifactError(
            f"{folder} holds a {short(name)}, which this version does not know: install a newer one"
        )
    method = config.get("method")
    if not isinstance(method, str):
        raise damaged(folder, KeyError("method"))
    if method not in MODELS and method not in METHODS:
        unknown = unknown_name("method", short(method), {*MODELS, *METHODS})
        raise ArtifactError(
            f"{folder} holds an {unknown}: import the module that registers it, or install its package"
        )
    return (MODELS if method in MODELS else METHODS)[method]
