"""Rows that stand in two sets: a score against a reference means nothing for the reference's own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from probjepa._arrays import fingerprints
from probjepa.errors import DataError

if TYPE_CHECKING:
    from probjepa.data.images import Images

_ROWS_AT_A_TIME = 4096


def overlap(images: Tensor | Images, reference: Tensor | Images) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the images (N, …) whose pixels equal a reference image's (M, …), bit for bit.

    Floats are compared as the float32 that a model takes them for. A streamed set is read batch by batch.
    """
    return np.isin(_hashes(images), _hashes(reference))


def _hashes(images: Tensor | Images) -> npt.NDArray[np.uint64]:
    if isinstance(images, Tensor):
        return fingerprints(_rows(images))
    return np.concatenate([fingerprints(_rows(batch)) for batch, _ in images.batches(_ROWS_AT_A_TIME)])


def _rows(images: Tensor) -> npt.NDArray[Any]:
    rows = images.detach().cpu().flatten(1)
    return (rows.float() if rows.is_floating_point() else rows).numpy()


def refuse_overlap(images: Tensor | Images, reference: Tensor | Images) -> None:
    """Raise DataError, with the count, if any image is among the reference."""
    count = int(overlap(images, reference).sum())
    if count:
        raise DataError(
            f"{count} of {len(images)} images to score are in the reference set: "
            "score held-out images, or take these out of the reference"
        )
