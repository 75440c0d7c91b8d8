"""Columns of text that hold numbers or dates, and indices that were written along."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from probjepa.errors import DataError, short, warn
from probjepa.tabular.files import number_pattern, written_as_text
from probjepa.tabular.frames import pandas

_YAML = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # YAML's own words
_PLACEHOLDERS = 5  # more kinds of words among numbers are categories
_READ = 10_000  # rows that a fit looks at, and texts by which a column is judged
_GAPS = (" ", "'")  # of thousands
_UNITS = "%$€£¥"
_UNIT = rf"^[-+]?[{_UNITS}]\s*|\s*[{_UNITS}]$"
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = r"\d{1,2}(st|nd|rd|th)?"
_WEEKDAY = r"([a-z]{3,9},? )?"
_DATES = (
    r"\d{4}([-/.])\d{1,2}\2\d{1,2}",
    r"\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})",
    r"\d{4}[-/]\d{1,2}",
    rf"{_WEEKDAY}{_DAY}[- ]{_MONTH},?[- ]\d{{2,4}}",
    rf"{_WEEKDAY}{_MONTH} {_DAY},? \d{{4}}",
    rf"{_MONTH}[- ]\d{{4}}",
)
_DATE = re.compile(rf"({'|'.join(_DATES)})([ T,].*)?", re.IGNORECASE)


class Trap(NamedTuple):
    """A column of text that holds something else.

    Attributes
    ----------
    column, what
        its name, and "numbers" or "dates"
    cell, row
        the first text that is not read as such, and where it stands
    decimal, thousands
        of numbers, the signs that they are written with
    words
        of numbers, the texts among them
    units
        of numbers, the signs that stand before or behind them
    codes
        whether it may hold codes: whole numbers alone, or some that begin with 0
    """

    column: str
    what: str
    cell: str
    row: int
    decimal: str = "."
    thousands: str | None = None
    words: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    codes: bool = False


def text_traps(
    frame: Any, types: Mapping[str, Any] | None = None, decimal: str = ".", thousands: str | None = None
) -> Iterator[Trap]:
    """Yield the columns (N,) of text, without a type in ``types``, that hold numbers or dates.

    More than half of the cells must be numbers with one pair of signs, beside few texts, or 90 % dates.
    ``decimal`` and ``thousands`` are the signs that the table was read with.
    """
    pd = pandas()
    for name in frame.columns:
        if name in (types or {}) or pd.api.types.infer_dtype(frame[name], skipna=True) != "string":
            continue
        cells = frame[name].reset_index(drop=True).dropna().astype(object).str.strip()
        if cells.str.contains(r"\d").mean() > 0.5 and (trap := _trap(name, cells, (decimal, thousands))):
            yield trap


def _trap(name: str, cells: Any, read: tuple[str, str | None]) -> Trap | None:
    shares = cells.value_counts(normalize=True)
    shown = shares.iloc[:_READ] / shares.iloc[:_READ].sum()
    if shown[[_DATE.fullmatch(text) is not None for text in shown.index]].sum() > 0.9:
        return Trap(name, "dates", cells.iloc[0], int(cells.index[0]))
    decimals = (".", ",") if read[0] == "." else (",", ".")
    signs = [read, *((of, by) for of in decimals for by in (None, "," if of == "." else ".", *_GAPS))]
    some = _bare(shown)
    fits = {of: shown[_are_numbers(some, of)].sum() for of in signs}
    best = max(signs, key=fits.__getitem__)  # the first of equals
    if fits[best] <= 0.5:
        return None
    texts, bare = shares.index.to_series(), _bare(shares)
    are = _are_numbers(bare, best)
    words, with_unit = texts[~are], texts[are & (texts != bare)]
    if shares[are].sum() <= 0.5 or len(words) > _PLACEHOLDERS:
        return None
    unread = cells[~cells.isin(texts[_are_numbers(texts, read)])]
    first = unread if len(unread) else cells
    units = [mark for mark in _UNITS if with_unit.str.contains(mark, regex=False).any()]
    codes = texts.str.fullmatch(r"\d+").all() or texts.str.fullmatch(r"0\d+").any()
    return Trap(
        name, "numbers", first.iloc[0], int(first.index[0]), *best, tuple(words), tuple(units), bool(codes)
    )


def _bare(shares: Any) -> Any:
    """The texts (N,) of a column without a unit's sign."""
    return shares.index.to_series().str.replace(_UNIT, "", regex=True)


def _are_numbers(texts: Any, signs: tuple[str, str | None]) -> Any:
    are = texts.str.fullmatch(number_pattern(*signs))
    return are | pandas().to_numeric(texts, errors="coerce").notna() if signs[0] == "." else are


def warn_of_texts(frame: Any, types: Mapping[str, Any]) -> None:
    """Warn of columns, without a type in ``types``, whose numbers or dates are texts: each is a category."""
    for trap in text_traps(frame.iloc[:_READ], types):
        if not trap.codes:
            cell = f"{short(trap.cell)!r} in row {trap.row}"
            warn(
                f"column {trap.column!r} holds {trap.what} as text ({cell}), each taken for a category: "
                f"convert it, or pass column_types={{{trap.column!r}: 'categorical'}}"
            )


def refuse_traps(
    frame: Any, source: str, column_types: Mapping[str, Any] | None = None, decimal: str = ".",
    thousands: str | None = None,
) -> None:  # fmt: skip
    """Raise DataError where a column is not what it was meant to be; those with a type of their own may be.

    The traps: an index that was written along, numbers and dates that were read as text; ``decimal`` and
    ``thousands`` are the signs that it was read with.
    """
    pd = pandas()
    for name in frame.columns:
        if not name.startswith(("Unnamed: ", "__index_level_")):
            continue
        cells = frame[name]
        if name.startswith("Unnamed: ") and not (pd.api.types.is_integer_dtype(cells) and cells.is_unique):
            raise DataError(f"'{source}' has a column without a name, read as '{name}': give it one")
        raise DataError(
            f"'{source}' has the column '{name}', an index that was written along: write the table without it"
        )
    for trap in text_traps(frame, column_types, decimal, thousands):
        if advice := _advice(trap, written_as_text(source), decimal, thousands):
            kept = _typed(trap.column, "categorical")
            raise DataError(
                f"column '{trap.column}' of '{source}' holds {trap.what} and was read as text "
                f"('{trap.cell[:60]}' in row {trap.row}): {advice}, or pass {kept} if it is meant so"
            )


def _advice(trap: Trap, text: bool, decimal: str, thousands: str | None) -> str:
    if trap.what == "dates":
        return f"pass {_typed(trap.column, 'datetime')}"
    if not text:
        return "" if trap.codes else "write it as numbers"
    options = [f"--na {shlex.quote(word)}" for word in trap.words]
    if trap.decimal != decimal:
        options.append(f"--decimal '{trap.decimal}'")
    if trap.thousands not in (None, thousands):
        options.append("--thousands " + (f"'{trap.thousands}'" if trap.thousands != "'" else '"\'"'))
    advice = [f"write it without {' and '.join(trap.units)}"] if trap.units else []
    return " and ".join([*advice, *([f"pass {' '.join(options)}"] if options else [])])


def _typed(name: str, type_: str) -> str:
    """The option that gives a column a type, as a shell takes it and YAML reads it."""
    key = (
        name
        if re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in _YAML
        else json.dumps(name, ensure_ascii=False)
    )
    return f"--set {shlex.quote(f'column_types={{{key}: {type_}}}')}"
