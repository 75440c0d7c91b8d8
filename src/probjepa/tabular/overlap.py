"""Rows that stand in two tables, whatever types these were read in, and a table's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.data.overlap import refuse_seen
from probjepa.errors import DataError
from probjepa.tabular.dates import day_first, instants
from probjepa.tabular.frames import as_text, guess_type, labels_of, narrow_type, numbers, pandas

_SPREADS = 4  # standard deviations that a share of equal rows may lie above chance
_FEW = 3  # rows that two tables may share where neither repeats one
_VALUES = 20  # fewer different cells are few, however short the tables


def row_hashes(frame: Any) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash (N,) of each row's cells as stored; 1 and 1.0 are one, missing ones are equal.

    It is a table's fingerprint. Whether rows stand in another table says ``equal_rows``, whatever the types.
    """
    pd = pandas()
    plain = {}
    for name in sorted(frame.columns):
        series = frame[name]
        if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_complex_dtype(series.dtype):
            plain[name] = series.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
        else:
            plain[name] = series.astype(object).where(series.notna(), "\0").astype(str).to_numpy(dtype=object)
    return _hashed(plain)


def shared_by_chance(rows: Any, held: Any, what: str, of: str) -> int:
    """Return how many rows (N, …) also stand in a set that was held out (M, …), as they may by chance.

    See ``equal_rows``.

    Raises
    ------
    DataError
        if they are more than that, as ``refuse_seen`` says ``what`` and ``of``; and as ``equal_rows``
    """
    seen, chance = equal_rows(rows, held)
    if not chance:
        refuse_seen(seen, what, of)
    return int(seen.sum())


def equal_rows(rows: Any, held: Any) -> tuple[npt.NDArray[np.bool_], bool]:
    """Return which rows (N,) of a table also stand in another (M, …), and whether that may be chance.

    Cells are compared by what they mean, since two files of one table may be read in different types: True is
    "True" and 1, 1 is 1.0 and "1", a date is its text, and 0.1 is 0.1 in float32. Missing cells are equal.
    Where a model was fitted, give what ``TableSchema.dated`` returns: it knows whether the day stands first.

    In a table of few values, answers from 1 to 5 say, rows of different people are equal. It is no chance if
    half of a column's cells are different, if both tables have the same rows, or if more rows are shared than
    repeat. Of tables drawn alike, a row has an equal among the M others as often as these have one among each
    other: in a share w, to which two more with and two without are added (Agresti and Caffo, 2000). More than
    w + 4 √(w (1 − w) (1/N + 1/M)), seen from both sides, are too many; where no row repeats, more than three.

    Raises
    ------
    DataError
        for complex, nested or infinite cells
    """
    columns = {name: _together(name, rows[name], held[name]) for name in sorted(rows.columns)}
    hashes = _hashed(columns)
    mine, others = hashes[: len(rows)], hashes[len(rows) :]
    seen, back = np.isin(mine, others), np.isin(others, mine)
    if not seen.any():
        return seen, True
    if any(map(_tells_rows_apart, columns.values())) or np.array_equal(np.sort(mine), np.sort(others)):
        return seen, False
    repeated, theirs = _twice(mine), _twice(others)
    if not (repeated.any() or theirs.any()):
        return seen, bool(seen.sum() <= _FEW)
    return seen, not (_too_many(seen, theirs) and _too_many(back, repeated))


def _tells_rows_apart(cells: npt.NDArray[Any]) -> bool:
    """Whether a column (N,) has so many values that whole rows are not equal by chance."""
    distinct = len(pandas().unique(cells))
    return distinct > _VALUES and distinct > len(cells) / 2


def _too_many(seen: npt.NDArray[np.bool_], repeated: npt.NDArray[np.bool_]) -> bool:
    """Whether more rows (N,) stand in another table than that table's rows (M,) repeat."""
    n, m = len(seen), len(repeated)
    share = (repeated.sum() + 2) / (m + 4)
    return bool(seen.mean() > share + _SPREADS * np.sqrt(share * (1 - share) * (1 / n + 1 / m)))


def _twice(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which rows (N,) have an equal in their own table."""
    _, group, size = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.asarray(size[group] > 1)


def _hashed(plain: Mapping[str, Any]) -> npt.NDArray[np.uint64]:
    pd = pandas()
    hashes: npt.NDArray[np.uint64] = pd.util.hash_pandas_object(pd.DataFrame(plain), index=False).to_numpy()
    return hashes


def _together(column: str, *both: Any) -> npt.NDArray[Any]:
    """The cells of two columns, one after the other, so that those of one meaning are equal."""
    kinds = {guess_type(column, of) for of in both if of.notna().any()}
    if "datetime" in kinds:
        try:
            when = [
                instants(column, of, day_first(column, of)).dt.tz_localize(None).to_numpy() for of in both
            ]
            return np.concatenate([of.astype("datetime64[us]") for of in when])
        except DataError:  # the other column holds no dates
            pass
    narrow = any(narrow_type(of) is not None for of in both)
    if kinds <= {"numeric", "boolean"}:
        found = np.concatenate([numbers(column, of) for of in both]) + 0.0
        return found.astype(np.float32) if narrow else found
    cells = []
    for series in both:
        codes, labels = labels_of(column, series)
        texts = [as_text(label) for label in labels]
        if kinds & {"numeric", "boolean"}:
            texts = [_as_number(text, narrow) for text in texts]
        cells.append(np.array([*texts, "\0"], dtype=object)[codes])  # −1, missing, takes the last
    return np.concatenate(cells)


def _as_number(text: str, narrow: bool) -> str:
    """A number's text as all texts of it; another text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return repr(float(np.float32(number)) if narrow else number + 0.0)


def refuse_fitted(frame: Any, fitted_to: str | None, name: str) -> None:
    """Raise DataError if a table of calibration rows, called ``name``, is the one that a model was fitted to.

    ``fitted_to`` is the beginning of that one's ``table_sha256``; None: it is not known.
    """
    if fitted_to is not None and table_sha256(frame).startswith(fitted_to):
        raise DataError(
            f"'{name}' is the table that the model was fitted to, whose rows look more typical than new "
            "ones: calibrate by rows that it has not seen"
        )


def table_sha256(frame: Any) -> str:
    """Return the hash of a table's names and cells, in the order of its rows."""
    digest = hashlib.sha256("\0".join(sorted(frame.columns)).encode())
    digest.update(row_hashes(frame).tobytes())
    return digest.hexdigest()
