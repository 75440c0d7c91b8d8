"""Files: written under a temporary name and renamed, and read without running code.

Saved models are a folder of model.safetensors and config.json; checkpoints hold tensors and plain values.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from probjepa import __version__
from probjepa.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that may be opened: a pipe or a device could hang, or never end.

    Raises
    ------
    OSError
        if there is none, or it is no regular file
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return Path(path)


# --- writing --------------------------------------------------------------------------------------------


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    reason = error.strerror or first_line(error)
    return ArtifactError(f"cannot write {path}: {reason}; free some space or choose another place")


def _mark() -> str:
    """Say whose a temporary name is: this machine's and this process's."""
    return f"{socket.gethostname()}-{os.getpid()}-"


def _is_left_over(name: str, prefix: str) -> bool:
    """Whether a temporary name is of a process of this machine that is no more, or says of none."""
    host, _, rest = name.removeprefix(prefix).rpartition("-")[0].rpartition("-")
    if not rest.isdigit():
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _sweep(folder: Path, prefix: str, suffix: str) -> None:
    """Remove what processes that were killed left under temporary names."""
    with suppress(OSError):
        for item in os.scandir(folder):
            if (
                item.name.startswith(prefix)
                and item.name.endswith(suffix)
                and _is_left_over(item.name, prefix)
            ):
                if item.is_dir(follow_symlinks=False):
                    shutil.rmtree(item.path, ignore_errors=True)
                else:
                    os.unlink(item.path)


@contextmanager
def staged_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` when the block ends well.

    The temporary name says whose it is; those of processes that are no more are removed. With ``sync`` the
    content is on the disk before it takes its name. Raises ArtifactError, one line, when the disk is full or
    the folder cannot be written.
    """
    prefix = f".{path.name}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, prefix, "tmp")
        handle, name = tempfile.mkstemp(prefix=prefix + _mark(), suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    stage = Path(name)
    try:
        yield stage
        stage.chmod(0o644)
        if sync:
            with stage.open("rb+") as file:
                os.fsync(file.fileno())
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
    prefix = ".stage-"
    try:
        path.mkdir(parents=True, exist_ok=True)
        _sweep(path, prefix, "")
        stage = Path(tempfile.mkdtemp(prefix=prefix + _mark(), dir=path))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield stage
        if (stage / CONFIG).exists():
            (path / CONFIG).unlink(missing_ok=True)
        for item in sorted(stage.iterdir(), key=lambda item: item.name == CONFIG):
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
    """Write ``content`` by :func:`staged_file`, on the disk before it is renamed.

    Raises
    ------
    ArtifactError
        if the disk is full or the place cannot be written; what was at ``path`` is as it was
    """
    path = Path(path)
    try:
        with staged_file(path, sync=True) as stage, open(stage, "wb") as file:
            file.write(content)
    except ArtifactError as failure:
        error = failure.__cause__
        assert isinstance(error, OSError)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk is full ({len(content) / 1e6:.1f} MB needed)" if full else error.strerror or error
        raise ArtifactError(
            f"cannot write {path}: {reason}; "
            f"{'free some space' if full else 'check the path and its permissions'} and resume"
        ) from error


def refuse_existing(path: Path, overwrite: bool, instead: str = "choose another --out") -> None:
    """Raise ArtifactError where an output is already there and ``overwrite`` is not set."""
    if not overwrite and path.exists() and (path.is_file() or any(path.iterdir())):
        raise ArtifactError(f"{path} exists already: {instead}, or pass --overwrite")


# --- checkpoints ----------------------------------------------------------------------------------------


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
        content: dict[str, Any] = torch.load(regular(path), map_location=map_location, weights_only=True)
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
            f"{where} was written by probjepa {version or '(unknown)'} in format {found}, and this is "
            f"{__version__} with format {FORMAT_VERSION}: install that version, or train again"
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
        check_format(config.get("format_version"), config.get("probjepa_version"), folder)
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise damaged(folder, error) from error
    found: dict[str, Any] = config
    return found


def read_weights(folder: Path, load: Any) -> None:
    """Hand the tensors of model.safetensors to ``load`` (a ``load_state_dict``).

    Raises
    ------
    ArtifactError
        if the file is damaged, or its tensors are not those that ``load`` wants
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        load(load_file(regular(folder / WEIGHTS)))
    except (SafetensorError, RuntimeError, OSError) as error:
        # load_state_dict says in its second line what is missing, maybe of hundreds of names
        reason = shorten(" ".join(str(error).splitlines()[:2]), 300, placeholder=" …")
        raise ArtifactError(f"{folder / WEIGHTS} does not fit its config: {reason}") from error


def damaged(folder: Path, error: Exception) -> ArtifactError:
    """Return the error of a config.json that describes no model."""
    reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
    return ArtifactError(f"{folder / CONFIG} is damaged ({reason}): save the model again")


def model_folder(source: str | Path, hub: Mapping[str, Any]) -> Path:
    """Return the folder of a run's model, a saved model, or a hub repository (downloaded as ``hub`` says).

    Raises
    ------
    ArtifactError
        if there is none
    """
    path = Path(source)
    if (path / "model" / CONFIG).is_file():
        return path / "model"  # a run folder
    if path.exists():
        if not path.is_dir() or not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
            raise ArtifactError(
                f"{source} holds no model: expected a run folder, or a folder with {CONFIG} and {WEIGHTS} "
                "(training that was cut short leaves none: finish it with --resume)"
            )
        return path
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ArtifactError(
            f"no such model: {source} (give a run folder, a model folder or a hub repository)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"no model at {source}, on this disk or on the hub: {first_line(error)}"
        ) from error
