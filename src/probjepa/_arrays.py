"""Checked inputs of the metrics and detectors."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from probjepa.errors import DataError, few, short, warn

ArrayInput: TypeAlias = torch.Tensor | npt.ArrayLike
_ROWS_AT_A_TIME = 65536


def as_float_tensor(values: ArrayInput, what: str) -> torch.Tensor:
    """Return numbers of any shape in float32 or float64, on the device they came on, or raise DataError."""
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided:
            raise DataError(f"{what} is a sparse tensor: give a dense one, to_dense()")
        if values.is_complex():
            kind = str(values.dtype).removeprefix("torch.")
            raise DataError(f"{what} holds {kind} values: give real numbers")
        tensor = values.detach()
    else:
        refuse_masked(values, what)
        try:
            array = np.asarray(values)
        except ValueError:
            raise DataError(f"{what} has rows of different lengths: give rows of one length") from None
        if array.dtype.kind not in "fiub":
            raise DataError(f"{what} holds {array.dtype} values: give numbers")
        # torch has no long doubles, and no bytes in another machine's order
        long = array.dtype.kind == "f" and array.dtype.itemsize > 8
        array = array.astype(np.float64 if long else array.dtype.newbyteorder("="), copy=False)
        # torch warns about read-only memory and refuses negative strides
        mapped = isinstance(values, np.memmap) and not array.flags.writeable
        array = np.asarray(_Writeable(array)) if mapped else array
        tensor = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    if not tensor.dtype.is_floating_point:
        return tensor.double()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def refuse_masked(values: Any, what: str) -> None:
    """Raise DataError for masked values of numpy.ma, a list's too, which NumPy would read as if valid."""
    if is_masked(values) or _holds_masked(values):
        raise DataError(f"{what} has masked values: fill them, or drop their rows")


def is_masked(values: object) -> TypeGuard[np.ma.MaskedArray[Any, Any]]:
    """Whether an array of numpy.ma hides values, structured ones too (np.ma.is_masked refuses those)."""
    return isinstance(values, np.ma.MaskedArray) and _hides(np.asarray(values.mask))


def _holds_masked(values: Any) -> bool:
    """Whether one of a list's items is masked, or hides values."""
    return isinstance(values, list | tuple) and any(map(is_masked, values))


def _hides(mask: npt.NDArray[Any]) -> bool:
    fields = mask.dtype.names
    return bool(mask.any()) if fields is None else any(_hides(mask[field]) for field in fields)


class _Writeable:
    """The memory of a read-only array, which nothing here writes to: a map of a large file is not copied."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        known = array.__array_interface__
        self.array, self.__array_interface__ = array, {**known, "data": (known["data"][0], False)}


def as_features(values: ArrayInput, what: str) -> torch.Tensor:
    """Return finite features (N, D) in float32 or float64, on the device they came on.

    Raises
    ------
    DataError
        for another number of dimensions, no rows or columns, or NaN or Inf (counted)
    """
    features = as_float_tensor(values, what)
    if features.ndim != 2:
        raise DataError(f"{what} has shape {tuple(features.shape)}: give one row a sample, (N, D)")
    if 0 in features.shape:
        raise DataError(f"{what} is empty, shape {tuple(features.shape)}: give at least one row and column")
    # NaN and Inf pass through both ends, which take a thirtieth of the time that counting rows takes
    if not all(bool(end.isfinite()) for end in torch.aminmax(features)):
        parts = torch.split(features, _ROWS_AT_A_TIME)
        bad = sum(int((~torch.isfinite(rows)).sum(1).count_nonzero()) for rows in parts)
        raise DataError(
            f"{what} has NaN or Inf in {bad} of {len(features)} rows: drop them, or fix the encoder"
        )
    return features


def as_feature_sets(train: ArrayInput, test: ArrayInput) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training and test features (N, D) and (M, D), see ``as_features``; DataError for two widths."""
    bank, queries = as_features(train, "the training embeddings"), as_features(test, "the test embeddings")
    if bank.shape[1] != queries.shape[1]:
        raise DataError(
            f"the training embeddings are {bank.shape[1]}-dimensional and the test ones {queries.shape[1]}: "
            "embed both with the same encoder"
        )
    return bank, queries


def directions(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (N, D) of length 1, and zeros where a row is zero.

    Where the squares of a row might overflow or vanish, a power of two is taken out of each row first.
    """
    tiny = torch.finfo(rows.dtype).tiny
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if bool(((lengths > tiny**0.25) & (lengths < tiny**-0.25)).all()):
        return rows.div(lengths)
    largest = rows.abs().amax(1, keepdim=True)
    return F.normalize(rows / power_of_two(largest), eps=tiny)


def power_of_two(largest: float | torch.Tensor) -> torch.Tensor:
    """Return what to divide numbers up to ``largest`` by, so that their fourth powers can be summed.

    It is 1 where they can be already. A power of two rounds nothing.
    """
    if not isinstance(largest, torch.Tensor):
        largest = torch.tensor(largest, dtype=torch.float64)
    tiny = torch.finfo(largest.dtype).tiny
    least = largest.clamp_min(tiny)
    ordinary = (largest == 0) | ((largest > tiny**0.125) & (largest < tiny**-0.125))
    return torch.where(ordinary, 1.0, least / (2 * torch.frexp(least).mantissa))


def as_scores(values: ArrayInput, what: str) -> npt.NDArray[np.float64]:
    """Return scores (N,) in float64; infinite ones are allowed.

    Raises
    ------
    DataError
        for another number of dimensions, no values, or NaN (counted)
    """
    scores: npt.NDArray[np.float64] = as_float_tensor(values, what).double().cpu().numpy()
    if scores.ndim != 1:
        raise DataError(f"{what} has shape {scores.shape}: give one value a sample, (N,)")
    if not len(scores):
        raise DataError(f"{what} is empty: give at least one value")
    missing = int(np.isnan(scores).sum())
    if missing:
        raise DataError(f"{what} has {missing} NaN among {len(scores)} values: drop them, or fix the score")
    return scores


def as_labels(
    values: ArrayInput, what: str, *, rows: int | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Return the labels of the labelled rows (n,), of any type, and which of the ``rows`` those are (n,).

    −1, None, NaN and the mask of a masked array say that a row has no label.

    Raises
    ------
    DataError
        for another shape, labels of types that have no order, or if no row is labelled
    """
    labels = as_array(values)
    rows = labels.size if rows is None else rows
    if labels.shape != (rows,):
        raise DataError(f"{what} has shape {labels.shape} for {rows} rows: give one label a row, ({rows},)")
    kept = np.flatnonzero(is_labelled(labels))
    if not len(kept):
        raise DataError(f"{what} name no class in any of {rows} rows (−1 and NaN are no label): give labels")
    if labels.dtype.kind == "O":
        try:
            np.unique(labels[kept])
        except TypeError:
            kinds = sorted({type(label).__name__ for label in labels[kept].tolist()})
            raise DataError(f"{what} are of several types ({', '.join(kinds)}): give them one") from None
    return labels[kept], kept


def as_array(values: ArrayInput) -> npt.NDArray[Any]:
    """Return an array of NumPy's, which has no bfloat16 and takes no tensor with a gradient.

    What a masked array, or one in a list, hides is missing: NaN, NaT or None, by its type. A list of texts
    and other things is an array of objects.
    """
    if not isinstance(values, torch.Tensor):
        if _holds_masked(values):
            rows: Any = values
            if any(row is np.ma.masked for row in rows):
                rows = [None if row is np.ma.masked else row for row in rows]
            else:
                rows = np.ma.array(rows)
            return as_array(rows)
        array: npt.NDArray[Any] = np.asarray(values)
        if array.dtype.kind in "US" and isinstance(values, list | tuple):
            objects = np.array(values, dtype=object)  # among texts NumPy makes texts of numbers and of NaN
            array = array if all(isinstance(x, str | bytes) for x in objects.flat) else objects
        if array.dtype.names is None and is_masked(values):
            fill: Any = {"f": np.nan, "M": np.datetime64("NaT"), "m": np.timedelta64("NaT")}.get(
                array.dtype.kind
            )
            array = array.copy() if fill is not None else array.astype(object)
            array[np.ma.getmaskarray(values)] = fill
        return array
    tensor = values.detach().cpu()
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 4 and tensor.dtype != torch.float16
    array = (tensor.float() if narrow else tensor).numpy()
    return array


def is_labelled(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the labels that name a class: not −1, None, NaN or pandas' NA."""
    if labels.dtype.kind == "f":
        return np.array(~(np.isnan(labels) | (labels == -1)), dtype=bool)
    if labels.dtype.kind == "i":
        return np.array(labels != -1, dtype=bool)
    if labels.dtype.kind != "O":
        return np.ones(len(labels), dtype=bool)
    numbers = (int, float, np.number)
    none = [is_missing(x) or (isinstance(x, numbers) and bool(x == -1)) for x in labels.tolist()]
    return ~np.array(none, dtype=np.bool_)


def is_missing(value: Any) -> bool:
    """Whether a value of any type is None, NaN, masked or pandas' NA."""
    try:
        return value is None or value is np.ma.masked or bool(value != value)
    except TypeError:  # pandas' NA has no truth
        return True
    except (ValueError, RuntimeError):  # an array or a tensor of several values
        return False


def check_classes(test: Sequence[Any], train: Sequence[Any], where: str = "the test labels") -> list[str]:
    """Return the test classes that the training labels lack, and warn of them by name.

    Raises
    ------
    DataError
        if they lack all of them
    """
    known = set(train)
    absent = [short(label) for label in test if label not in known]
    if absent and len(absent) == len(test):
        alike = {str(label) for label in test} & {str(label) for label in train}  # '1' and 1
        classes, names = (
            few([short(f"'{of}'" if alike and isinstance(of, str) else of) for of in labels])
            for labels in (test, train)
        )
        raise DataError(
            f"{where}: no class ({classes}) is among the training labels ({names}): name the classes of both "
            "sets alike, or leave labels out (labels=none)"
        )
    if absent:
        warn(f"{where}: the training labels lack {few(absent)}, so that rows of these count as wrong")
    return absent


def fingerprints(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash (N,) of each row (N, …): equal bytes give equal hashes.

    A chance match of 10⁶ rows with 10⁵ others is a 1-in-10⁸ event.
    """
    digests = (blake2b(row.tobytes(), digest_size=8).digest() for row in np.ascontiguousarray(rows))
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
