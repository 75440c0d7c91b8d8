"""A parquet table with a row an input, written as it is made, under a temporary name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from probjepa.data.images import Images
from probjepa.data.records import UNLABELLED
from probjepa.files import drop_parts, refuse_existing, refuse_stopped, staged_file


class TableWriter:
    """Appends row groups to one parquet file, which is open: Arrow takes no path that is no text."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows: name → numpy array (n,), or (n, D) for a fixed-size list."""
        arrays = {name: as_column(value) for name, value in columns.items()}
        table = pa.table(arrays)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def note(self, key: bytes, text: str) -> None:
        """Add a text to the file's metadata; some rows, or none of them, are to be written first."""
        assert self._writer is not None
        self._writer.add_key_value_metadata({key: text.encode()})

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def as_column(value: Any, kind: Any = None) -> Any:
    """Return values as Arrow has them: (n, D) as lists, bytes of names that are no text as escapes."""
    if getattr(value, "ndim", 1) == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    try:
        return pa.array(value, kind)
    except UnicodeError:  # names of files may hold bytes that are no text
        texts = [None if x is None else str(x).encode("utf-8", "backslashreplace").decode() for x in value]
        return pa.array(texts, kind)


def identity(images: Images, rows: slice) -> dict[str, Any]:
    """Return the columns "id" and, where known, "label" (the class name if it has one) of some rows.

    The label of an unlabelled row is null.
    """
    columns: dict[str, Any] = {"id": images.ids[rows]}
    if images.labels is not None:
        names = images.classes
        values = [None if i == UNLABELLED else names[i] if names else i for i in images.labels[rows].tolist()]
        columns["label"] = as_column(values, pa.string() if names else pa.int64())
    return columns


@contextmanager
def open_table(path: Path, overwrite: bool) -> Iterator[TableWriter]:
    """Yield a writer; the file takes its name when the block ends well, and not otherwise.

    Raises
    ------
    ArtifactError
        if the file is there already, or the parts of a JEPA-SCORE that was stopped are (with ``overwrite``
        both go), or it cannot be written
    """
    refuse_existing(path, overwrite)
    refuse_stopped(path, overwrite)
    with staged_file(path) as stage, written(stage) as table:
        yield table
    drop_parts(path)


@contextmanager
def written(stage: Path) -> Iterator[TableWriter]:
    """Yield the writer of a new parquet file."""
    with open(stage, "wb") as file:
        table = TableWriter(file)
        try:
            yield table
        finally:
            table.close()
