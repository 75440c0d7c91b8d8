"""Saved models and checkpoints, which are read without running code.

A saved model is a folder of model.safetensors and config.json; a checkpoint holds tensors and plain values.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from probjepa import __version__
from probjepa.errors import ArtifactError, short
from probjepa.files import CONFIG, DAMAGES, first_line, regular, staged_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CARD = "README.md"
_OURS = {"format_version", "probjepa_version"}  # one of them stands in each config.json that is written here
_REFUSALS: dict[int | None, str] = {  # by HTTP's status
    401: ": check the name, and log in (hf auth login) if it is private",
    403: ": log in (hf auth login) with an account that may read it, and accept its terms on its page",
    404: ": check the name and the revision, and log in (hf auth login) if it is private",
}


# --- checkpoints ----------------------------------------------------------------------------------------


_SEAL = b"\x08\x00"  # the length of the zip file's comment, which is a check sum: torch.load makes none


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write tensors and plain values as :func:`write_atomic` does, with a check sum.

    NumPy's numbers become Python's. Raises ArtifactError, before a file is touched, for values that
    ``read_checkpoint`` would refuse, such as objects in the state of a user's callback.
    """
    import torch

    content = _without_numpy(content)

    # through memory: torch.save turns an OSError of its file into a RuntimeError about zip offsets
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="meta", weights_only=True)
    except Exception as error:  # of its pickle; the second line names the type
        reason = short(" ".join(str(error).splitlines()[:2]), 300)
        raise ArtifactError(
            f"{path} cannot hold what is neither a tensor nor a plain value ({reason}): give plain numbers "
            "and tensors in the state of callbacks, loggers and settings"
        ) from error
    with buffer.getbuffer() as whole:  # a view: a checkpoint may take much of the memory
        plain = whole[: -len(_SEAL)]
        with staged_file(Path(path), sync=True) as stage, open(stage, "wb") as file:
            file.write(plain)
            file.write(_SEAL + b"%08x" % zlib.crc32(plain))
        plain.release()


def _without_numpy(value: Any) -> Any:
    """A value with the NumPy numbers that dicts, lists and tuples in it hold as Python's."""
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_without_numpy(key): _without_numpy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_without_numpy, value))
    return value


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
        sealed = regular(path).read_bytes()
        plain, seal = sealed[:-10], sealed[-10:]
        if seal != _SEAL + b"%08x" % zlib.crc32(plain):
            raise ValueError("another check sum")
        content: dict[str, Any] = torch.load(io.BytesIO(sealed), map_location=map_location, weights_only=True)
        for key in keys:
            content[key]
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ArtifactError(
            f"cannot read the checkpoint {path}: it is damaged or not one that probjepa wrote; {advice}"
        ) from error
    return content


def check_format(found: object, version: object, where: Path) -> None:
    """Raise ArtifactError if something was written in another format than this version's."""
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} was written by probjepa {short(version or '(unknown)')} in format {short(found)}, and "
            f"this is {__version__} with format {FORMAT_VERSION}: install that version, or train again"
        )


# --- saved models ---------------------------------------------------------------------------------------


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], what: str) -> None:
    """Write model.safetensors and config.json, signed with format and version, into ``folder``.

    Raises
    ------
    ArtifactError
        if ``config`` is no JSON; the message calls it ``what``
    """
    from safetensors.torch import save

    signed = {"format_version": FORMAT_VERSION, "probjepa_version": __version__, **config}
    try:
        text = json.dumps(signed, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{what} are no JSON ({first_line(error)}): use plain numbers, strings, lists and mappings"
        ) from error
    # copies: safetensors refuses tensors that share memory, as the tied weights of a user's backbone do
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
    # its save_file raises an error of its own, not OSError, when the disk is full
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a saved model, of this version's format.

    Raises
    ------
    ArtifactError
        if it is damaged, or in another format
    """
    try:
        config = json.loads(regular(folder / CONFIG).read_text(encoding="utf-8"))
        if not config.keys() & _OURS:
            raise ArtifactError(
                f"{folder} holds no model that probjepa wrote: another library's encoder is hf:{folder} or "
                f"timm:local-dir:{folder}"
            )
        check_format(config.get("format_version"), config.get("probjepa_version"), folder)
    except ArtifactError:
        raise
    except (OSError, *DAMAGES) as error:
        raise damaged(folder, error) from error
    found: dict[str, Any] = config
    return found


def read_weights(folder: Path, load: Any) -> None:
    """Hand the tensors of model.safetensors to ``load`` (a ``load_state_dict``).

    Raises
    ------
    ArtifactError
        if the file cannot be read, is damaged, or its tensors are not those that ``load`` wants
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(regular(folder / WEIGHTS), "rb"):
            pass  # safetensors calls a file that may not be read a missing one
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ArtifactError(
            f"{folder / WEIGHTS} cannot be read ({reason}): check it and your rights"
        ) from error
    try:
        load(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, *DAMAGES) as error:
        # load_state_dict says in its second line what is missing, maybe of hundreds of names
        reason = shorten(" ".join(str(error).splitlines()[:2]), 300, placeholder=" …")
        raise ArtifactError(f"{folder / WEIGHTS} does not fit its config: {reason}") from error


def takes_no(folder: Path, kind: type, module: str) -> ArtifactError:
    """Return the error of a module that was given for a saved model of a kind that has no place for it."""
    return ArtifactError(f"{folder} holds a {kind.__name__}, which takes no {module}: leave it out")


def damaged(folder: Path, error: Exception) -> ArtifactError:
    """Return the error of a config.json that describes no model."""
    reason = short(f"no {error}" if isinstance(error, KeyError) else first_line(error), 200)
    return ArtifactError(f"{folder / CONFIG} is damaged ({reason}): save the model again")


@contextmanager
def quiet(*names: str, least: int = logging.ERROR) -> Iterator[None]:
    """Keep loggers from saying what is less than ``least``: the hub's client would log each of its tries."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(least)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def model_folder(source: str | Path, hub: Mapping[str, Any]) -> Path:
    """Return the folder of a run's model, a saved model, or a hub repository (downloaded as ``hub`` says).

    Raises
    ------
    ArtifactError
        if there is none
    """
    path = Path(source)
    if os.path.isfile(path / "model" / CONFIG):  # unlike Path's, false for a name that is too long
        return path / "model"  # a run folder
    if os.path.exists(path):
        if not path.is_dir() or not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
            raise ArtifactError(
                f"{source} holds no model: expected a run folder, or a folder with {CONFIG} and {WEIGHTS} "
                "(training that was cut short leaves none: finish it with --resume)"
            )
        return path
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ArtifactError(
            f"no such model: {short(source, 200)} (give a run folder, a model folder or a hub repository; of "
            "another library's encoder hf:NAME or timm:NAME)"
        )
    folder = _downloaded(name, hub)
    try:
        ours = bool(json.loads((folder / CONFIG).read_text(encoding="utf-8")).keys() & _OURS)
    except (OSError, *DAMAGES):
        ours = False
    if not ours or not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{name}, on the hub, holds no model that probjepa wrote ({CONFIG} and {WEIGHTS}): another "
            f"library's encoder is hf:{name} or timm:hf-hub:{name}"
        )
    return folder


def _downloaded(name: str, hub: Mapping[str, Any]) -> Path:
    """The folder in the hub's cache of a repository's three files, or ArtifactError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": [CONFIG, WEIGHTS, CARD], **hub}
    try:
        with quiet("huggingface_hub"):
            try:
                return Path(snapshot_download(name, **wanted))
            except HFValidationError:
                raise
            except ValueError as error:  # an answer of something else, as of a network's login page
                try:
                    return Path(snapshot_download(name, **{**wanted, "local_files_only": True}))
                except LocalEntryNotFoundError:
                    raise OSError(f"the answer is none of the hub's ({first_line(error)})") from error
    except Exception as error:  # the HTTP library under the hub's client differs between its versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise ArtifactError(
            f"no model at {short(name, 200)}, on this disk or on the hub: "
            f"{first_line(error).rstrip('.')}{_REFUSALS.get(status, '')}"
        ) from error
