"""Tables from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from probjepa.data.shard_files import files_below, is_remote
from probjepa.errors import DataError
from probjepa.files import first_line
from probjepa.tabular.frames import as_text, named, other_columns, pandas, refuse_repeated
from probjepa.tabular.rows import KnownColumns, id_texts
from probjepa.tabular.text_files import TEXTS, check_marks, read_text_file, written_as_text
from probjepa.yaml_files import recorded

SUFFIXES = (*TEXTS, ".parquet", ".feather", ".arrow")


def recorded_row_names(settings: Path) -> tuple[str, ...]:
    """Return the column that named the rows of a run's table, by its config.yaml; (): none, or not said."""
    name = recorded(settings, "row_names")
    return (name,) if isinstance(name, str) else ()


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
        of a text file: ``sep``, ``decimal``, ``na_values`` and ``keep_default_na``, as pandas has them, but
        that empty cells are always missing; and ``thousands``

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
    if is_remote(str(source)):
        raise DataError(f"'{source}' is an address, and tables are read from files: download it first")
    check_marks(text)
    frame = (_folder if path.is_dir() else _file)(
        path, KnownColumns(target, features, texts, ids, codes), text
    )
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"'{path}' has {len(frame)} rows and {len(frame.columns)} columns: give a table with some of both"
        )
    return frame


def _folder(folder: Path, known: KnownColumns, text: Mapping[str, Any]) -> Any:
    """The rows of all tables of a folder."""
    files = _tables_below(folder)
    if text and not any(map(written_as_text, files)):
        raise DataError(f"no table of '{folder}' is text: leave {_options(text)} out")

    def read(known: KnownColumns) -> dict[Path, Any]:
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


def _options(text: Mapping[str, Any]) -> str:
    """The options that say how a text is written."""
    called = {"na_values": "na", "keep_default_na": "na-only"}
    return ", ".join(f"--{called.get(name, name)}" for name in text)


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


def _file(path: Path, known: KnownColumns, text: Mapping[str, Any]) -> Any:
    """One file as it is, perhaps without rows."""
    pd = pandas()
    kind = table_suffix(path.name)
    if kind is None:
        raise DataError(f"'{path}' is no table: give a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        why = "it is no regular file" if path.exists() else "check the path"
        raise DataError(f"no such table: '{path}': {why}")
    written = kind in TEXTS
    if text and not written:
        raise DataError(f"'{path}' is no text: leave {_options(text)} out")
    try:
        if written:
            frame = read_text_file(path, known, text)
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
    first = {name: _first_cell(frame[name]) for name in frame.columns}
    if of_images := [name for name, cell in first.items() if _is_image(cell)]:
        raise DataError(
            f"'{path}' holds images (column {named(of_images)}), and this model is of tables: give a table "
            "of numbers, categories and dates"
        )
    if nested := [name for name, cell in first.items() if isinstance(cell, dict | bytes)]:
        raise DataError(
            f"'{path}': column {named(nested)} holds nested values or bytes: give one value a cell, or drop "
            "it"
        )
    return frame


def _is_image(cell: Any) -> bool:
    """Whether a cell is an image as the Hugging Face layout has it, or the bytes of a file of one."""
    from probjepa.data.decode import is_image

    if isinstance(cell, dict):
        return isinstance(cell.get("bytes"), bytes) or cell.keys() == {"bytes", "path"}
    return isinstance(cell, bytes) and is_image(cell)


def _first_cell(series: Any) -> Any:
    index = series.first_valid_index()
    return None if index is None else series[index]


def _read_arrow(path: Path, **how: Any) -> Any:
    import pyarrow as pa

    # not mapped: one that is written shorter meanwhile would end the process
    with pa.OSFile(os.fsencode(path)) as source:
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
