"""Tables from files."""

from __future__ import annotations

import csv
import gzip
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from probjepa.data.shard_files import files_below
from probjepa.errors import ConfigError, DataError, counted, short, warn
from probjepa.files import first_line
from probjepa.tabular.frames import as_text, named, other_columns, pandas, refuse_repeated
from probjepa.tabular.rows import id_column, id_texts
from probjepa.typed import check_settings, checked
from probjepa.yaml_files import read_mapping

_TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SUFFIXES = (*_TEXTS, ".parquet", ".feather", ".arrow")
_SEPARATORS = (";", "\t", "|")
_ALIKE = {
    " ": " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}",
    "'": "'\N{RIGHT SINGLE QUOTATION MARK}",
}
_TRUTH = ("True", "TRUE", "true", "False", "FALSE", "false")


def _check_marks(text: Mapping[str, Any]) -> None:
    """Raise ConfigError for separators and signs that are no single character, or that would be one."""
    for name in ("sep", "decimal", "thousands"):
        if name in text and len(text[name]) != 1:
            raise ConfigError(f"{name} is '{short(text[name])}': give one character")
    if text.get("decimal", ".") == text.get("thousands"):
        raise ConfigError(f"decimal and thousands are both '{text['thousands']}': give two that differ")


def recorded_text(settings: Path) -> dict[str, Any]:
    """Return how a run's text was written, by its config.yaml, as ``read_table`` takes it; {}: not said."""
    try:
        text = read_mapping(settings).get("text")
    except ConfigError:  # of no run
        return {}
    types = {"sep": str, "decimal": str, "thousands": str, "na_values": list[str]}
    return check_settings(checked(f"text, in {settings},", text or {}, dict[str, Any]), types)


def recorded_row_names(settings: Path) -> tuple[str, ...]:
    """Return the column that named the rows of a run's table, by its config.yaml; (): none, or not said."""
    try:
        name = read_mapping(settings).get("row_names")
    except ConfigError:  # of no run
        return ()
    return (name,) if isinstance(name, str) else ()


def text_for(source: str | Path, given: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a file is written: as is given, or where nothing is, and it is text, as the run's was."""
    return dict(given or (run if written_as_text(source) else {}))


def written_as_text(source: str | Path) -> bool:
    """Whether a file's name says that its cells are texts, as those of a csv; of a folder, any file's."""
    names = files_below(str(source)) if Path(source).is_dir() else [str(source)]
    return any(name.lower().endswith(_TEXTS) for name in names)


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


def read_table(
    source: str | Path,
    target: str | None = None,
    features: Sequence[str] = (),
    texts: Sequence[str] = (),
    ids: Sequence[str] = (),
    codes: Sequence[str] = (),
    **text: Any,
) -> Any:
    """Return a file as a DataFrame with string names; its suffix, one of ``SUFFIXES``, says of which kind.

    Of a folder, the rows of all tables in it, in the order of their names; other files are passed over.
    In a text file, the column of ids keeps its cells as they are written, as does the target, if the cells
    are no numbers, or would be others as numbers (01, and those beyond 2^53).

    Parameters
    ----------
    source
        the path
    target
        the column of classes
    features
        columns that are neither ids nor classes, whatever they are called
    texts
        columns whose cells are texts, whatever they look like: 01 in this file and 2A in another
    ids
        columns that may name the rows, before one called id
    codes
        columns of categories, which are texts where one would be another as a number: 007
    text
        of a text file: ``sep``, ``decimal`` and ``na_values``, as pandas has them, and ``thousands``

    Raises
    ------
    ConfigError
        for a separator or sign of more than one character, or one sign for two things
    DataError
        if there is no such file, it is of another kind, cannot be read, has no rows or columns, has one
        column whose name holds a separator, or holds images; if a folder has no tables, or some of other
        columns
    """
    path = Path(source)
    _check_marks(text)
    frame = (_folder if path.is_dir() else _file)(path, _Columns(target, features, texts, ids, codes), text)
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"'{path}' has {len(frame)} rows and {len(frame.columns)} columns: give a table with some of both"
        )
    return frame


class _Columns(NamedTuple):
    """What is known of a table's columns, as ``read_table`` has them."""

    target: str | None
    features: Sequence[str]
    texts: Sequence[str]
    ids: Sequence[str]
    codes: Sequence[str]

    def names_rows(self, frame: Any) -> str | None:
        """Return the column of ids, see ``id_column``."""
        return id_column(frame, [*self.features, str(self.target)], self.ids)


def _folder(folder: Path, known: _Columns, text: Mapping[str, Any]) -> Any:
    """The rows of all tables of a folder."""
    files = _tables_below(folder)
    if text and not any(map(written_as_text, files)):
        raise DataError(f"no table of '{folder}' is text: leave {', '.join(text)} out")

    def read(known: _Columns) -> dict[Path, Any]:
        return {file: _file(file, known, text if written_as_text(file) else {}) for file in files}

    frames = read(known)
    columns = frames[files[0]].columns
    for file, frame in frames.items():
        if said := other_columns(frame.columns, columns):
            raise DataError(f"'{file}' has other columns than '{files[0]}' ({said}): give tables of one kind")
    if mixed := [name for name in columns if len(_are_texts(frames, name)) > 1]:
        frames = read(known._replace(texts=[*known.texts, *mixed]))  # 01 in one file, 2A in another
    named_by = known.names_rows(frames[files[0]])
    for name in mixed:
        if name not in (known.target, named_by) and len(kinds := _are_texts(frames, name)) > 1:
            one, other = kinds[True], kinds[False]
            raise DataError(f"column '{name}' holds texts in '{one}' and not in '{other}': write both alike")
    parts = [frame for frame in frames.values() if len(frame)] or [frames[files[0]]]
    for name, alike in ((named_by, id_texts), (known.target, _class_texts)):
        if name in columns and len({frame[name].dtype for frame in parts}) > 1:
            parts = [frame.assign(**{str(name): alike(frame[name])}) for frame in parts]
    return pandas().concat(parts, ignore_index=True)


def _tables_below(folder: Path) -> list[Path]:
    files: dict[str, Path] = {}
    for name, place in sorted(files_below(str(folder)).items()):
        if (kind := table_suffix(name)) is None:
            continue
        stem, part = name[: -len(kind)], PurePosixPath(name).parts[0]
        if stem in files:
            raise DataError(f"'{files[stem]}' and '{place}' look like one table: take one of them away")
        if "/" in name and "=" in part:
            raise DataError(f"'{folder}' is parted by folders ('{part}'): write that column into the files")
        files[stem] = Path(place)
    if not files:
        raise no_tables(folder)
    return list(files.values())


def _are_texts(frames: Mapping[Path, Any], name: str) -> dict[bool, Path]:
    """Whether a column's cells are texts → the last file where they are; one without cells says neither."""
    types = pandas().api.types
    return {
        types.infer_dtype(frame[name], skipna=True) == "string": file
        for file, frame in frames.items()
        if frame[name].notna().any()
    }


def _class_texts(series: Any) -> Any:
    """Classes as texts, as they are compared: 1.0 is "1"."""
    return series.astype(object).map(as_text, na_action="ignore")


def no_tables(source: str | Path) -> DataError:
    """Return the error of a folder without tables."""
    return DataError(f"'{source}' holds no tables: they are files that end in {', '.join(SUFFIXES)}")


def table_suffix(name: str) -> str | None:
    """Return which of ``SUFFIXES`` a file's name has; None where it is no table's."""
    return next((of for of in SUFFIXES if name.lower().endswith(of)), None)


def _file(path: Path, known: _Columns, text: Mapping[str, Any]) -> Any:
    """One file as it is, perhaps without rows."""
    pd = pandas()
    kind = table_suffix(path.name)
    if kind is None:
        raise DataError(f"'{path}' is no table: give a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        why = "it is no regular file" if path.exists() else "check the path"
        raise DataError(f"no such table: '{path}': {why}")
    written = kind in _TEXTS
    if text and not written:
        raise DataError(f"'{path}' is no text: leave {', '.join(text)} out")
    try:
        if written:
            frame = _text_file(path, known, text)
        else:
            frame = pd.read_parquet(path) if kind == ".parquet" else _read_arrow(path)
            frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
            own = None not in frame.index.names  # columns of the file, which pandas took for its index
            names_there = [*(map(str, frame.index.names) if own else ()), *frame.columns]
            refuse_repeated(names_there, f"'{path}'")
            frame = frame.reset_index() if own else frame
            names = known.names_rows(frame)
            if names is not None and frame[names].dtype.kind == "f":
                frame[names] = _whole_numbers(path, kind, names)
    except DataError:
        raise
    except pd.errors.EmptyDataError:
        raise DataError(
            f"'{path}' is empty: give a table with a line of names and at least one row"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is text in another encoding than UTF-8: save it as UTF-8") from error
    except Exception as error:  # the readers raise many types on a broken file
        raise DataError(
            f"'{path}' cannot be read as {kind[1:]} ({first_line(error)}): write it again"
        ) from error
    found = next((sep for sep in _SEPARATORS if all(sep in name for name in frame.columns)), None)
    if written and found and "sep" not in text:
        sep = "\\t" if found == "\t" else found
        held = (
            "one column" if len(frame.columns) == 1 else f"{len(frame.columns)} columns with '{sep}' in each"
        )
        raise DataError(f"'{path}' has {held}, '{short(frame.columns[0])}': pass --sep '{sep}'")
    nested = [name for name in frame.columns if isinstance(_first_cell(frame[name]), dict | bytes)]
    if nested:
        raise DataError(
            f"'{path}' holds images (column {named(nested)}), and this model is of tables: give a table of "
            "numbers, categories and dates"
        )
    return frame


def _first_cell(series: Any) -> Any:
    index = series.first_valid_index()
    return None if index is None else series[index]


def _text_file(path: Path, known: _Columns, text: Mapping[str, Any]) -> Any:
    """A csv or tsv file, perhaps without rows."""
    pd, target, thousands = pandas(), known.target, text.get("thousands")
    how = _written(path, text)
    as_they_are = {**how, "na_values": None, "keep_default_na": False, "header": None, "dtype": str}
    header = pd.read_csv(path, **as_they_are, nrows=1).loc[0].tolist()
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
    if len(frame.columns) == 1 and _has_gaps(path, how, frame.iloc[:, 0]):
        raise DataError(f"'{path}' has one column and lines without a cell: write NA for a missing one")
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
    tabs = str(table_suffix(path.name)).startswith(".tsv")
    given = {name: value for name, value in text.items() if name != "thousands"}
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


def _read_arrow(path: Path, **how: Any) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all().to_pandas(**how)
        except pa.ArrowInvalid:  # a stream, as the Hugging Face Hub's libraries write it
            source.seek(0)
            return pa.ipc.open_stream(source).read_all().to_pandas(**how)


def _whole_numbers(path: Path, kind: str, column: str) -> Any:
    """A column (N,) again, whose whole numbers stay these beside blanks: pandas makes float64 of them."""
    import pyarrow.parquet as pq

    how = {"integer_object_nulls": True}
    if kind == ".parquet":
        return pq.read_table(path, columns=[column]).column(column).to_pandas(**how).array
    return _read_arrow(path, **how)[column].array
