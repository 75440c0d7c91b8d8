"""Rows that stand in two tables, whatever types these were read in, and a table's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.data.overlap import refuse_seen
from probjepa.errors import DataError
from probjepa.registry import importing
from probjepa.tabular.dates import day_first, instants
from probjepa.tabular.frames import as_text, guess_type, labels_of, narrow_type, numbers, pandas

_SPREADS = 4  # standard deviations that a share of equal rows may lie above chance
_RARE = 1e-3  # chance at which as many equal pairs across two tables are no chance
_VALUES = 20  # fewer cells say nothing of a column
_COPIES = 50  # one row in so many may be another's copy
_DECIMALS = 16  # a number is taken to be written with fewer


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
    both tables have the same rows; if one column has so many values that as many would not be equal in it; or
    if more rows are shared than repeat.

    Of tables drawn alike, any two rows are equal as often, whether of one table or of both: of all equal
    pairs, those across are binomial, with the share N M of all pairs that there are. As many as happen once
    in a thousand are too many. But pairs of rows that repeat are not independent. Where any does, each kind
    of row is taken to be dealt to the two tables at random, and the pairs across, which that leaves a mean
    and a variance, are Poisson in the unit of variance over mean. Where one kind repeats so often that it
    rules them, a row has an equal among the M others much more often than these have one among each other: in
    a share w, to which two more with and two without are added (Agresti and Caffo, 2000), the limit is
    w + 4 √(w (1 − w) (1/N + 1/M)), seen from both sides.

    Raises
    ------
    DataError
        for complex, nested or infinite cells
    """
    columns = {name: _together(name, rows[name], held[name]) for name in sorted(rows.columns)}
    _, row = np.unique(_hashed(columns), return_inverse=True)
    mine, others = row[: len(rows)], row[len(rows) :]
    here, there = (np.bincount(of, minlength=row.max(initial=-1) + 1) for of in (mine, others))
    seen, back = there[mine] > 0, here[others] > 0
    if not seen.any():
        return seen, True
    if np.array_equal(here, there):
        return seen, False
    repeated, theirs = here[mine] > 1, there[others] > 1
    few = all(of.sum() <= 1 + len(of) / _COPIES for of in (repeated, theirs))
    copies = _pairs(here) + _pairs(there) if few else 0.0
    if any(_tells_apart(cells, seen, back, copies) for cells in columns.values()):
        return seen, False
    if not _too_many_pairs(here, there):
        return seen, True
    if not (repeated.any() or theirs.any()):
        return seen, False
    return seen, not (_too_many_split(here, there) or (_too_many(seen, theirs) and _too_many(back, repeated)))


def _tells_apart(
    cells: npt.NDArray[Any], seen: npt.NDArray[np.bool_], back: npt.NDArray[np.bool_], copies: float
) -> bool:
    """Whether so many equal rows would not have equal cells by chance, in one column (N + M,) of two tables.

    Missing cells and the most frequent value, which may be 0, say nothing. Of the others, two are taken to be
    equal as often as they are within the tables, ``copies`` of rows apart and two standard deviations more;
    and, if they are written with few digits, also twice as often as of a uniform distribution between their
    quartiles. How many are is Poisson.
    """
    with importing():
        from scipy.stats import poisson

    kinds, value = np.unique(cells, return_inverse=True)
    each = (np.bincount(of, minlength=len(kinds)) for of in (value[: len(seen)], value[len(seen) :]))
    counts = np.stack([*each]) * ~pandas().isna(kinds)  # (2, kinds)
    equal_within = (counts * (counts - 1)).sum(0)
    if equal_within.any():
        counts[:, equal_within.argmax()] = 0
    of_use = counts.any(0)[value]
    if of_use.sum() <= _VALUES:
        return False
    sizes, within = counts.sum(1), max(_pairs(counts) - copies, 0)
    rate = (within + 2 * np.sqrt(within)) / _pairs(sizes) + _of_a_grid(cells[of_use])
    equal = min((seen & of_use[: len(seen)]).sum(), (back & of_use[len(seen) :]).sum())
    return bool(poisson.sf(equal - 1, sizes.prod() * rate) < _RARE)


def _pairs(counts: npt.NDArray[np.int64]) -> float:
    """How many pairs of equals there are where so many are equal."""
    return float((counts * (counts - 1)).sum() / 2)


def _of_a_grid(cells: npt.NDArray[Any]) -> float:
    """How often two of some cells (N,) are equal because of the grid they lie on; 0: they lie on none."""
    if cells.dtype.kind not in "fM":
        return 0.0
    low, high = np.quantile(_on_a_grid(cells), [0.25, 0.75])
    return 2 / max(float(high - low), 1)


def _on_a_grid(cells: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Numbers or dates (N,) in units of the coarsest grid that they lie on: of decimals, or of their type."""
    if cells.dtype.kind == "M":
        whole = cells.astype("datetime64[us]").astype(np.int64)
    else:
        wide, finest = cells.astype(np.float64), np.spacing(np.abs(cells).max())
        with np.errstate(over="ignore", invalid="ignore"):
            alike = (np.array_equal(np.round(wide, k).astype(cells.dtype), cells) for k in range(_DECIMALS))
            decimals = next((k for k, same in enumerate(alike) if same), None)
        if decimals is None or 10.0**-decimals < finest:
            return wide / float(finest)
        whole = np.rint(wide * 10.0**decimals).astype(np.int64)
    steps = whole - whole.min()
    ticks: npt.NDArray[np.float64] = steps / max(np.gcd.reduce(steps), 1)
    return ticks


def _too_many(seen: npt.NDArray[np.bool_], repeated: npt.NDArray[np.bool_]) -> bool:
    """Whether more rows (N,) stand in another table than that table's rows (M,) repeat."""
    n, m = len(seen), len(repeated)
    share = (repeated.sum() + 2) / (m + 4)
    return bool(seen.mean() > share + _SPREADS * np.sqrt(share * (1 - share) * (1 / n + 1 / m)))


def _too_many_split(here: npt.NDArray[np.int64], there: npt.NDArray[np.int64]) -> bool:
    """Whether more pairs across two tables are equal than if the rows of each kind were dealt at random.

    Of m of a kind a ~ Binomial(m, p) fall to one table; a (m − a) has the mean m₍₂₎ p q and the mean square
    m₍₄₎ p² q² + m₍₃₎ p q + m₍₂₎ p q, in falling factorials.
    """
    with importing():
        from scipy.special import gammainc

    kinds = (here + there).astype(np.float64)
    two = kinds * (kinds - 1)
    three = two * (kinds - 2)
    share = here.sum() / kinds.sum()
    pq = share * (1 - share)
    mean = two * pq
    square = three * (kinds - 3) * pq**2 + three * pq + mean
    unit = (square - mean**2).sum() / mean.sum()
    return bool(gammainc((here * there).sum() / unit, mean.sum() / unit) < _RARE)


def _too_many_pairs(here: npt.NDArray[np.int64], there: npt.NDArray[np.int64]) -> bool:
    """Whether more pairs across two tables are equal than within, by how often each row stands in them."""
    with importing():
        from scipy.stats import binom

    sizes = np.array([here.sum(), there.sum()])
    across, within = float((here * there).sum()), _pairs(here) + _pairs(there)
    share = sizes.prod() / (sizes.prod() + _pairs(sizes))
    return bool(binom.sf(across - 1, across + within, share) < _RARE)


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
