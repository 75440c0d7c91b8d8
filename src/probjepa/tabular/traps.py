"""Columns of text that hold numbers, dates or times, and indices that were written along."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache, lru_cache
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from probjepa.errors import DataError, short, warn
from probjepa.tabular.frames import pandas
from probjepa.tabular.text_files import number_pattern, with_leading_zeros, written_as_text

_YAML = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # YAML's own words
_TEXTS = ("string", "mixed-integer", "mixed")  # pandas' words for a column of text, or of text and numbers
_OBJECTS = {"period": "periods (to_timestamp() makes dates of them)", "time": "times of day"}
_PLACEHOLDERS = 5  # more kinds of words among numbers are categories
_READ = 10_000  # rows that a fit looks at, and texts by which a column is judged
_GAPS = (" ", "'")  # of thousands
_UNITS = (*"%‰$€£¥₹", "USD", "EUR", "GBP", "CHF")
_UNIT = "|".join(map(re.escape, _UNITS))
_LEADING, _TRAILING = re.compile(rf"([-+]?)({_UNIT})\s*"), re.compile(rf"\s*({_UNIT})$")
_MONTH = (
    "(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?"
    r"|nov(ember)?|dec(ember)?)\.?"
)
_DAY = r"\d{1,2}(st|nd|rd|th|er|º)?"
_WEEKDAY = r"([a-z]{3,9},? )?"
_DATES = (
    r"\d{4}([-/.])\d{1,2}\2\d{1,2}",
    r"\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})",
    r"\d{4}[-/]\d{1,2}",
    r"(0?[1-9]|1[0-2])[-/](19|20)\d\d",
    rf"{_WEEKDAY}{_DAY}[- ]{_MONTH},?[- ]\d{{2,4}}",
    rf"{_WEEKDAY}{_MONTH} {_DAY},? \d{{4}}",
    rf"{_MONTH}[- ]\d{{4}}",
)
# of other languages, by names of months that are no other words; and Mar-21, of the day 21 or the year
_MONTHS = (
    "(janvier|janv|jänner|januari?|enero|ene|gennaio|janeiro|février|févr|fév|februari?|febrero|febbraio|"
    "fevereiro|fev|märz|mrz|mars|marzo|março|maart|mrt|avril|avr|abril|abr|aprile|mayo|maggio|maio|mai|"
    "mei|juin|juni|junio|giugno|junho|juillet|juil|juli|julio|luglio|julho|août|aout|augustus|agosto|"
    "septiembre|settembre|setembro|octobre|oktober|okt|octubre|ottobre|outubro|noviembre|novembro|décembre|déc|"
    "dezember|dez|diciembre|dicembre|dezembro|января|февраля|марта|апреля|мая|июня|июля|августа|сентября|"
    rf"октября|ноября|декабря)|{_MONTH}"
)
# 2021-Q1, 2021-1Q and 2021-W05(-3), Q1 2021, Q1 21 and W05/2021, 1Q21
_QUARTER = (
    r"(19|20)\d\d[-/ ]?(q[1-4]|[1-4]q|w[0-5]?\d(-[1-7])?)|(q[1-4]|w[0-5]?\d)[-/ ](19|20)\d\d"
    r"|(q[1-4][-/ ']'?|[1-4]q[-/ ]?'?)((19|20)\d\d|\d\d)"
)
_WORDED = re.compile(
    rf"{_WEEKDAY}({_DAY}\.?[- ](de )?)?({_MONTHS})\.?[- ](de )?(\d{{4}}|\d{{2}})( г\.)?"
    rf"|{_WEEKDAY}({_MONTHS})\.? {_DAY},? \d{{4}}|{_QUARTER}",
    re.IGNORECASE,
)
_DATE = re.compile(rf"({'|'.join(_DATES)})([ T,].*)?", re.IGNORECASE)
_SECONDS, _HALF_DAY = r":[0-5]\d([.,]\d+)?", r" ?[ap]\.?m\.?"
_TIME = re.compile(rf"([01]?\d|2[0-3]):[0-5]\d({_SECONDS})?({_HALF_DAY})?", re.IGNORECASE)
_DURATION = re.compile(r"-?\d+ days [-+]?\d\d:\d\d:\d\d(\.\d+)?")  # as pandas writes them
_SURELY_TIME = re.compile(rf"\d\d:.*|.*(:.*:|{_HALF_DAY}).*", re.IGNORECASE)  # and no ratio, as 1:10 is
_MARKS = (*_UNITS, "(", "\N{MINUS SIGN}")

Signs: TypeAlias = tuple[str, str | None]  # decimal, thousands


class Trap(NamedTuple):
    """A column of text that holds something else.

    Attributes
    ----------
    column, what
        its name, and "numbers", "dates", "dates in words" (that are not read), "times" or "durations"
    cell, row
        the first text that is not read as such, and where it stands
    decimal, thousands
        of numbers, the signs that they are written with
    words
        the texts among them that are none, as they are written, if they are few
    units
        of numbers, the signs that stand before or behind them
    decimal_too
        whether the numbers might have the sign for thousands as their decimal sign
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
    decimal_too: bool = False


def text_traps(
    frame: Any, types: Mapping[str, Any] | None = None, decimal: str = ".", thousands: str | None = None
) -> Iterator[Trap]:
    """Yield the columns (N,) of text, without a type in ``types``, that hold numbers, dates or times.

    More than half of the cells must be such, beside few texts. ``decimal`` and ``thousands`` are
    the signs that the table was read with.
    """
    pd = pandas()
    for name in frame.columns:
        if name in (types or {}) or pd.api.types.infer_dtype(frame[name], skipna=True) not in _TEXTS:
            continue
        cells = [(row, cell) for row, cell in enumerate(frame[name]) if _is_written(cell)]
        if 2 * len(cells) <= frame[name].notna().sum() or not any(isinstance(of, str) for _, of in cells):
            continue  # most are of other kinds, as dates beside a few texts
        if trap := _trap(name, _Texts(cells), (decimal, thousands)):
            yield trap


def _is_written(cell: Any) -> bool:
    """Whether a cell of a column of text is text, or a number that stands among texts."""
    if isinstance(cell, str):
        return True
    return isinstance(cell, Real | Decimal) and not isinstance(cell, bool) and cell == cell


class _Texts:
    """The cells of a column of text: (row, cell) each, and how many of their texts are alike."""

    def __init__(self, cells: Sequence[tuple[int, Any]]) -> None:
        self.cells = cells
        self.counts = Counter(str(cell) for _, cell in cells)
        self.shown = dict(self.counts.most_common(_READ))
        self.half = sum(self.shown.values()) / 2

    def share(self, of: Callable[[str], bool]) -> int:
        """How many cells are such texts."""
        return sum(count for text, count in self.shown.items() if of(text.strip()))

    def others(self, of: Callable[[str], bool]) -> tuple[str, ...]:
        """The texts that are not."""
        return tuple(text for text in self.counts if not of(text.strip()))

    def first(self, of: Callable[[str], bool]) -> tuple[str, int]:
        """The first text that is none, or else the first, and its row."""
        texts = [one for one in self.cells if isinstance(one[1], str)]
        row, text = next((one for one in texts if not of(one[1].strip())), texts[0])
        return text, row


def _trap(name: str, texts: _Texts, read: Signs) -> Trap | None:
    if texts.share(lambda text: any(map(str.isdigit, text))) <= texts.half:
        return None
    if trap := _alike(name, "dates", texts, _is_date):
        return trap
    if trap := _alike(name, "dates in words", texts, lambda text: _is_date(text) or _is_worded(text)):
        return trap
    if texts.share(lambda text: _is_time(text) and _SURELY_TIME.fullmatch(text) is not None) > texts.half:
        return _alike(name, "times", texts, _is_time)
    if trap := _alike(name, "durations", texts, lambda text: _DURATION.fullmatch(text) is not None):
        return trap
    return _numbers(name, texts, read)


def _alike(name: str, what: str, texts: _Texts, of: Callable[[str], bool]) -> Trap | None:
    """The trap of a column of dates, or of times."""
    count = texts.share(of)
    words = texts.others(of) if count > texts.half else ()
    if count <= texts.half or (len(words) > _PLACEHOLDERS and count <= 1.8 * texts.half):
        return None
    return Trap(name, what, *texts.first(lambda _: False), words=words[:_PLACEHOLDERS])


def _numbers(name: str, texts: _Texts, read: Signs) -> Trap | None:
    decimals = (".", ",") if read[0] == "." else (",", ".")
    signs = [read, *((of, by) for of in decimals for by in (None, "," if of == "." else ".", *_GAPS))]

    def fit(of: Signs) -> int:
        return texts.share(lambda text: _is_number(_bare(text), of))

    fits = {of: fit(of) for of in dict.fromkeys(signs)}
    best = max(fits, key=fits.__getitem__)  # the first of equals
    where = texts.first(lambda text: _is_number(text, read))
    if fits[best] <= texts.half:
        any_signs = texts.share(lambda text: any(_is_number(_bare(text), of) for of in fits))
        return Trap(name, "numbers", *where, decimal="") if any_signs > 1.8 * texts.half else None
    words = texts.others(lambda text: _is_number(_bare(text), best))
    if len(words) > _PLACEHOLDERS:
        return None
    whole = [text.strip() for text in texts.counts]
    marked = {text.strip() for text in texts.counts.keys() - words if _bare(text.strip()) != text.strip()}
    decimal, thousands = best
    return Trap(
        name,
        "numbers",
        *where,
        decimal,
        thousands,
        words,
        units=tuple(mark for mark in _MARKS if any(mark in text for text in marked)),
        codes=all(map(str.isdecimal, whole)) or any(re.fullmatch(r"0\d+", text) for text in whole),
        decimal_too=thousands in (".", ",")
        and read == (".", None)
        and fits[str(thousands), None] == fits[best],
    )


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None


def _is_worded(text: str) -> bool:
    return _WORDED.fullmatch(text) is not None


def _is_time(text: str) -> bool:
    return _TIME.fullmatch(text) is not None


@lru_cache(2 * _READ)
def _bare(text: str) -> str:
    """A number without a unit's sign, brackets that stand for minus, and a typographic minus."""
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    text = text.replace("\N{MINUS SIGN}", "-")
    return _TRAILING.sub("", _LEADING.sub(r"\1", text, count=1))


def _is_number(text: str, signs: Signs) -> bool:
    if _pattern(*signs).fullmatch(text):
        return True
    return signs[0] == "." and _is_float(text)


@cache
def _pattern(decimal: str, thousands: str | None) -> re.Pattern[str]:
    return re.compile(number_pattern(decimal, thousands))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and "nan" not in text.lower()


def warn_of_texts(frame: Any, types: Mapping[str, Any]) -> None:
    """Warn of columns without a type in ``types`` whose dates, times or numbers become categories."""
    for name in frame.columns:
        if name not in types and (kind := _OBJECTS.get(pandas().api.types.infer_dtype(frame[name]))):
            warn(
                f"column {name!r} holds {kind}, each taken for a category: convert it, or pass "
                f"column_types={{{name!r}: 'categorical'}}"
            )
    for trap in text_traps(frame.iloc[:_READ], types):
        if not trap.codes:
            cell = f"{short(trap.cell)!r} in row {trap.row}"
            warn(
                f"column {trap.column!r} holds {trap.what} as text ({cell}), each taken for a category: "
                f"convert it, or pass column_types={{{trap.column!r}: 'categorical'}}"
            )


def warn_of_codes(source: str, features: Any, text: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Say which numbers of a text file are written with leading zeros, as codes are (01234, of an area).

    Parameters
    ----------
    source, features, text
        the file, or a folder of them; the table that was read from it; and how it is written
    types
        columns whose type was given: they are taken as they are
    """
    numbers = [name for name, cells in features.items() if cells.dtype.kind in "iuf" and name not in types]
    if numbers and (codes := with_leading_zeros(source, numbers, text, _READ)):
        said = ", ".join(f"'{name}' ('{short(cell)}')" for name, cell in codes.items())
        warn(
            f"'{source}': numbers that are written with leading zeros, as codes are: {said}. If they are "
            f"codes, pass {_typed('categorical', *codes)}"
        )


def refuse_traps(
    frame: Any, source: str, column_types: Mapping[str, Any] | None = None, decimal: str = ".",
    thousands: str | None = None,
) -> None:  # fmt: skip
    """Raise DataError where a column is not what it was meant to be; those with a type of their own may be.

    The traps: an index that was written along, numbers, dates and times that were read as text; ``decimal``
    and ``thousands`` are the signs that it was read with.
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
            kept = _typed("categorical", trap.column)
            raise DataError(
                f"column '{trap.column}' of '{source}' holds {trap.what} and was read as text "
                f"('{trap.cell[:60]}' in row {trap.row}): {advice}, or pass {kept} if it is meant so"
            )


def _advice(trap: Trap, text: bool, decimal: str, thousands: str | None) -> str:
    options = [f"--na {shlex.quote(word)}" for word in trap.words] if text else []
    if trap.what == "dates":
        return f"pass {' '.join([*options, _typed('datetime', trap.column)])}"
    if trap.what == "dates in words":
        return "write them as YYYY-MM-DD"
    if trap.what == "times":
        return "write it as a number, of hours say"
    if trap.what == "durations":
        return "write it as a number, of seconds say"
    if not trap.decimal:
        return "they are written in several ways: write them in one"
    if not text:
        return "" if trap.codes else "write it as numbers"
    either = [*options, f"--decimal '{trap.thousands}'"] if trap.decimal_too else []
    if trap.decimal != decimal:
        options.append(f"--decimal '{trap.decimal}'")
    if trap.thousands not in (None, thousands):
        options.append("--thousands " + (f"'{trap.thousands}'" if trap.thousands != "'" else '"\'"'))
    advice = [f"write it without {' and '.join(trap.units)}"] if trap.units else []
    advice += [f"pass {' '.join(options)}"] if options else []
    other = f", or {' '.join(either)} where that is the decimal sign" if either else ""
    return " and ".join(advice) + other


def _typed(type_: str, *names: str) -> str:
    """The option that gives columns a type, as a shell takes it and YAML reads it."""
    keys = [
        name
        if re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in _YAML
        else json.dumps(name, ensure_ascii=False)
        for name in names
    ]
    types = ", ".join(f"{key}: {type_}" for key in keys)
    return f"--set {shlex.quote(f'column_types={{{types}}}')}"
