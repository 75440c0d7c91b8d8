"""One token's worth of a table: how a column's numbers become the model's, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from probjepa._arrays import power_of_two
from probjepa.errors import warn
from probjepa.registry import importing
from probjepa.tabular.dates import datetime_parts, day_first
from probjepa.tabular.frames import ColumnType, Scalar, category_labels, numbers, pandas

NumericTransform = Literal["standard", "quantile"]

# a value this many standard deviations out is cut off: only so that float32 cannot overflow downstream
_FAR = 1e4
_ROUNDING = 1e-12  # numbers that differ by less, relatively, are one
_ROUNDED = 1e-6  # what float32 leaves of 1 − 1
_QUANTILES = 1000
_PIECES = 500  # at least, of the lines of which ``backward`` is made where a prediction is undone
_TAIL_PIECES = 20
_AT_ONCE = 32  # cells whose predictions are undone together


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
    def constant(self) -> bool:
        """Whether it is one number, of which the fit saw one value but for rounding, or none."""
        if not self.numeric or self.low is None or self.high is None:
            return self.numeric
        near = _ROUNDING * self._largest
        if self.whole:  # exact to 2^53, and beyond it all numbers are whole
            near = 0.0 if self._largest <= 2**53 else 4 * math.ulp(self._largest)
        return self.high - self.low <= near

    def _steps(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How many steps, −1, 0 or 1, numbers are from a constant; it is itself in float32 as well."""
        if self.low is None or self.high is None:
            return np.zeros(len(values))
        with np.errstate(over="ignore"):
            narrow = np.array([self.low, self.high]).astype(np.float32).astype(np.float64)
        near = min(_ROUNDING * self._largest, 0.5 if self.whole and self._largest <= 2**53 else math.inf)
        same = ((values >= self.low - near) & (values <= self.high + near)) | np.isin(values, narrow)
        return np.where(same, 0.0, np.where(values > self.high, 1.0, -1.0))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Transformed numbers, as float32 has them, below and above which one is beyond the fit's range.

        The same number in float32 is none. Not of a column that was empty.
        """
        ends = np.array([self.low, self.high], dtype=float)
        if not self.constant:
            with np.errstate(over="ignore"):
                narrow = np.nextafter(ends.astype(np.float32), np.array([-np.inf, np.inf], np.float32))
            ends = np.array([min(ends[0], narrow[0]), max(ends[1], narrow[1])], dtype=np.float64)
        low, high = self.forward(ends).astype(np.float32).tolist()
        return low, high

    @property
    def _unit(self) -> float:
        """What to divide the column's numbers by, so that differences of the largest do not overflow."""
        return float(power_of_two(self._largest))

    @property
    def _largest(self) -> float:
        return max(abs(self.low or 0.0), abs(self.high or 0.0))

    def _over(self, unit: float) -> Feature:
        """Return that of a column of these numbers over a power of two."""
        low, high = (None if of is None else of / unit for of in (self.low, self.high))
        grid = tuple(of / unit for of in self.quantiles)
        location, scale = self.location / unit, self.scale / unit
        return replace(self, location=location, scale=scale, quantiles=grid, low=low, high=high)

    def forward(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Transform finite numbers (N,) to those that the model reads.

        Of a constant column another number is one step off, however far it is; of an empty one all are 0.
        """
        if self.constant:
            return self._steps(values)
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

    def left_out(
        self, values: npt.NDArray[np.float64], asked: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float64]:
        """Transformed numbers (N,) of the fit; those ``asked`` (N,) as ``forward`` had them of the others.

        Of quantiles that moves the largest and the smallest, where no other is the same: beyond the others'
        range, by their standard deviations. A number whose others are constant stays.
        """
        if self.constant or len(values) < 3:
            return values
        if len(self.quantiles) < 2:
            rest = len(values) - 1
            share = 1 - values**2 / rest  # of the variance, that of the others
            return np.where(
                asked & (share > _ROUNDED),
                values * np.sqrt((1 + 1 / rest) / np.maximum(share, _ROUNDED)),
                values,
            )
        if (unit := self._unit) != 1:
            return self._over(unit).left_out(values, asked)
        found = values.copy()
        for at, edge in ((values.argmax(), self.high), (values.argmin(), self.low)):
            if not asked[at]:
                continue
            others = np.delete(values, at)
            near = others[np.abs(others - values[at]).argmin()]
            if near != values[at] and others.min() < others.max():
                near, *_ = self.backward(np.array([near]))
                _, scale = _standardised(self.backward(others))
                found[at] += np.clip((edge - near) / scale, -_FAR, _FAR)
        return np.clip(found, -_FAR, _FAR)

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
        self,
        mean: npt.NDArray[np.float64],
        std: npt.NDArray[np.float64],
        reach: npt.NDArray[np.float64] | float,
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
    """Location and scale of finite numbers; over a power of two, so that squares of 1e300 do not overflow."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 1.0
    unit = float(power_of_two(max(abs(low), abs(high))))
    above = values / unit - low / unit  # 1e15 and 1e15 + 1 keep their difference
    scale = float(above.std()) * unit
    # the spread of numbers that are equal but for rounding, or too small for float64, is 0
    return (float(above.mean()) + low / unit) * unit, scale if scale > 0 else 1.0


def _warn_of_rounded(column: str, series: Any, seen: npt.NDArray[np.float64]) -> None:
    """Warn of a column of whole numbers of which some are one number in float64."""
    if not len(seen) or np.abs(seen).max() <= 2**53:
        return
    if series.dtype.kind not in "iu" and pandas().api.types.infer_dtype(series, skipna=True) != "integer":
        return
    if (found := len(np.unique(seen))) < (given := series.nunique()):
        warn(
            f"column {column!r} holds whole numbers beyond 2^53, of which float64 tells apart {found} of "
            f"{given}: subtract what they share, or pass column_types={{{column!r}: 'categorical'}}"
        )


def column_features(
    column: str, series: Any, type_: ColumnType, numeric_transform: NumericTransform, max_categories: int
) -> list[Feature]:
    """Return the features of a column of a type, as its cells (N,) say: one, or a datetime's four."""
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
        if part is None:
            _warn_of_rounded(column, series, seen)
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
