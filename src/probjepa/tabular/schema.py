"""What a table holds: its columns' types, how each becomes numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from probjepa.errors import ConfigError, DataError
from probjepa.tabular.dates import datetime_parts, instants
from probjepa.tabular.features import Feature, NumericTransform, column_features
from probjepa.tabular.frames import ColumnType as ColumnType
from probjepa.tabular.frames import (
    as_frame,
    category_codes,
    guess_type,
    named,
    numbers,
    other_columns,
)
from probjepa.tabular.tokens import Layout
from probjepa.tabular.traps import warn_of_texts
from probjepa.typed import checked

_BEYOND = 10  # rows


class EncodedTable(NamedTuple):
    """A table as numbers: numeric (N, Dn) float32, 0 where missing (N, Dn) bool; codes (N, Dc) int64.

    A code is 0 for a missing cell, 1 for a category that the fit did not know, k + 2 for its k-th category.
    """

    numeric: npt.NDArray[np.float32]
    missing: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.int64]


class TableSchema:
    """The columns of a table: their types and how each cell becomes a number or a code.

    Types are inferred: bool → boolean; numbers → numeric; dates and times → datetime, which becomes numeric
    parts (days since 1970, month, weekday, hour of the day); everything else → categorical. NaN, None, NaT
    and NA are missing cells. A constant column is coded 0; an all-missing column is missing throughout.

    Parameters
    ----------
    features
        one a token, in the table's order

    Raises
    ------
    DataError
        if a column is called like a part of a date, as "when.days" beside the date "when" is

    Examples
    --------
    >>> import pandas as pd
    >>> schema = TableSchema.infer(pd.DataFrame({"a": [1.0, None, 3.0], "b": ["x", "y", None]}))
    >>> schema.encode(pd.DataFrame({"b": ["y", "z"], "a": [2.0, 3.0]})).codes.tolist()
    [[3], [1]]
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        names = [feature.name for feature in self.features]
        if twice := [f for f in self.features if f.part is not None and names.count(f.name) > 1]:
            raise DataError(
                f"column {twice[0].name!r} is called like a part of the date {twice[0].column!r}: rename it"
            )
        self.columns = tuple(dict.fromkeys(feature.column for feature in features))
        #: columns whose categories are texts; a file in which all of them look like numbers holds them too
        self.texts = tuple(
            feature.column
            for feature in features
            if feature.categories and all(isinstance(known, str) for known in feature.categories)
        )

    @classmethod
    def infer(
        cls,
        table: Any,
        *,
        column_types: Mapping[str, ColumnType] | None = None,
        numeric_transform: NumericTransform = "standard",
        max_categories: int = 256,
    ) -> TableSchema:
        """Read the schema off a table.

        Parameters
        ----------
        table
            DataFrame (pandas, polars), pyarrow Table, or array (N, D), whose columns are named x0, x1, …
        column_types
            column → "numeric", "categorical", "boolean" or "datetime", where the inferred one is not meant
        numeric_transform
            "standard": (x − mean)/std; "quantile": to the normal distribution by 1,000 quantiles,
            and beyond the fit's range on by standard deviations
        max_categories
            the most frequent that are kept of each column; the others are "unknown"

        Raises
        ------
        DataError
            for an empty table, Inf, complex or nested values, values that are not of their column's type,
            dates of which the day or the month may stand first, or a column that is called like a part of a
            date
        ConfigError
            for an unknown type, or the type of a column that is not there
        """
        if numeric_transform not in get_args(NumericTransform):
            raise ConfigError(f"numeric_transform is {numeric_transform!r}: use 'standard' or 'quantile'")
        if max_categories < 1:
            raise ConfigError(f"max_categories is {max_categories}: use at least 1")
        frame = as_frame(table)
        given = column_types or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"column_types is {column_types!r}: give a mapping of columns to their types")
        types = {str(name): of for name, of in given.items()}  # as ``as_frame`` calls them
        if len(types) < len(given):
            raise ConfigError(f"column_types names a column twice: {named([*map(str, given)])}")
        if absent := sorted(set(types) - set(frame.columns), key=str):
            raise ConfigError(f"column_types names columns that are not in the table: {named(absent)}")
        warn_of_texts(frame, types)
        features: list[Feature] = []
        for column in frame.columns:
            type_ = types.get(column) or guess_type(column, frame[column])
            if type_ not in get_args(ColumnType):
                known = ", ".join(get_args(ColumnType))
                raise ConfigError(f"column_types[{column!r}] is {type_!r}: use one of {known}")
            features += column_features(column, frame[column], type_, numeric_transform, max_categories)
        return cls(features)

    @cached_property
    def layout(self) -> Layout:
        """What the networks need to know of it."""
        types = get_args(ColumnType)
        return Layout(
            numeric=tuple(i for i, f in enumerate(self.features) if f.numeric),
            categorical=tuple(i for i, f in enumerate(self.features) if not f.numeric),
            cardinalities=tuple(len(f.categories) for f in self.features if not f.numeric),
            types=tuple(types.index(f.type) for f in self.features),
            constant=tuple(f.constant for f in self.features if f.numeric),
        )

    def frame(self, table: Any) -> Any:
        """Return the table as a DataFrame of this schema's columns, in its order.

        Columns are picked by name, so another order is fine; an array without names is taken by position.

        Raises
        ------
        DataError
            if the names or the number of columns differ (the line names which)
        """
        frame = as_frame(table, self.columns)
        if said := other_columns(frame.columns, self.columns):
            raise DataError(
                f"the columns are not those of the fit ({said}): "
                "the feature names should match those that were passed during fit"
            )
        return frame[list(self.columns)]

    def dated(self, table: Any) -> Any:
        """Return ``frame`` of a table with its dates read, so that another reader takes them for the same."""
        frame = self.frame(table)
        for feature in self.features:
            if feature.part == "days":
                when = instants(feature.column, frame[feature.column], feature.day_first)
                frame = frame.assign(**{feature.column: when})
        return frame

    def encode(self, table: Any) -> EncodedTable:
        """Encode a table of N rows; a category that the fit did not know is coded 1, "unknown".

        Raises
        ------
        DataError
            if the columns differ from the fit's, or a cell is not of its column's type, or Inf
        """
        frame = self.frame(table)
        layout = self.layout
        numeric = np.zeros((len(frame), len(layout.numeric)), dtype=np.float32)
        missing = np.zeros(numeric.shape, dtype=bool)
        codes = np.zeros((len(frame), len(layout.categorical)), dtype=np.int64)
        parts: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        for k, i in enumerate(layout.numeric):
            feature = self.features[i]
            series = frame[feature.column]
            if feature.part is None:
                values = numbers(feature.column, series)
            else:
                if feature.column not in parts:
                    parts[feature.column] = datetime_parts(feature.column, series, feature.day_first)
                values = parts[feature.column][feature.part]
            missing[:, k] = np.isnan(values)
            numeric[~missing[:, k], k] = feature.forward(values[~missing[:, k]])
        for k, i in enumerate(layout.categorical):
            feature = self.features[i]
            codes[:, k] = category_codes(feature.column, frame[feature.column], feature.categories)
        return EncodedTable(numeric, missing, codes)

    def left_out(self, rows: EncodedTable, index: npt.NDArray[np.int64]) -> EncodedTable:
        """Return some of all encoded rows of the fit, by ``index``, each as by a schema of the others.

        A category that no other row has is unknown then, and the largest number is beyond the range.
        """
        numeric, codes = rows.numeric.copy(), rows.codes.copy()
        asked = np.isin(np.arange(len(codes)), index)
        for k, i in enumerate(self.layout.numeric):
            seen = ~rows.missing[:, k]
            numeric[seen, k] = self.features[i].left_out(
                rows.numeric[seen, k].astype(np.float64), asked[seen]
            )
        for k, i in enumerate(self.layout.categorical):
            if self.features[i].type == "categorical":  # of booleans both are known
                once = np.bincount(codes[:, k])[codes[:, k]] == 1
                codes[once & (codes[:, k] > 1), k] = 1
        return EncodedTable(numeric[index], rows.missing[index], codes[index])

    def unknown_shares(self, encoded: EncodedTable) -> dict[str, float]:
        """Return, for each categorical column, the share of its observed cells that the fit did not know."""
        columns = [self.features[i].column for i in self.layout.categorical]
        unknown, observed = (encoded.codes == 1).sum(0), (encoded.codes > 0).sum(0)
        return dict(zip(columns, (unknown / np.maximum(observed, 1)).tolist(), strict=True))

    def beyond_shares(self, encoded: EncodedTable) -> dict[str, float]:
        """Return, for each column of numbers or dates, the share of the rows that are beyond the fit's range.

        Of a date that is the part of which most are. Fewer than 10 rows are none: they may be so by chance.
        """
        shares: dict[str, float] = {}
        for k, i in enumerate(self.layout.numeric):
            feature, seen = self.features[i], ~encoded.missing[:, k]
            if feature.low is None:
                continue
            (low, high), cells = feature.ends, encoded.numeric[seen, k]
            count = int(((cells < low) | (cells > high)).sum())
            share = count / len(seen) if count >= _BEYOND else 0.0
            shares[feature.column] = max(share, shares.get(feature.column, 0.0))
        return shares

    def to_json(self) -> list[dict[str, Any]]:
        """Return it as lists, mappings and plain values."""
        return [asdict(feature) for feature in self.features]

    @classmethod
    def from_json(cls, features: Sequence[Mapping[str, Any]]) -> TableSchema:
        """Make it again from ``to_json``'s value, also after JSON has turned its tuples into lists.

        Raises
        ------
        KeyError
            for a field that is missing: its default would change what is read from a table
        """
        names = [field.name for field in fields(Feature)]
        whole = [{name: feature[name] for name in names} | dict(feature) for feature in features]
        return cls([checked("schema", feature, Feature) for feature in whole])
