"""Tables that are text: signs, words for missing cells, and what lines of a file may have wrong."""

from __future__ import annotations

import csv
import gzip
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probjepa.data.shard_files import files_below
from probjepa.errors import ConfigError, DataError, counted, short, warn
from probjepa.tabular.frames import named, pandas, refuse_repeated
from probjepa.tabular.rows import KnownColumns
from probjepa.typed import check_settings, checked
from probjepa.yaml_files import recorded

TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_MARKS = ("sep", "decimal", "thousands")
_SEPARATORS = (";", "\t", "|")
_ALIKE = {
    " ": " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}",
    "'": "'\N{RIGHT SINGLE QUOTATION MARK}",
}
_TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")


def recorded_text(settings: Path) -> dict[str, Any]:
    """Return how a run's text was written, by its config.yaml, as ``read_table`` takes it; {}: not said."""
    text = recorded(settings, "text") or {}
    types = {"na_values": list[str], "keep_default_na": bool} | dict.fromkeys(_MARKS, str)
    return check_settings(checked(f"text, in {settings},", text, dict[str, Any]), types)


def text_for(source: str | Path, given: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a file is written: as is given, or where nothing is, and it is text, as the run's was."""
    return dict(given or (run if written_as_text(source) else {}))


def written_as_text(source: str | Path) -> bool:
    """Whether a file's name says that its cells are texts, as those of a csv; of a folder, any file's."""
    names = files_below(str(source)) if Path(source).is_dir() else [str(source)]
    return any(name.lower().endswith(TEXTS) for name in names)


def check_marks(text: Mapping[str, Any]) -> None:
    """Raise ConfigError for separators and signs that are no single character, or that would be one."""
    for name in _MARKS:
        if name in text and len(text[name]) != 1:
            raise ConfigError(f"{name} is '{short(text[name])}': give one character")
    if text.get("decimal", ".") == text.get("thousands"):
        raise ConfigError(f"decimal and thousands are both '{text['thousands']}': give two that differ")


def number_pattern(decimal: str = ".", thousands: str | None = None) -> str:
    """Return the pattern of a number with these signs, ``thousands`` between groups of three digits alone.

    A space stands for narrow ones and those that do not break, too, and an apostrophe for a curly one.
    """
    point = re.escape(decimal)
    grouped = "" if thousands is None else rf"|[1-9]\d{{0,2}}({_between(thousands)}\d{{3}})+"
    if thousands == ",":  # as in India: 1,10,345
        grouped += r"|[1-9]\d?(,\d\d)+,\d{3}"
    return rf"\s*[-+]?((\d+{grouped})({point}\d*)?|{point}\d+)([eE][-+]?\d+)?\s*"


def _between(thousands: str) -> str:
    return f"[{re.escape(_ALIKE.get(thousands, thousands))}]"


def read_text_file(path: Path, known: KnownColumns, text: Mapping[str, Any]) -> Any:
    """Return a csv or tsv file as a DataFrame, perhaps without rows; see ``read_table``.

    Raises
    ------
    DataError
        for names that stand twice, rows that are longer than the names, or one column whose name holds
        another separator
    """
    pd, target, thousands = pandas(), known.target, text.get("thousands")
    how = _written(path, text)
    as_they_are = {**how, "na_values": None, "keep_default_na": False, "header": None, "dtype": str}
    header = pd.read_csv(path, **as_they_are, nrows=1).loc[0].tolist()
    _refuse_separator(path, [name for name in header if isinstance(name, str)], text)
    refuse_repeated(filter(None, header), f"'{path}'")  # pandas would call the second one a.1
    names = known.names_rows(pd.DataFrame(columns=header))
    kept = [name for name in (names, target) if name is not None and name not in known.features]
    coded = [name for name in known.codes if name not in (*kept, *known.texts)]
    kept += [name for name in (*known.texts, *coded) if name not in kept]
    how |= {"low_memory": False, "dtype": dict.fromkeys(kept, str)}
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            # or the first cells of longer rows would be taken for an index, and the names for the others
            frame = pd.read_csv(path, **how, index_col=False)
    except pd.errors.ParserWarning:
        raise DataError(
            f"'{path}' has {counted(len(header), 'name')} in its first line and more cells in a row: "
            "name each column"
        ) from None
    gap = "NA" if text.get("keep_default_na", True) else '""'
    if len(frame.columns) == 1 and _has_gaps(path, how, frame.iloc[:, 0]):
        raise DataError(f"'{path}' has one column and lines without a cell: write {gap} for a missing one")
    if len(frame.columns) > 1 and frame.iloc[:, -1].isna().any():
        _warn_of_short_rows(path, how["sep"], len(header))
    decimal = text.get("decimal", ".")
    if thousands is not None:
        for name in frame.columns.difference(kept):
            frame[name] = _without_thousands(frame[name], decimal, thousands)
    if target in frame.columns and target in kept:
        frame[target] = _classes(frame[target], decimal, thousands)
    for name in coded:
        if name in frame.columns:
            frame[name] = _classes(frame[name], decimal, thousands, apart=False)
    return frame


def _refuse_separator(path: Path, header: Sequence[str], text: Mapping[str, Any]) -> None:
    """Raise DataError where the names of a file hold another separator than the one it is read with."""
    found = next((sep for sep in _SEPARATORS if header and all(sep in name for name in header)), None)
    if found and "sep" not in text:
        sep = "\\t" if found == "\t" else found
        held = "one column" if len(header) == 1 else f"{len(header)} columns with '{sep}' in each"
        raise DataError(f"'{path}' has {held}, '{short(header[0])}': pass --sep '{sep}'")


def warn_of_words(source: str, features: Any, text: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Say which words of categories are taken for missing cells, as NA is, which may be one (Namibia).

    Parameters
    ----------
    source
        the file, or a folder of them; one that is no text has no such words
    features
        the table that was read from it
    text
        how it is written
    types
        column → its type, where it was given: categories are looked at
    """
    if not text.get("keep_default_na", True):
        return
    pd, words, columns = pandas(), Counter[str](), dict[str, None]()
    known = ("", *text.get("na_values", ()))
    gaps = features.columns[features.isna().any()]
    numbers = [name for name in gaps if features[name].dtype.kind in "iuf" and features[name].notna().any()]
    read_as = dict.fromkeys(gaps, "categorical") | dict.fromkeys(numbers, "numeric") | dict(types)
    among = [name for name in gaps if read_as[name] == "categorical"]
    if not among:
        return
    for path, how in _as_texts(source, among, text):
        cells, taken = (
            pd.read_csv(path, **how | more) for more in ({"na_values": [], "keep_default_na": False}, {})
        )
        for name in among:
            found = Counter(cells[name][taken[name].isna() & ~cells[name].isin(known)].tolist())
            words.update(found)
            columns |= dict.fromkeys([name] * bool(found))
    if words:
        said = ", ".join(f"'{word}' ({number})" for word, number in words.most_common())
        warn(
            f"'{source}': words that are taken for missing cells: {said}, in {named([*columns])}. If they "
            "are categories, pass --na-only; if not, name them by --na"
        )


def with_leading_zeros(
    source: str, names: Sequence[str], text: Mapping[str, Any], rows: int
) -> dict[str, str]:
    """Return column → its first cell of digits that begin with a zero, of those ``names`` that have one.

    Read are so many rows of every text file.
    """
    found: dict[str, str] = {}
    for path, how in _as_texts(source, names, text):
        for name, cells in pandas().read_csv(path, **how, nrows=rows).items():
            padded = cells[cells.str.fullmatch("0[0-9]+", na=False)]
            if len(padded):
                found.setdefault(name, padded.iloc[0])
    return found


def _as_texts(
    source: str, names: Sequence[str], text: Mapping[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every text file of a source, and how pandas reads these columns of it as texts."""
    for path in map(Path, filter(written_as_text, files_below(source).values())):
        yield path, _written(path, text) | {"usecols": names, "index_col": False, "dtype": str}


def names_alone(source: str, text: Mapping[str, Any]) -> Any:
    """Return the columns of a text file that has no rows, as a DataFrame; None for any other file."""
    if not written_as_text(source):
        return None
    try:
        frame = pandas().read_csv(source, **_written(Path(source), text), nrows=1)
    except ValueError:  # ``read_table`` says what is wrong
        return None
    return None if len(frame) else frame


def _written(path: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """How pandas reads a text file, but for its thousands."""
    tabs = path.name.lower().endswith((".tsv", ".tsv.gz"))
    given = {name: value for name, value in text.items() if name != "thousands"}
    if not text.get("keep_default_na", True):
        given["na_values"] = ["", *text.get("na_values", ())]
    return {"sep": "\t" if tabs else ",", "skipinitialspace": True, **given}


def _has_gaps(path: Path, how: Mapping[str, Any], column: Any) -> bool:
    """Whether blank lines stand between the cells of a file of one column, which pandas passes over."""
    as_lines = {"header": None, "names": [0, 1], "dtype": str, "index_col": False, "skip_blank_lines": False}
    with warnings.catch_warnings(action="ignore", category=pandas().errors.ParserWarning):
        lines = pandas().read_csv(path, **{**how, **as_lines})[0]
    head, last = lines.first_valid_index(), column.last_valid_index()
    if last is None or lines[head] != column.name:  # a name that is a word for a missing cell
        return False
    return bool(lines.last_valid_index() - head - 1 != last)


def _warn_of_short_rows(path: Path, sep: str, names: int) -> None:
    """Say which rows have fewer cells than there are names, as a file's last has that was cut off."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    lines: list[str] = []
    few = 0
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter=sep, skipinitialspace=True)
        try:
            for row in rows:
                if 0 < len(row) < names and any(row):  # pandas passes over blank lines
                    few += 1
                    lines = [*lines[:1], f"line {rows.line_num}"]
        except csv.Error:  # a cell of more than 128 kB, which pandas takes
            return
    if few:
        where = lines[0] if few == 1 else f"the first in {lines[0]}, the last in {lines[-1]}"
        warn(
            f"'{path}' has {counted(few, 'row')} of fewer cells than its {names} names, {where}: the other "
            "cells are missing. If the file was cut off, copy it again"
        )


def _without_thousands(series: Any, decimal: str, thousands: str) -> Any:
    """A column of texts as numbers, if each is one; as it is otherwise."""
    pd = pandas()
    if not pd.api.types.is_object_dtype(series.dtype) and not pd.api.types.is_string_dtype(series.dtype):
        return series
    cells = series.dropna().astype(str)
    if not len(cells) or not cells.str.fullmatch(number_pattern(decimal, thousands)).all():
        return series
    plain = cells.str.replace(_between(thousands), "", regex=True).str.replace(decimal, ".", regex=False)
    return pd.to_numeric(plain).reindex(series.index)


def _classes(series: Any, decimal: str, thousands: str | None, apart: bool = True) -> Any:
    """The cells of a target as truth values or numbers, unless they are classes that would be others then.

    Where they need not be ``apart``, 1.0 is 1.
    """
    pd = pandas()
    cells = series.dropna()
    if len(cells) and cells.isin(_TRUTH).all():
        return (cells.str.lower() == "true").reindex(series.index)
    if not len(cells) or not cells.str.fullmatch(rf"{number_pattern(decimal, thousands)}|[-+]?inf").all():
        return series
    plain = cells if thousands is None else cells.str.replace(_between(thousands), "", regex=True)
    values = pd.to_numeric(plain.str.replace(decimal, ".", regex=False))
    if values.dtype.kind == "f" and (values % 1 != 0).any():  # of no class
        return values.reindex(series.index)
    rounded = values.abs().max() >= 2**53 and (values.dtype.kind not in "iu" or len(cells) < len(series))
    led = cells.str.contains(r"^\s*[-+]?0\d").any()
    same = not rounded and not led and (not apart or values.nunique() == cells.nunique())
    return values.reindex(series.index) if same else series
