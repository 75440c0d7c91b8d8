"""Checkpoints: when one is written, what it is signed with, and the file that a plain loop resumes from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from probjepa import __version__, files, model_files
from probjepa.errors import ArtifactError, short, warn

CHECKPOINT_FORMAT = 1
_SIGNATURE = "probjepa"  # the key of the signature in a checkpoint
_SETS = ("data", "val")
_CONTENTS = {f"{name}_{of}" for name in _SETS for of in ("pixels", "files")}  # in memory, and streamed
_LARGEST_SHARE = 0.05  # of the time, that writing may take


class TimedWriter:
    """Say when the next checkpoint is due, and time how long it takes to write.

    A time and not a number of steps: resuming is exact anywhere, so only the cost counts.

    Parameters
    ----------
    every_seconds
        between two checkpoints; longer where writing is slow, so that it takes at most a twentieth of the
        time
    """

    def __init__(self, every_seconds: float = 0.0) -> None:
        self.every_seconds = every_seconds
        self._last, self._cost = -math.inf, 0.0

    def start(self) -> None:
        """Count from now; without it the first checkpoint is due at once."""
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._last >= max(self.every_seconds, self._cost / _LARGEST_SHARE)

    def write(self, save: Callable[[], object]) -> None:
        """Write by ``save``."""
        started = time.monotonic()
        save()
        self._last = time.monotonic()
        self._cost = self._last - started


def sign(checkpoint: dict[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Say in a checkpoint its format, the library's version, and what was trained on what."""
    checkpoint[_SIGNATURE] = {
        "format": CHECKPOINT_FORMAT,
        "version": __version__,
        "fingerprint": dict(fingerprint),
    }


def check_signature(
    checkpoint: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    from_scratch: str = "start from scratch with overwrite",
    of: str = "",
) -> None:
    """Raise ArtifactError unless a checkpoint's signature fits this library and this run.

    The first thing in which the fingerprints differ is named, and ``from_scratch`` is how to begin again.
    What is called otherwise than ``of`` at its beginning is not compared.
    """
    signature = checkpoint.get(_SIGNATURE)
    if not isinstance(signature, Mapping):
        raise ArtifactError("the checkpoint is not probjepa's: resume from RUN/checkpoints/last.ckpt")
    found = (signature.get("format"), signature.get("version"))
    if found != (CHECKPOINT_FORMAT, __version__):
        raise ArtifactError(
            f"the checkpoint has format {found[0]} of probjepa {found[1]}, this is {CHECKPOINT_FORMAT} of "
            f"{__version__}: install that version to resume, or start from scratch"
        )
    saved = signature.get("fingerprint")
    saved = dict(saved) if isinstance(saved, Mapping) else {}
    for name in _SETS:
        if unchecked := _unchecked(saved, fingerprint, name):
            warn(unchecked)
    for key in (*fingerprint, *(key for key in saved if key not in fingerprint)):
        was, this = saved.get(key), fingerprint.get(key)
        if key.startswith(of) and was != this and not (key in _CONTENTS and None in (was, this)):
            raise ArtifactError(
                f"the checkpoint was made with {short(key)}={short(was)}, this run has {this}: resume "
                f"with the same data and settings, or {from_scratch}"
            )


def _unchecked(saved: Mapping[str, Any], now: Mapping[str, Any], name: str) -> str:
    """Say of which images a resume does not see whether they are the same; "" if it sees it of all."""
    count, files = now.get(f"{name}_images"), now.get(f"{name}_files")
    if count is None:  # none, or of a user's own Trainer, which says nothing of its data
        return ""
    what = "images" if name == "data" else "held-out images"
    if (files is None) != (saved.get(f"{name}_files") is None):
        return (
            f"resuming: of the {count:,} {what} 16 are compared with those before, since they were "
            f"{'in memory and are streamed' if files else 'streamed and are in memory'} now"
        )
    known = int(files.split()[2]) if files else count
    return "" if known == count else f"resuming: of the {count:,} {what} the first {known:,} are compared"


class FitCheckpoint:
    """A file that holds a fit as it was after an epoch: tensors and plain values, no pickled code.

    Parameters
    ----------
    path
        the file
    resume
        whether a fit resumes from the file, if it is there
    before
        called before the first write; never, if the table or a setting cannot be used
    """

    def __init__(
        self, path: str | Path, *, resume: bool = True, before: Callable[[], None] | None = None
    ) -> None:
        self.path, self.resume = Path(path), resume
        self.fingerprint: dict[str, Any] = {}  # of what is fitted: set by whoever fits
        self.holds = False  # whether an epoch of this fit stands in the file
        self._before = before
        self._writer = TimedWriter()

    def read(self) -> dict[str, Any] | None:
        """Return what ``write`` wrote, on the CPU; None without a file, or without ``resume``.

        Raises
        ------
        ArtifactError
            if it is damaged, in another format, or of a fit with other rows, settings or seed
        """
        if not self.resume or not self.path.is_file():
            return None
        content = model_files.read_checkpoint(
            self.path, "fit again (--overwrite), or remove it", keys=(_SIGNATURE, "state")
        )
        check_signature(content, self.fingerprint, f"fit again (--overwrite), or remove {self.path}")
        restored: dict[str, Any] = content["state"]
        self.holds = True
        return restored

    def unfit(self, error: Exception) -> ArtifactError:
        """Return the error of a state that the fit cannot take."""
        reason = short(files.first_line(error), 100)
        return ArtifactError(f"the checkpoint {self.path} does not fit ({reason}): fit again (--overwrite)")

    def write(self, state: Callable[[], Mapping[str, Any]], *, at_once: bool = False) -> None:
        """Write the state, by a rename, if it is due: writing takes at most a twentieth of the time.

        ``at_once`` does not ask whether it is due.

        Raises
        ------
        ArtifactError
            if it cannot be written; what was there is as it was
        """
        if not (at_once or self._writer.due):
            return
        if self._before is not None:
            self._before()
            self._before = None
        self._writer.write(lambda: self._save(state()))

    def _save(self, state: Mapping[str, Any]) -> None:
        content = {"state": dict(state)}
        sign(content, self.fingerprint)
        model_files.write_checkpoint(self.path, content)
        self.holds = True
