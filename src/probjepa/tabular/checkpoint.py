"""A fit of a table transformer on disk: kept after its epochs, and gone on with."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import probjepa
from probjepa import files
from probjepa.errors import ArtifactError
from probjepa.tabular.tokens import Rows

_LARGEST_SHARE = 0.05  # of the time, that writing may take


class FitCheckpoint:
    """A file that holds a fit as it was after an epoch: tensors and plain values, no pickled code.

    Parameters
    ----------
    path
        the file
    resume
        whether a fit goes on from the file, if it is there
    before
        called before the first write, which an unusable table or setting does not come to
    """

    def __init__(
        self, path: str | Path, *, resume: bool = True, before: Callable[[], None] | None = None
    ) -> None:
        self.path, self.resume = Path(path), resume
        self.identity = ""  # what the fit is of: set by the estimator
        self._before = before
        self._last, self._cost = -math.inf, 0.0

    def read(self) -> dict[str, Any] | None:
        """Return what ``write`` wrote, on the CPU; None if there is no file, or it is not gone on with.

        Raises
        ------
        ArtifactError
            if it is damaged, in another format, or of a fit with other rows, settings or seed
        """
        if not self.resume or not self.path.is_file():
            return None
        content = files.read_checkpoint(
            self.path,
            "remove it and fit afresh",
            keys=("format_version", "probjepa_version", "identity", "state"),
        )
        files.check_format(content["format_version"], content["probjepa_version"], self.path)
        if content["identity"] != self.identity:
            raise ArtifactError(
                f"the checkpoint {self.path} is of a fit with other rows, settings or random_state: give "
                "those, or remove it"
            )
        restored: dict[str, Any] = content["state"]
        return restored

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the state, by a rename, if the last time is long enough ago for what it took.

        Raises
        ------
        ArtifactError
            if it cannot be written; what was there is as it was
        """
        started = time.monotonic()
        if started - self._last < self._cost / _LARGEST_SHARE:
            return
        if self._before is not None:
            self._before()
            self._before = None
        content = {
            "format_version": files.FORMAT_VERSION,
            "probjepa_version": probjepa.__version__,
            "identity": self.identity,
            "state": dict(state()),
        }
        files.write_checkpoint(self.path, content)
        self._last = time.monotonic()
        self._cost = self._last - started


def identity(kind: str, settings: Mapping[str, Any], schema: Any, rows: Rows, seed: int) -> str:
    """Return a hash of all that the numbers of a fit come from, the device apart."""
    digest = hashlib.sha256(json.dumps([kind, settings, schema, seed], default=str, sort_keys=True).encode())
    for part in rows:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()
