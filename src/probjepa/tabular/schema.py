"""What a table holds: its columns' types, how each becomes numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from probjepa._arrays import power_of_two
from probjepa.errors import ConfigError, DataError
from probjepa.registry import importing
from probjepa.tabular.dates import datetime_parts, day_first, instants
from probjepa.tabular.frames import ColumnType as ColumnType
from probjepa.tabular.frames import (
    Scalar,
    as_frame,
    category_codes,
    category_labels,
    guess_type,
    named,
    numbers,
    other_columns,
)
from probjepa.tabular.tokens import Layout
from probjepa.tabular.traps import warn_of_texts
from probjepa.typed import checked

NumericTransform = Literal["standard", "quantile"]

# a value this many standard deviations out is cut off: only so that float32 cannot overflow downstream
_FAR = 1e4
_QUANTILES = 1000
_PIECES = 500  # at least, of the lines of which ``backward`` is made where a prediction is undone
_TAIL_PIECES = 20
_AT_ONCE = 32  # cells whose predictions are undone together


class EncodedTable(NamedTuple):
    """A table as numbers: numeric (N, Dn) float32, 0 where missing (N, Dn) bool; codes (N, Dc) int64.

    A code is 0 for a missing cell, 1 for a category that the fit did not know, k + 2 for its k-th category.
    """

    numeric: npt.NDArray[np.float32]
    missing: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Feature:
    """One token's worth of a table: a column, or a part of a datetime column.

    Attributes
    ----------
    name, column, type, part
        "when.hour" is part "hour" of the column "when"; other features are named as their column
    location, scale
        of the standardisation; of a constant or all-missing column scale is 1
    quantiles
        of the quantile transform, in rising order; empty: standardised
    tail
        the probability beyond the largest, and below the smallest: half of one of the n values, so that
        the i-th of them is at (i − ½)/n (Hazen 1914)
    categories
        known ones; code k + 2 is ``categories[k]``
    low, high
        of the numbers that were seen; None: none were, the column was empty
    whole
        whether they were whole numbers
    day_first
        of a date's part: whether texts have the day before the month; None: none of the fit's depended on it
    """

    name: str
    column: str
    type: ColumnType
    part: str | None = None
    location: float = 0.0
    scale: float = 1.0
    quantiles: tuple[float, ...] = ()
    tail: float = 0.0
    categories: tuple[Scalar, ...] = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False
    day_first: bool | None = None

    @property
    def numeric(self) -> bool:
        """Whether it is one number (a datetime's part is)."""
        return self.type in ("numeric", "datetime")

    @property
    def _unit(self) -> float:
        """What to divide the column's numbers by, so that differences of the largest do not overflow."""
        return float(power_of_two(max(abs(self.low or 0.0), abs(self.high or 0.0))))

    def _over(self, unit: float) -> Feature:
        """Return that of a column of these numbers over a power of two."""
        low, high = (None if of is None else of / unit for of in (self.low, self.high))
        grid = tuple(of / unit for of in self.quantiles)
        location, scale = self.location / unit, self.scale / unit
        return replace(self, location=location, scale=scale, quantiles=grid, low=low, high=high)

    def forward(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Transform finite numbers (N,) to those that the model reads."""
        if (unit := self._unit) != 1:
            with np.errstate(over="ignore"):
                return self._over(unit).forward(values / unit)
        if len(self.quantiles) > 1:
            with importing():
                from scipy.special import ndtri

            grid, levels = np.array(self.quantiles), np.linspace(0, 1, len(self.quantiles))
            # runs of equal quantiles: the middle of the run, from both ends
            up = np.interp(values, grid, levels)
            down = 1 - np.interp(-values, -grid[::-1], levels)
            inside = ndtri(self.tail + (1 - 2 * self.tail) * (up + down) / 2)
            with np.errstate(over="ignore"):
                # beyond the fit's range by standard deviations: what lies far out is told from the edge
                beyond = (values - np.clip(values, grid[0], grid[-1])) / self.scale
            return cast(npt.NDArray[np.float64], np.clip(inside + beyond, -_FAR, _FAR))
        with np.errstate(over="ignore"):
            scaled: npt.NDArray[np.float64] = np.clip((values - self.location) / self.scale, -_FAR, _FAR)
        return scaled

    def backward(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Undo ``forward``: the model's numbers (N,) to the table's."""
        if (unit := self._unit) != 1:
            with np.errstate(over="ignore"):
                return self._over(unit).backward(values) * unit
        if len(self.quantiles) > 1:
            with importing():
                from scipy.special import ndtr, ndtri

            levels = np.linspace(0, 1, len(self.quantiles))
            edge = float(ndtri(1 - self.tail))
            inside = np.interp(
                (ndtr(values) - self.tail) / (1 - 2 * self.tail), levels, np.array(self.quantiles)
            )
            beyond = (values - np.clip(values, -edge, edge)) * self.scale
            return cast(npt.NDArray[np.float64], inside + beyond)
        return self.location + values * self.scale

    def spread(
        self, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64], reach: float
    ) -> tuple[npt.NDArray[np.float64], ...]:
        """Undo ``forward`` of N(mean, std²), (N,) each: its mean, median, std, and mean ± reach·std.

        The first two moments are those of straight lines between the ends of 500 pieces or more: a column of
        few values has steps, which a quadrature would miss. All but the std in the range that the fit saw.
        """
        if (unit := self._unit) != 1:
            return tuple(of * unit for of in self._over(unit).spread(mean, std, reach))
        quantiles = (self.backward(mean + z * std) for z in (0.0, -reach, reach))
        median, low, high = (np.clip(of, self.low, self.high) for of in quantiles)
        ends, at, std = *self._lines, np.maximum(std, 1e-12)
        first, deviation = np.empty_like(mean), np.empty_like(mean)
        for start in range(0, len(mean), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            z = (ends - mean[part, None]) / std[part, None]
            moments = _clipped_moments(z, at - median[part, None])
            first[part], deviation[part] = median[part] + moments[0], moments[1]
        return first, median, deviation, low, high

    @cached_property
    def _lines(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Where the pieces of ``backward`` begin and end, rising, and what it is there; beyond it is flat."""
        if len(self.quantiles) < 2:
            ends = self.forward(np.array([self.low, self.high], dtype=float))
            return ends, np.array([self.low, self.high], dtype=float)
        with importing():
            from scipy.special import ndtri

        n = len(self.quantiles) - 1
        levels = np.linspace(0, 1, n * math.ceil(_PIECES / n) + 1)
        tails = np.linspace(0, levels[1], _TAIL_PIECES)[1:-1]  # there a step of the level is a long one
        levels = np.r_[0, tails, levels[1:-1], 1 - tails[::-1], 1]
        at = np.interp(levels, np.linspace(0, 1, n + 1), np.array(self.quantiles))
        turns = np.r_[True, (np.diff(at, 2) != 0) | (np.diff(at)[1:] != 0), True]  # not within equal ones
        ends = ndtri(self.tail + (1 - 2 * self.tail) * levels[turns])
        return ends, at[turns]


def _clipped_moments(
    z: npt.NDArray[np.float64], at: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and std (N,) of f(Z), Z ~ N(0, 1), of f that is straight between its values ``at`` z (N, K).

    Below the first z and above the last one f is flat.
    """
    with importing():
        from scipy.special import ndtr

    below, density = ndtr(z), np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    share, first = np.diff(below), -np.diff(density)
    second = share - np.diff(z * density)
    width = np.diff(z)
    slope = np.divide(np.diff(at), width, out=np.zeros_like(width), where=width > 0)
    level = at[:, :-1] - slope * z[:, :-1]
    beyond = below[:, 0], ndtr(-z[:, -1])
    mean = (level * share + slope * first).sum(1) + beyond[0] * at[:, 0] + beyond[1] * at[:, -1]
    square = (level**2 * share + 2 * level * slope * first + slope**2 * second).sum(1)
    square += beyond[0] * at[:, 0] ** 2 + beyond[1] * at[:, -1] ** 2
    return mean, np.sqrt(np.clip(square - mean**2, 0, None))


def _standardised(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Location and scale of finite numbers; by their largest, so that squares of 1e300 do not overflow."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 1.0
    largest = max(abs(low), abs(high))
    unit = values / largest
    scale = float(unit.std()) * largest
    # the spread of numbers that are equal but for rounding, or too small for float64, is 0
    return float(unit.mean()) * largest, scale if scale > 0 else 1.0


def _column_features(
    column: str, series: Any, type_: ColumnType, numeric_transform: NumericTransform, max_categories: int
) -> list[Feature]:
    if type_ in ("categorical", "boolean"):
        categories = category_labels(column, series, boolean=type_ == "boolean", most=max_categories)
        return [Feature(column, column, type_, categories=categories)]
    order = day_first(column, series) if type_ == "datetime" else None
    parts: list[tuple[str | None, npt.NDArray[np.float64]]] = (
        [(None, numbers(column, series))]
        if type_ == "numeric"
        else [*datetime_parts(column, series, order).items()]
    )
    features = []
    for part, values in parts:
        seen = values[~np.isnan(values)]
        location, scale = _standardised(seen)
        grid: tuple[float, ...] = ()
        if numeric_transform == "quantile" and len(seen) and seen.min() < seen.max():
            levels = np.linspace(0, 1, min(_QUANTILES, max(len(seen), 2)))
            unit = float(power_of_two(float(np.abs(seen).max())))
            grid = tuple((np.maximum.accumulate(np.quantile(seen / unit, levels)) * unit).tolist())
        name = column if part is None else f"{column}.{part}"
        tail = 0.5 / max(len(seen), 1)
        feature = Feature(name, column, type_, part, location, scale, grid, tail, day_first=order)
        if len(seen):
            whole = bool((seen == np.round(seen)).all())
            feature = replace(feature, low=float(seen.min()), high=float(seen.max()), whole=whole)
        features.append(feature)
    return features


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
        if not isinstance(column_types or {}, Mapping):
            raise ConfigError(f"column_types is {column_types!r}: give a mapping of columns to their types")
        types = dict(column_types or {})
        if absent := sorted(set(types) - set(frame.columns), key=str):
            raise ConfigError(f"column_types names columns that are not in the table: {named(absent)}")
        warn_of_texts(frame, types)
        features: list[Feature] = []
        for column in frame.columns:
            type_ = types.get(column) or guess_type(column, frame[column])
            if type_ not in get_args(ColumnType):
                known = ", ".join(get_args(ColumnType))
                raise ConfigError(f"column_types[{column!r}] is {type_!r}: use one of {known}")
            features += _column_features(column, frame[column], type_, numeric_transform, max_categories)
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

    def unknown_shares(self, encoded: EncodedTable) -> dict[str, float]:
        """Return, for each categorical column, the share of its observed cells that the fit did not know."""
        columns = [self.features[i].column for i in self.layout.categorical]
        unknown, observed = (encoded.codes == 1).sum(0), (encoded.codes > 0).sum(0)
        return dict(zip(columns, (unknown / np.maximum(observed, 1)).tolist(), strict=True))

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
