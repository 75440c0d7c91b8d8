"""Columns of dates: whether the day or the month stands first, the instants of the cells, their parts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError
from probjepa.tabular.frames import not_of_type, pandas

DATETIME_PARTS = ("days", "month", "weekday", "hour")
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_FIRST = re.compile(r"\s*\d{4}")
_YEAR_LAST = re.compile(r"(?<![\d:])(\d{1,2})([-/. ])(\d{1,2})\2(\d{4}|\d{2})(?!\d)")
_ISO_DATE = re.compile(r"(?<!\d)\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}(?!\d)")
_HAS_YEAR = re.compile(r"\d{4}|[^\W\d]{3}\D?\d\d")  # without one it would be of today
_FOUR_DIGITS = re.compile(r"(?<![-+\d])\d{4}(?!\d)")  # a year's, not a zone's
_COLON_ZONE = re.compile(r"[-+]\d\d:\d\d$")
_CENTURY = 69  # two digits from here on are of 19.., as POSIX has it
_EARLIEST = 100  # a year that a text with the name of a month may have: Jan-21 is no day of year 1
_MONTHS = tuple(f"{m}{by}{y}" for y in ("%Y", "%y") for m in ("%b", "%B", "%d-%b", "%d %b") for by in " -")
_AS_ISO = "write them as YYYY-MM-DD"


def day_first(column: str, series: Any) -> bool | None:
    """Return whether a column's dates are written day first, as 31/12/2021 is; None: no cell depends on it.

    Raises
    ------
    DataError
        if both orders read all cells, and differently, or neither does
    """
    seen: dict[bool | None, str] = {}  # the order that a cell is in (None: in both) → the first such cell
    for text in _texts(series):
        if found := _year_last(text):
            first, second = int(found[1]), int(found[3])
            if first != second:
                seen.setdefault(True if first > 12 else False if second > 12 else None, text)
    if True in seen and False in seen:
        raise DataError(
            f"column {column!r} has dates with the day first ({seen[True][:60]!r}) and with the month first "
            f"({seen[False][:60]!r}): {_AS_ISO}"
        )
    if None in seen and len(seen) == 1:
        raise _ambiguous(column, seen[None])
    return None if not seen else True in seen


def _ambiguous(column: str, text: str) -> DataError:
    return DataError(
        f"column {column!r} holds {text[:60]!r}, of which the day or the month may stand first: {_AS_ISO}"
    )


def _texts(series: Any) -> dict[str, None]:
    """The distinct texts of a column, in order; those of a column of another type are none."""
    dtype, types = series.dtype, pandas().api.types
    if types.is_numeric_dtype(dtype) or types.is_datetime64_any_dtype(dtype):
        return {}
    return dict.fromkeys(cell for cell in series.astype(object) if isinstance(cell, str))


def _year_last(text: str) -> re.Match[str] | None:
    return None if _YEAR_FIRST.match(text) else _YEAR_LAST.search(text)


def _year_first(column: str, text: str, day_first: bool | None) -> str:
    """A date with its year first, which is read in one way."""
    found = _year_last(text)
    if found is None:
        return text
    first, second, year = int(found[1]), int(found[3]), int(found[4])
    if day_first is None and first <= 12 and second <= 12 and first != second:
        raise _ambiguous(column, text)
    day, month = (first, second) if day_first or (day_first is None and first > 12) else (second, first)
    if len(found[4]) == 2:
        year = _full_year(year)
    return f"{text[: found.start()]}{year:04}-{month:02}-{day:02}{text[found.end() :]}"


def _full_year(two_digits: int) -> int:
    return two_digits + (1900 if two_digits >= _CENTURY else 2000)


def format_of(column: str, texts: Sequence[str], day_first: bool | None = None) -> str:
    """Return the format, as ``strftime`` has it, in which dates are written; that of ISO 8601 if no one is.

    It is of one text and reads all of them. ``day_first`` is as of ``instants``.
    """
    from pandas.tseries.api import guess_datetime_format

    pd = pandas()
    cells = pd.Series(texts, dtype=object)
    when = instants(column, cells, day_first)
    for text in texts:
        found = _year_last(text)
        order = bool(day_first) if found is None or day_first is not None else int(found[1]) > 12
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an order that the text does not have
            known = guess_datetime_format(text, dayfirst=order)
        if known is None and found is not None and found[0] == text and len(found[4]) == 2:
            known = found[2].join(["%d", "%m", "%y"] if order else ["%m", "%d", "%y"])
        if known is None or re.search(r"[^\W\d_]", re.sub(r"%.|T", "", known)):  # "Tue" would be of all days
            continue
        read = pd.to_datetime(cells, format=known, errors="coerce", utc=True)
        if (read == when).all():
            zone = "Z" if text.endswith("Z") else "+00:00" if _COLON_ZONE.search(text) else "%z"
            return str(known).replace("%z", zone)
    for known in _MONTHS:
        if (pd.to_datetime(cells, format=known, errors="coerce", utc=True) == when).all():
            return known
    return "%Y-%m-%d" if len(texts[0]) <= 10 else "%Y-%m-%d %H:%M:%S"


def instants(column: str, series: Any, day_first: bool | None = None) -> Any:
    """Return a datetime column (N,) in UTC, in the unit that holds its range, or raise.

    A cell is read by itself: day and month in the order that ``day_first`` returned of the fit's column.
    """
    pd = pandas()
    missing = series.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(series.dtype) and not missing.all():
        raise not_of_type(column, series, ~missing, "datetime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of text that pandas will no longer read
        if texts := [*_texts(series)]:
            iso = dict(zip(texts, _iso_texts(column, texts, day_first), strict=True))
            cells = [iso[cell] if isinstance(cell, str) else cell for cell in series.astype(object)]
            plain = pd.Series(cells, index=series.index, dtype=object)
            parsed = pd.to_datetime(plain, errors="coerce", utc=True, format="ISO8601")
        else:
            parsed = pd.to_datetime(series, errors="coerce", utc=True)
    if (bad := parsed.isna().to_numpy() & ~missing).any():
        order = "" if day_first is None else f" ({'day' if day_first else 'month'} first, as in the fit)"
        raise not_of_type(column, series, bad, f"datetime{order}")
    return parsed


def _iso_texts(column: str, texts: list[str], day_first: bool | None) -> list[str]:
    """Texts as ISO 8601 has them; "" for what is no date, or may be several."""
    pd = pandas()
    known = pd.Series(
        [_year_first(column, text, day_first) if any(map(str.isdigit, text)) else "" for text in texts],
        dtype=object,
    )  # "today" and "now" are no dates
    others = known[pd.to_datetime(known, errors="coerce", utc=True, format="ISO8601").isna()]
    if len(others):  # names of months, AM and PM
        month, day = (
            pd.to_datetime(others, errors="coerce", utc=True, format="mixed", dayfirst=of)
            for of in (False, True)
        )
        alone = others.map(lambda text: len(_ISO_DATE.findall(text)) == 1)  # and not from one day to another
        sure = alone | ((month == day) & others.str.contains(_HAS_YEAR) & ~others.str.contains(_ISO_DATE))
        sure &= month.dt.year >= _EARLIEST
        found = [
            _of_century(when, text).isoformat() if is_sure and when == when else ""
            for when, is_sure, text in zip(month, sure, others, strict=True)
        ]
        known[others.index] = found
    iso: list[str] = known.tolist()
    return iso


def _of_century(when: Any, text: str) -> Any:
    """The date of a text, whose year of two digits pandas reads by the clock: within 50 years of today."""
    if _FOUR_DIGITS.search(text):
        return when
    return when.replace(year=_full_year(when.year % 100))


def datetime_parts(
    column: str, series: Any, day_first: bool | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Return a datetime column's parts by name, each (N,), NaN where missing: UTC if it has a time zone.

    "days": since 1970-01-01, with fraction; "month": 1 to 12; "weekday": 0 (Monday) to 6; "hour": 0 to 24.
    """
    when = instants(column, series, day_first).dt.tz_localize(None).to_numpy()
    missing = np.isnat(when)
    day, month = when.astype("datetime64[D]"), when.astype("datetime64[M]")
    second = (when - day).astype("timedelta64[s]").astype(np.int64)
    ticks = when.astype(np.int64) - day.astype(when.dtype).astype(np.int64)
    a_day = 86_400 * _TICKS[np.datetime_data(when.dtype)[0]]
    parts = {
        "days": day.astype(np.int64) + ticks / a_day,
        "month": month.astype(np.int64) % 12 + 1,
        "weekday": (day.astype(np.int64) + 3) % 7,
        "hour": second // 3600 + second // 60 % 60 / 60 + second % 60 / 3600,
    }
    return {name: np.where(missing, np.nan, parts[name]) for name in DATETIME_PARTS}
