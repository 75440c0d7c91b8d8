"""The reader of parquet files, and which columns of a table hold images, labels and ids."""

from __future__ import annotations

import bisect
import glob
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from probjepa.data.decode import Payload, as_payload
from probjepa.data.records import Records, encode_labels
from probjepa.errors import DataError, ProbjepaError
from probjepa.files import first_line, regular, sweep, temporary_name

IMAGE_NAMES = ("image", "img", "images", "imgs", "pixel_values", "picture", "photo", "x")
_LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "class", "target", "y")
_SPLIT_NAME = re.compile(r"^(train|test|val|valid|validation|dev)(?![a-z])", re.IGNORECASE)


def image_column(found: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Return the one of ``columns`` that holds images, of those that may, by its name."""
    named = [name for name in IMAGE_NAMES if name in found]
    if named:
        return named[0]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where}: several columns hold images ({', '.join(found)}): name one of them 'image'"
        )
    raise DataError(
        f"{where}: no column holds images (columns: {', '.join(columns)}): a column of image bytes, "
        "of structs {bytes, path} or of nested lists of numbers is needed"
    )


def label_column(columns: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Return the column of labels: the one wanted, none for "none", or by default one of a usual name."""
    if wanted is None:
        return next((name for name in _LABEL_NAMES if name in columns), None)
    return None if wanted == "none" else _present(wanted, columns, where)


def id_column(columns: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Return the column of ids: the one wanted, or by default one called id."""
    if wanted is None:
        return next((name for name in columns if name.lower() == "id"), None)
    return _present(wanted, columns, where)


def _present(wanted: str, columns: Sequence[str], where: str) -> str:
    if wanted not in columns:
        raise DataError(f"{where} has no column '{wanted}' (columns: {', '.join(columns)})")
    return wanted


def chosen_ids(values: Sequence[Any], column: str, wanted: str | None, where: str) -> list[str] | None:
    """Return a column's values as ids; None where they name no single row, which is an error if wanted."""
    ids = [str(value) for value in values]
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        if value is None or value != value or first.setdefault(ids[row], row) != row:
            if wanted is None:
                return None
            kind = f"the id of row {first[ids[row]]} again" if ids[row] in first else "no id"
            raise DataError(f"{where}: row {row} has {kind} in '{column}': choose a column of distinct ids")
    return ids


def holds_images(kind: Any) -> bool:
    """Whether cells of an Arrow type may be images: structs with bytes, bytes, nested lists."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    if isinstance(kind, pa.StructType):
        return bool(kind.get_field_index("bytes") >= 0)
    if isinstance(kind, lists):
        return isinstance(kind.value_type, lists)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet(
    path: Path, files: list[Path] | None = None, labels: str | None = None, ids: str | None = None
) -> Records:
    """Read one parquet file, the shards of a folder, or those that a glob matches."""
    if files is None:
        files = [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(path)))
    if not files:
        raise DataError(f"no parquet file matches '{path}': check the pattern")
    if path.is_dir():
        one_split(str(path), [file.relative_to(path).as_posix() for file in files])
    return ParquetRecords(str(path), files, labels, ids)


def one_split(place: str, files: Sequence[str]) -> None:
    """Raise DataError if the files below a folder, by their names, are of several splits."""
    splits: dict[str, str] = {}  # name → a pattern of its files
    for file in files:
        parts = PurePosixPath(file).parts
        for depth, part in enumerate(parts):
            if match := _SPLIT_NAME.match(part):
                last = f"{match[1]}*{PurePosixPath(part).suffix}" if depth == len(parts) - 1 else part
                splits.setdefault(match[1], "/".join([place.rstrip("/"), *parts[:depth], last]))
    if len(splits) > 1:
        names = ", ".join(sorted(splits))
        raise DataError(f"'{place}' holds several splits ({names}): choose one, '{splits[max(splits)]}'")


class ParquetRecords(Records):
    """The image column of parquet files in the Hugging Face layout, read in order."""

    def __init__(
        self, name: str, files: list[Path], labels: str | None = None, ids: str | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self.name, self.files = name, files
        self.starts, self.ids = [0], []
        columns: dict[str, list[Any]] = {}  # those of labels and of ids, as far as they are read
        schema: Any = None
        for file in files:
            with _parquet_errors(file):
                opened = pq.ParquetFile(regular(file))
                count = opened.metadata.num_rows
                if schema is None:
                    schema, where = opened.schema_arrow, f"'{file}'"
                    if not count:
                        raise DataError(f"'{file}' has no rows: remove it, or pass another file")
                    found = [field.name for field in schema if holds_images(field.type)]
                    self.column = image_column(found, schema.names, where)
                    label = label_column([n for n in schema.names if n != self.column], labels, where)
                    by = id_column(schema.names, ids, where)
                    columns = {column: [] for column in (label, by) if column is not None}
                missing = {self.column, *columns} - set(opened.schema_arrow.names)
                if missing:
                    raise DataError(f"'{file}' lacks the column {', '.join(missing)} of '{files[0]}'")
                for column, values in columns.items():
                    values += opened.read(columns=[column])[column].to_pylist()
            self.starts.append(self.starts[-1] + count)
            self.ids += [f"{file.name}:{row}" if len(files) > 1 else str(row) for row in range(count)]
        if by is not None:
            self.ids = chosen_ids(columns[by], by, ids, name) or self.ids
        if label is not None:
            names = class_names(schema, label)
            self.labels, self.classes = encode_labels(columns[label], name, len(self), names)

    def where(self, row: int) -> str:
        """Name the shard and the row in it."""
        shard = bisect.bisect_right(self.starts, row) - 1
        return f"{self.files[shard]}, row {row - self.starts[shard]}"

    def read(self, row: int) -> Payload:
        """Refuse: parquet is read in order."""
        raise NotImplementedError("parquet is read in order: use seekable()")

    def chunks(self, length: int) -> Iterator[list[Payload]]:
        """Return all rows in order, at most ``length`` at a time."""
        for first, batch in self.record_batches(length):
            base = self.files[first].parent
            yield [as_payload(value, base) for value in batch.column(0).to_pylist()]

    def record_batches(self, length: int) -> Iterator[tuple[int, Any]]:
        """Return (file number, Arrow batch of the image column), of at most ``length`` rows."""
        import pyarrow.parquet as pq

        for number, file in enumerate(self.files):
            with _parquet_errors(file):
                for batch in pq.ParquetFile(file).iter_batches(batch_size=length, columns=[self.column]):
                    yield number, batch

    def seekable(self) -> Records:
        """Return the same rows from a temporary copy that can be read by row."""
        return SpooledRecords(self)


class SpooledRecords(Records):
    """Parquet rows copied, still encoded, to a memory-mapped temporary file.

    Parquet cannot be read by row, and one row group may hold the whole set, so random access would decode
    it again for every image. The copy takes as much disk as the encoded images ($TMPDIR chooses where), no
    memory, is opened by path in worker processes, and goes away with the object that made it.
    """

    def __init__(self, source: ParquetRecords) -> None:
        import pyarrow as pa

        self.name, self.ids = source.name, source.ids
        self.labels, self.classes = source.labels, source.classes
        self.source_where, self.bases, self.firsts = source.where, [], []
        home = Path(tempfile.gettempdir())
        sweep(home)
        folder = home / temporary_name("probjepa")
        weakref.finalize(self, _remove, folder, os.getpid())
        self.file, rows, writer = folder / "images.arrow", 0, None
        try:
            folder.mkdir(mode=0o700)
            for number, batch in source.record_batches(256):
                if writer is None:
                    schema = pa.schema([("image", batch.schema.field(0).type)])
                    writer = pa.ipc.new_file(str(self.file), schema)
                column = batch.column(0).cast(schema.field(0).type)  # shards may differ in string types
                writer.write_batch(pa.record_batch([column], schema=schema))
                self.firsts.append(rows)
                self.bases.append(source.files[number].parent)
                rows += batch.num_rows
            if writer is not None:
                writer.close()
        except OSError as error:
            raise DataError(
                f"{self.name} does not fit into memory, and its copy not into '{folder}' ({error}): "
                "set TMPDIR to a folder with more space"
            ) from error
        self._reader: Any = None

    def where(self, row: int) -> str:
        """Name the shard and the row in it."""
        return self.source_where(row)

    def read(self, row: int) -> Payload:
        """Return what one row holds."""
        if self._reader is None:
            import pyarrow as pa

            self._reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
        batch = bisect.bisect_right(self.firsts, row) - 1
        value = self._reader.get_batch(batch).column(0)[row - self.firsts[batch]].as_py()
        return as_payload(value, self.bases[batch])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that drops its copy must not take the file from the others
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    """Turn Arrow's errors on a broken file into one line."""
    try:
        yield
    except ProbjepaError:
        raise
    except Exception as error:  # Arrow raises many types on a broken file
        raise DataError(
            f"'{file}' cannot be read as parquet ({first_line(error)}): download or write it again"
        ) from error


def class_names(schema: Any, label: str | None) -> list[str] | None:
    """Class names from the Hugging Face metadata of an Arrow schema."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in info["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
