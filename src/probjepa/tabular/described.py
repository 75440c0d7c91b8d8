"""What a table is read as, in lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from probjepa.errors import counted
from probjepa.tabular.features import Feature
from probjepa.tabular.schema import TableSchema

_MOST_LINES = 60
_MANY = 0.05  # of a column's cells are not beyond its range by chance
_FEW_ROWS = 20  # so few differ by chance


def described(schema: TableSchema, frame: Any) -> Iterator[str]:
    """Yield a table's shape and, for each of its first 60 columns, its type and what is odd about it."""
    features = {feature.column: feature for feature in schema.features if feature.part in (None, "days")}
    counts: dict[str, int] = {}
    for feature in features.values():
        counts[feature.type] = counts.get(feature.type, 0) + 1
    kinds = ", ".join(f"{count} {type_}" for type_, count in counts.items())
    yield f"{counted(len(frame), 'row')}, {counted(len(features), 'column')}: {kinds}"
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


def new_lines(schema: TableSchema, frame: Any) -> Iterator[str]:
    """Yield which columns hold values that the fit did not know, and which many beyond its range."""
    encoded = schema.encode(frame)
    unknown = {column: share for column, share in schema.unknown_shares(encoded).items() if share}
    beyond = {column: share for column, share in schema.beyond_shares(encoded).items() if share > _MANY}
    for what, shares in (("that the fit did not know", unknown), ("beyond the range of the fit", beyond)):
        if shares:
            yield f"values {what}: {', '.join(f'{column} {share:.1%}' for column, share in shares.items())}"
