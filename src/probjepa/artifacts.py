"""Saved models, checkpoints and texts, written under a temporary name and renamed; no code is unpickled."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import probjepa
from probjepa.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from probjepa.methods.pretrained import Pretrained

FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    reason = error.strerror or first_line(error)
    return ArtifactError(f"cannot write {path}: {reason}; free some space or choose another place")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` when the block ends well.

    Raises ArtifactError, one line, when the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    stage = Path(name)
    try:
        yield stage
        stage.chmod(0o644)
        stage.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        stage.unlink(missing_ok=True)


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``path``, each by a rename, when the block ends well.

    An old config.json goes first and the new one comes last: a folder without it is not taken for a model,
    so that a move cut short never leaves one model's weights under another's settings.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=path))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield stage
        if (stage / _CONFIG).exists():
            (path / _CONFIG).unlink(missing_ok=True)
        for item in sorted(stage.iterdir(), key=lambda item: item.name == _CONFIG):
            item.replace(path / item.name)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; ArtifactError if it cannot be."""
    with staged_file(path) as stage:
        stage.write_text(text, encoding="utf-8")


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path``, sync it and rename it.

    Raises
    ------
    ArtifactError
        if the disk is full or the place cannot be written; what was at ``path`` is as it was
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk is full ({len(content) / 1e6:.1f} MB needed)" if full else error.strerror or error
        raise ArtifactError(
            f"cannot write {path}: {reason}; "
            f"{'free some space' if full else 'check the path and its permissions'} and resume"
        ) from error


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write tensors and plain values by :func:`write_atomic`, which see."""
    import torch

    # through memory: torch.save turns an OSError of its file into a RuntimeError about zip offsets
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(
    path: str | os.PathLike[str], advice: str, *, keys: Sequence[str] = (), map_location: Any = "cpu"
) -> dict[str, Any]:
    """Read what ``write_checkpoint`` wrote, with ``weights_only=True``: a pickle with code in it is refused.

    Raises
    ------
    ArtifactError
        if the file is damaged, holds more than tensors and plain values, or lacks one of ``keys``; with
        ``advice``, what to do
    """
    import torch

    try:
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        for key in keys:
            content[key]
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ArtifactError(
            f"cannot read the checkpoint {path}: it is damaged or not one that probjepa wrote; {advice}"
        ) from error
    return content


def refuse_existing(path: Path, overwrite: bool, instead: str = "choose another --out") -> None:
    """Raise ArtifactError where an output is already there and ``overwrite`` is not set."""
    if not overwrite and path.exists() and (path.is_file() or any(path.iterdir())):
        raise ArtifactError(f"{path} exists already: {instead}, or pass --overwrite")


def check_format(found: object, version: object, where: Path) -> None:
    """Raise ArtifactError if something was written in another format than this version's."""
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} was written by probjepa {version or '(unknown)'} in format {found}, and this is "
            f"{probjepa.__version__} with format {FORMAT_VERSION}: install that version, or train again"
        )


def write_model(model: Pretrained, folder: Path) -> None:
    """Write model.safetensors and config.json into ``folder``."""
    from safetensors.torch import save

    settings = {k: "inf" if v == math.inf else v for k, v in model.settings.items()}
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "probjepa_version": probjepa.__version__,
        "method": model.name,
        "settings": settings,
    }
    preprocess = getattr(model, "preprocess", None)
    if preprocess is not None:  # of images
        config["preprocess"] = preprocess.config()
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"the settings of this {type(model).__name__} are no JSON ({first_line(error)}): "
            "make it with plain numbers, strings and lists"
        ) from error
    # copies: safetensors refuses tensors that share memory, as the tied weights of a user's backbone do
    weights = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
    # its save_file raises an error of its own, not OSError, when the disk is full
    (folder / _WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")


def _resolve(source: str | Path, hub: dict[str, Any]) -> Path:
    path = Path(source)
    if (path / "model" / _CONFIG).is_file():
        return path / "model"  # a run folder
    if path.exists():
        if not path.is_dir() or not (path / _CONFIG).is_file() or not (path / _WEIGHTS).is_file():
            raise ArtifactError(
                f"{source} holds no model: expected a run folder, or a folder with {_CONFIG} and {_WEIGHTS} "
                "(training that was cut short leaves none: finish it with --resume)"
            )
        return path
    if not _looks_like_repository(str(source)):
        raise ArtifactError(
            f"no such model: {source} (give a run folder, a model folder or a hub repository)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=[_CONFIG, _WEIGHTS], **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"no model at {source}, on this disk or on the hub: {first_line(error)}"
        ) from error


def _load_estimator(folder: Path, name: str) -> Any:
    from probjepa.tabular import TJEPA, VarTJEPA

    for kind in (VarTJEPA, TJEPA):
        if kind.__name__ == name:
            return kind.load(folder)
    raise ArtifactError(f"{folder} holds a {name}, which this version has not: install another")


def _damaged(folder: Path, error: Exception) -> ArtifactError:
    reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
    return ArtifactError(f"{folder / _CONFIG} is damaged ({reason}): save the model again")


def _looks_like_repository(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


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
        ``RUN``, ``RUN/model`` or ``owner/name`` on the hub
    backbone
        the module to fill, for a model that was built on a backbone of the user's own
    head
        the module to fill, for an ``IJEPA`` that was built with a head of the user's own
    networks
        name → module to fill, for a model that was built with networks of the user's own (``VarJEPA``)
    hub
        ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as huggingface_hub takes them

    Raises
    ------
    ArtifactError
        if there is no model, it is damaged, or it was written in another format
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from probjepa.data import Preprocess
    from probjepa.methods import METHODS, MODELS
    from probjepa.methods.base import Method

    folder = _resolve(source, hub)
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        check_format(config.get("format_version"), config.get("probjepa_version"), folder)
        if "estimator" in config:
            return _load_estimator(folder, str(config["estimator"]))
        settings = dict(config["settings"])
        method = (MODELS if config["method"] in MODELS else METHODS)[config["method"]]
        of_images = issubclass(method, Method)
        preprocess = dict(config["preprocess"]) if of_images else {}
        modules = {"backbone": backbone, "head": head} if "head" in settings else {"backbone": backbone}
        own = [name for name in modules if of_images and settings[name] is None]
        own_networks = sorted(settings.pop("networks", []))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise _damaged(folder, error) from error
    for name in own:
        if modules[name] is None:
            raise ArtifactError(
                f"{folder} was built on a {name} of its user's own: pass it, load(…, {name}=module)"
            )
        settings[name] = modules[name]
    if own_networks != sorted(networks or {}):
        needs = ", ".join(own_networks) or "none"
        raise ArtifactError(
            f"{folder} was built with these networks of its user's own: {needs}; "
            "pass just those, load(…, networks={name: module})"
        )
    if own_networks:
        settings["networks"] = networks
    try:
        if of_images:
            settings |= {"mean": preprocess["mean"], "std": preprocess["std"]}
        model: Pretrained = method(**settings)
        if of_images:
            model.preprocess = Preprocess(**preprocess)
    except (ValueError, KeyError, TypeError) as error:
        if (own or own_networks) and isinstance(error, ConfigError):
            raise  # of the module that was passed
        raise _damaged(folder, error) from error
    try:
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        # load_state_dict says in its second line what is missing, maybe of hundreds of names
        reason = shorten(" ".join(str(error).splitlines()[:2]), 300, placeholder=" …")
        raise ArtifactError(f"{folder / _WEIGHTS} does not fit its config: {reason}") from error
    return model.eval()
