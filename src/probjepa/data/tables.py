"""Readers of rows: parquet files, pandas DataFrames, Hugging Face and torch data sets."""

from __future__ import annotations

import bisect
import glob
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from probjepa.data.decode import Payload, Unreadable, as_payload
from probjepa.data.records import Records, encode_labels
from probjepa.errors import DataError, MissingExtraError
from probjepa.files import first_line, regular

_IMAGE_NAMES = ("image", "img", "images", "imgs", "pixel_values", "picture", "photo", "x")
_LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "class", "target", "y")
_SPLIT_NAME = re.compile(r"^(train|test|val|valid|validation|dev)(?![a-z])", re.IGNORECASE)


def find_image_column(rows: Sequence[dict[str, Any]], columns: Sequence[str], where: str) -> str:
    """Return the column that holds images, judged by the values of the first rows and by its name."""
    found = [name for name in columns if any(_may_be_image(row[name]) for row in rows)]
    named = [name for name in _IMAGE_NAMES if name in found]
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


def _may_be_image(value: Any) -> bool:
    if isinstance(value, dict):
        return "bytes" in value
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], list)
    if isinstance(value, np.ndarray):
        return value.ndim >= 2 or (value.dtype == object and value.size > 0 and np.ndim(value[0]) > 0)
    return (
        isinstance(value, bytes)
        or (hasattr(value, "mode") and hasattr(value, "getexif"))
        or (hasattr(value, "detach") and value.ndim >= 2)
    )


def find_label_column(columns: Sequence[str]) -> str | None:
    """Return the column that holds labels, by its name."""
    return next((name for name in _LABEL_NAMES if name in columns), None)


def read_parquet(path: Path, files: list[Path] | None = None) -> Records:
    """Read one parquet file, the shards of a folder, or those that a glob matches."""
    if files is None:
        files = [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(path)))
    if not files:
        raise DataError(f"no parquet file matches '{path}': check the pattern")
    splits = sorted({match[1] for file in files if (match := _SPLIT_NAME.match(file.name))})
    if len(splits) > 1 and path.is_dir():
        raise DataError(
            f"'{path}' holds several splits ({', '.join(splits)}): choose one with a pattern, "
            f"'{path}/{splits[-1]}*.parquet'"
        )
    return ParquetRecords(str(path), files)


class ParquetRecords(Records):
    """The image column of parquet files in the Hugging Face layout, read in order."""

    def __init__(self, name: str, files: list[Path]) -> None:
        import pyarrow.parquet as pq

        self.name, self.files = name, files
        self.starts, self.ids, values = [0], [], []
        schema: Any = None
        for file in files:
            with _parquet_errors(file):
                opened = pq.ParquetFile(regular(file))
                count = opened.metadata.num_rows
                if schema is None:
                    schema = opened.schema_arrow
                    head = next(opened.iter_batches(batch_size=8), None)
                    rows = [] if head is None else head.to_pylist()
                    if not rows:
                        raise DataError(f"'{file}' has no rows: remove it, or pass another file")
                    self.column = find_image_column(rows, schema.names, f"'{file}'")
                    label = find_label_column([n for n in schema.names if n != self.column])
                missing = {self.column, *([label] if label else [])} - set(opened.schema_arrow.names)
                if missing:
                    raise DataError(f"'{file}' lacks the column {', '.join(missing)} of '{files[0]}'")
                if label:
                    values += opened.read(columns=[label])[label].to_pylist()
            self.starts.append(self.starts[-1] + count)
            self.ids += [f"{file.name}:{row}" if len(files) > 1 else str(row) for row in range(count)]
        if values:
            self.labels, self.classes = encode_labels(values, name, len(self), _class_names(schema, label))

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
        folder = tempfile.mkdtemp(prefix="probjepa-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self.file, rows, writer = Path(folder, "images.arrow"), 0, None
        try:
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


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that drops its copy must not take the file from the others
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    """Turn Arrow's errors on a broken file into one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"'{file}' cannot be read as parquet ({first_line(error)}): download or write it again"
        ) from error


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """Class names from the Hugging Face metadata of an Arrow schema."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in info["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


class RowRecords(Records):
    """Rows of anything that can be indexed: a list, a torch ``Dataset``, a Hugging Face data set."""

    def __init__(self, name: str, count: int, row: Callable[[int], Any]) -> None:
        self.name, self.ids, self._row = name, [str(i) for i in range(count)], row

    def read(self, row: int) -> Payload:
        """Return what one row holds."""
        return as_payload(self._row(row))


class _Cell:
    """Indexes rows, then a column: a class, since a lambda cannot be pickled."""

    def __init__(self, rows: Any, column: str | None = None) -> None:
        self.rows, self.column = rows, column

    def __call__(self, row: int) -> Any:
        value = self.rows[row]
        return value if self.column is None else value[self.column]


class DatasetRecords(Records):
    """A torch ``Dataset`` of images or (image, label) pairs; labels are collected while it is read."""

    def __init__(self, dataset: Any) -> None:
        self.name, self.dataset = type(dataset).__name__, dataset
        self.ids = [str(row) for row in range(len(dataset))]
        self._seen: dict[int, Any] = {}
        names = getattr(dataset, "classes", None)
        self._names = [str(name) for name in names] if isinstance(names, list | tuple) else None

    def read(self, row: int) -> Payload:
        """Return one image, and keep its label."""
        try:
            item = self.dataset[row]
        except Exception as error:  # the user's own code: its row is what helps
            return Unreadable(f"fails to load ({type(error).__name__}: {str(error).splitlines()[:1]})")
        if isinstance(item, tuple | list) and len(item) == 2:
            item, label = item
            self._seen[row] = label.item() if hasattr(label, "item") else label
        elif isinstance(item, tuple | list) and item and not isinstance(item[0], list | int | float):
            item = item[0]
        return as_payload(item)

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        """The labels of the rows read so far, or None where there were none."""
        if not self._seen or all(label is None for label in self._seen.values()):
            return None
        # a row that failed to load has no label, and is not in the set either
        filler = next(iter(self._seen.values()))
        values = [self._seen.get(row, filler) for row in range(len(self))]
        labels, self.classes = encode_labels(values, self.name, len(self), self._names)
        return labels


def read_object(source: Any) -> Records:
    """Read a pandas DataFrame, a Hugging Face data set or a torch ``Dataset``."""
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _read_frame(source)
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return _read_hf(source, "datasets.Dataset")
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return DatasetRecords(source)
    raise DataError(
        f"a {type(source).__name__} is no data source: pass a path, an array, a tensor, a DataFrame "
        "or a Dataset with __len__ and __getitem__"
    )


def _read_frame(frame: Any) -> Records:
    columns = [str(name) for name in frame.columns]
    head = [dict(zip(columns, row, strict=True)) for row in frame.iloc[:8].itertuples(index=False, name=None)]
    column = find_image_column(head, columns, "DataFrame")
    values = frame.iloc[:, columns.index(column)].tolist()
    records = RowRecords("DataFrame", len(values), _Cell(values))
    label = find_label_column([name for name in columns if name != column])
    if label is not None:
        values = frame.iloc[:, columns.index(label)].tolist()
        records.labels, records.classes = encode_labels(values, "DataFrame", len(values))
    return records


def read_hub(name: str) -> Records:
    """Read ``NAME[:SPLIT]``, a set of the hub or a local folder, with ``datasets``; SPLIT is train."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hf") from None
    path, _, split = name.partition(":")
    try:
        dataset = datasets.load_dataset(path, split=split or "train")
    except Exception as error:  # many types: no such set, no such split, no network, a broken cache
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"hf:{name} cannot be loaded ({reason}): check the name, the split and the network"
        ) from error
    return _read_hf(dataset, f"hf:{name}")


def _read_hf(dataset: Any, name: str) -> Records:
    columns = list(dataset.column_names)
    for column in columns:
        if type(dataset.features[column]).__name__ == "Image":  # bytes, which are decoded here, on all cores
            dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    head = [dataset[row] for row in range(min(8, len(dataset)))]
    column = find_image_column(head, columns, name)
    records = RowRecords(name, len(dataset), _Cell(dataset, column))
    label = find_label_column([other for other in columns if other != column])
    if label is not None:
        names = getattr(dataset.features[label], "names", None)
        records.labels, records.classes = encode_labels(list(dataset[label]), name, len(dataset), names)
    return records
