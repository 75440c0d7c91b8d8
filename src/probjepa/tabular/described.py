"""What a table is read as, in lines, and the traps in which it is read as what it is not."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probjepa.errors import DataError
from probjepa.tabular.files import number_pattern
from probjepa.tabular.frames import pandas
from probjepa.tabular.schema import Feature, TableSchema

_MOST_LINES = 60
_FEW_ROWS = 20  # so few differ by chance
_YAML = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # YAML's own words
_PLACEHOLDERS = 5  # more kinds of words among numbers are categories
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?"


def _typed(name: str, type_: str) -> str:
    """The option that gives a column a type, as a shell takes it and YAML reads it."""
    key = (
        name
        if re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in _YAML
        else json.dumps(name, ensure_ascii=False)
    )
    return f"--set {shlex.quote(f'column_types={{{key}: {type_}}}')}"


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
    other = "," if decimal == "." else "."
    point, comma_ = re.escape(decimal), re.escape(other)
    for name in frame.columns:
        if name in (column_types or {}) or pd.api.types.infer_dtype(frame[name], skipna=True) != "string":
            continue
        cells = frame[name].reset_index(drop=True).dropna().str.strip()
        number = cells.str.fullmatch(number_pattern(decimal, thousands))
        if decimal == ".":
            number |= pd.to_numeric(cells, errors="coerce").notna()
        grouped = cells.str.fullmatch(rf"[-+]?\d{{1,3}}({comma_}\d{{3}})+({point}\d+)?")
        comma = cells.str.fullmatch(rf"[-+]?[\d{point}]*{comma_}\d+")
        others = cells[~number]
        words = others[~(grouped | comma)[~number]].unique()
        if cells.str.fullmatch(_DATE).mean() > 0.9:
            what, advice = "dates", _typed(name, "datetime")
        elif others.empty or (number | grouped | comma).mean() <= 0.5 or len(words) > _PLACEHOLDERS:
            continue
        else:
            what, options = "numbers", [f"--na {shlex.quote(word)}" for word in words]
            if (comma & ~grouped & ~number).any():
                options.append(f"--decimal '{other}'")
            elif (grouped & ~number).any():
                options.append(f"--thousands '{other}'")
            advice = " ".join(options)
        row = others.index[0]
        raise DataError(
            f"column '{name}' of '{source}' holds {what} and was read as text ('{others[row][:60]}' in row "
            f"{row}): pass {advice}, or {_typed(name, 'categorical')} if it is meant so"
        )


def described(schema: TableSchema, frame: Any) -> Iterator[str]:
    """Yield a table's shape and, for each of its first 60 columns, its type and what is odd about it."""
    features = {feature.column: feature for feature in schema.features if feature.part in (None, "days")}
    counts: dict[str, int] = {}
    for feature in features.values():
        counts[feature.type] = counts.get(feature.type, 0) + 1
    kinds = ", ".join(f"{count} {type_}" for type_, count in counts.items())
    yield f"{len(frame):,} rows, {len(features)} columns: {kinds}"
    unknown = schema.unknown_shares(schema.encode(frame))
    for feature in [*features.values()][:_MOST_LINES]:
        notes = [feature.type, *_notes(feature, frame[feature.column], unknown.get(feature.column, 0.0))]
        yield f"  {feature.column}: {', '.join(notes)}"
    if len(features) > _MOST_LINES:
        yield f"  … and {len(features) - _MOST_LINES} more"


def _notes(feature: Feature, series: Any, unknown: float) -> Iterator[str]:
    if feature.type == "categorical":
        yield f"{len(feature.categories)} categories"
    if missing := float(series.isna().mean()):
        yield "empty" if missing == 1 else f"{missing:.1%} missing"
    if unknown:
        yield f"{unknown:.1%} unknown (too rare)"
    distinct = series.nunique()
    if distinct == 1:
        yield "constant"
    whole = feature.type == "categorical" or (feature.type == "numeric" and feature.whole)
    if whole and len(series) >= _FEW_ROWS and distinct == len(series):
        yield "another value in every row, as an id has: leave it out if it is one"


def unknown_line(shares: Mapping[str, float]) -> str:
    """Return which columns hold values that the fit did not know, with their shares; "" if none do."""
    some = [f"{column} {share:.1%}" for column, share in shares.items() if not np.isclose(share, 0)]
    return f"values that the fit did not know: {', '.join(some)}" if some else ""
