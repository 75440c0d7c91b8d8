"""Rows that stand in two sets: a score against a reference means nothing for the reference's own rows.

Images are compared by their pixels, and embeddings, which different images may share, by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
_COMPARED = 64  # rows whose channels are compared at a time, in little memory
_NAMED = 5  # rows named in a message


def overlap(
    images: Tensor | Images, reference: Tensor | Images | npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the images (N, …) whose pixels equal a reference image's (M, …), bit for bit.

    A grey image is the same with one channel and with three equal ones, as it is opened among colour images.
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
    """Return a 64-bit hash (N,) of each image's pixels: of one channel, where all three are equal."""
    batches = [images] if isinstance(images, Tensor) else (x for x, _ in images.batches(_ROWS_AT_A_TIME))
    hashes = [_hashes(part) for batch in batches for part in torch.split(batch, _COMPARED)]
    return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)


def _hashes(images: Tensor) -> npt.NDArray[np.uint64]:
    images = images.detach().cpu()
    rows: npt.NDArray[Any] = (images.float() if images.is_floating_point() else images).numpy()
    if rows.ndim != 4 or rows.shape[1] != 3:
        return fingerprints(rows)
    grey = (rows[:, 1:] == rows[:, :1]).all((1, 2, 3))
    hashes = np.empty(len(rows), np.uint64)
    hashes[grey], hashes[~grey] = fingerprints(rows[grey, :1]), fingerprints(rows[~grey])
    return hashes


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
        # out of the calibration set alone, what recurs would only be among the rows that are judged
        sets = "both sets" if what == "calibration" else f"the {what} set"
        raise DataError(
            f"{seen.sum()} of {len(seen)} {of} are in the {what} set ({_first(seen, ids)}): "
            f"give others, or take these out of {sets}"
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


def unlike(reference: ArrayInput, others: Iterable[ArrayInput]) -> npt.NDArray[np.bool_]:
    """Return a mask (M,) of the reference's rows (M, D) that no row of the others (N, D) equals, bit for bit.

    Different inputs may have equal features, if an encoder does not see all of them; a row that is in both
    would be its own nearest neighbour.
    """
    known = FittedRows(reference)
    free = np.ones(len(known._hashes), dtype=np.bool_)
    for rows in others:
        if known.among(rows).any():
            free &= ~FittedRows(rows).among(reference)
    return free


def refuse_fitted_rows(detector: str, fitted: ArrayInput, embeddings: ArrayInput) -> None:
    """Raise DataError, with the count, if any embedding (N, D) is a row (M, D) that a detector was fitted on.

    Such a row is its own nearest neighbour, and a covariance fitted on fewer rows than dimensions separates
    those rows from all others: an evaluation on them reports an AUROC of 1 for any encoder.
    """
    FittedRows(fitted).refuse(detector, embeddings)
