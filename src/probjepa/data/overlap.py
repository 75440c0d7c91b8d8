"""Rows that stand in two sets: a score against a reference means nothing for the reference's own rows.

Images are compared by their pixels, and embeddings, which different images may share, by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa._arrays import ArrayInput, as_features, fingerprints
from probjepa.errors import DataError, short

if TYPE_CHECKING:
    from probjepa.data.images import Images

_ROWS_AT_A_TIME = 4096
_NAMED = 5  # rows named in a message


def overlap(
    images: Tensor | Images, reference: Tensor | Images | npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the images (N, …) whose pixels equal a reference image's (M, …), bit for bit.

    Floats are compared as the float32 that a model takes them for. A streamed set is read batch by batch.
    Of a reference that many sets are compared with, its ``pixel_hashes`` will do.
    """
    known = reference if isinstance(reference, np.ndarray) else pixel_hashes(reference)
    return np.isin(pixel_hashes(images), known)


def same_images(images: Images, others: Images) -> bool:
    """Whether two sets hold the same images, in any order."""
    if images is others:
        return True
    return len(images) == len(others) and np.array_equal(
        np.sort(pixel_hashes(images)), np.sort(pixel_hashes(others))
    )


def pixel_hashes(images: Tensor | Images) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash (N,) of each image's pixels."""
    if isinstance(images, Tensor):
        return fingerprints(_rows(images))
    return np.concatenate([fingerprints(_rows(batch)) for batch, _ in images.batches(_ROWS_AT_A_TIME)])


def _rows(images: Tensor) -> npt.NDArray[Any]:
    rows = images.detach().cpu().flatten(1)
    return (rows.float() if rows.is_floating_point() else rows).numpy()


def refuse_overlap(
    images: Tensor | Images,
    reference: Tensor | Images | npt.NDArray[np.uint64],
    what: str = "reference",
    of: str = "images to score",
) -> None:
    """Raise DataError, with the count and the first names, if any image is among the reference."""
    refuse_seen(overlap(images, reference), what, of, getattr(images, "ids", None))


def refuse_seen(seen: npt.NDArray[np.bool_], what: str, of: str, ids: Sequence[str] | None = None) -> None:
    """Raise DataError, with the count and the first names, if a mask (N,) marks any row."""
    if seen.any():
        raise DataError(
            f"{seen.sum()} of {len(seen)} {of} are in the {what} set ({_first(seen, ids)}): "
            f"give others, or take these out of the {what} set"
        )


def _first(marked: npt.NDArray[np.bool_], ids: Sequence[str] | None = None) -> str:
    """Name the first of the rows that a mask (N,) marks."""
    rows = np.flatnonzero(marked)
    names = [f"row {row}" if ids is None else short(ids[row]) for row in rows[:_NAMED]]
    return ", ".join(names) + (", …" if len(rows) > _NAMED else "")


def was_fitted_on(embeddings: ArrayInput, fitted: ArrayInput) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the embeddings (N, D) that equal a row of a detector's fit (M, D), bit for bit.

    Rows are compared in float64, where 0.0 and −0.0 are the same.
    """
    return FittedRows(fitted).among(embeddings)


def _row_hashes(rows: ArrayInput, what: str) -> npt.NDArray[np.uint64]:
    blocks = torch.split(as_features(rows, what), _ROWS_AT_A_TIME)
    return np.concatenate([fingerprints(rows.double().cpu().numpy() + 0.0) for rows in blocks])  # no -0.0


class FittedRows:
    """The rows (M, D) that a detector was fitted on, hashed once for all the sets that it scores."""

    def __init__(self, rows: ArrayInput) -> None:
        self._hashes = _row_hashes(rows, "those to fit")

    def among(self, embeddings: ArrayInput) -> npt.NDArray[np.bool_]:
        """Return a mask (N,) of the embeddings (N, D); see ``was_fitted_on``."""
        return np.isin(_row_hashes(embeddings, "the embeddings to score"), self._hashes)

    def refuse(self, detector: str, embeddings: ArrayInput) -> None:
        """Raise DataError, with the count, if any embedding is among them; see ``refuse_fitted_rows``."""
        seen = self.among(embeddings)
        if seen.any():
            raise DataError(
                f"{seen.sum()} of {len(seen)} embeddings to score are among those that {detector} was fitted "
                f"on ({_first(seen)}): score held-out rows, or drop the ones that "
                "was_fitted_on(embeddings, fitted) marks"
            )


def refuse_fitted_rows(detector: str, fitted: ArrayInput, embeddings: ArrayInput) -> None:
    """Raise DataError, with the count, if any embedding (N, D) is a row (M, D) that a detector was fitted on.

    Such a row is its own nearest neighbour, and a covariance fitted on fewer rows than dimensions separates
    those rows from all others: an evaluation on them reports an AUROC of 1 for any encoder.
    """
    FittedRows(fitted).refuse(detector, embeddings)
