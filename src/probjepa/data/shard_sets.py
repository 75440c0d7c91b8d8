"""Shards as one set: their rows in order, and a copy of them that is read by row."""

from __future__ import annotations

import bisect
import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from probjepa.data.decode import Payload, as_payload
from probjepa.data.records import Records, encode_labels
from probjepa.data.shard_files import ShardError, file_mark, find_files, is_remote
from probjepa.data.shard_readers import Opened, open_shard, reading
from probjepa.data.shards import layout_of, row_name
from probjepa.data.tables import chosen_ids, class_names, one_split
from probjepa.errors import DataError
from probjepa.files import sweep, temporary_name

_ADVICE = "download or write it again"  # for a broken shard: a set has all of its shards
_SCAN = 1 << 16  # rows of which labels and ids are read at a time
_COPY = 256  # rows that are copied at a time


def read_shards(source: str | Path, labels: str | None = None, ids: str | None = None) -> Records:
    """Read one shard, those of a folder or of an address, or those that a glob matches.

    Of a folder, files that are no shards are listed in ``skipped``.

    Raises
    ------
    DataError
        if there is none, or one cannot be read or lacks a column of the first
    """
    place, skipped = str(source), list[str]()
    if glob.has_magic(place) and not is_remote(place) and not Path(place).exists():
        paths = [path for match in sorted(glob.glob(place)) for path in find_files(match)[0].values()]
        if not paths:
            raise DataError(f"no shard matches '{place}': check the pattern")
        home = os.path.commonpath([os.path.dirname(path) for path in paths])
        found = {PurePosixPath(path).relative_to(home).as_posix(): path for path in paths}
    else:
        found, skipped = find_files(place)
        one_split(place, list(found))
    records = ShardSet(place, found, labels, ids)
    records.skipped += [f"{path} is no image of a known format" for path in skipped]
    return records


class ShardSet(Records):
    """The image column of shards that have the columns of the first, read in order.

    ``files``: what each is called in ids → its path.
    """

    skipped: list[str]

    def __init__(
        self, name: str, files: Mapping[str, str], labels: str | None = None, ids: str | None = None
    ) -> None:
        paths = list(files.values())
        self.name, self.paths, self.marks = name, paths, [file_mark(path) for path in paths]
        with reading(paths[0], _ADVICE):
            schema = open_shard(paths[0]).schema
            layout = layout_of(schema, f"'{paths[0]}'", labels, ids)
        self.column, self.starts, self.ids, self.skipped = layout.image, [0], [], []
        self._names = list[Any]()
        columns: dict[str, list[Any]] = {name: [] for name in (layout.label, layout.id) if name is not None}
        classes = list[list[str] | None]()
        for file, path in files.items():
            with reading(path, _ADVICE):
                opened = open_shard(path)
                count, skipped = _read_columns(opened, path, self.column, columns, paths[0])
                classes.append(class_names(opened.schema, layout.label))
            if not count and path == paths[0]:
                raise DataError(f"'{path}' has no rows: remove it, or pass another file")
            self.starts.append(self.starts[-1] + count)
            self.skipped += skipped
            self.ids += [f"{file}:{row}" if len(paths) > 1 else str(row) for row in range(count)]
        if layout.id is not None:
            self._names = columns[layout.id]
            self.ids = chosen_ids(self._names, layout.id, ids, name) or self.ids
        if layout.label is not None:
            values, names = columns[layout.label], classes[0]
            if names and any(of not in (None, names) for of in classes):  # numbers of one class differ
                values = self._as_texts(values, [of or names for of in classes])
            self.labels, self.classes = encode_labels(values, name, len(self), names)

    def _as_texts(self, values: Sequence[Any], classes: Sequence[list[str]]) -> list[str | None]:
        """Return labels as their names, of which each shard has its own."""
        texts = list[str | None]()
        for path, names, start, stop in zip(self.paths, classes, self.starts, self.starts[1:], strict=False):
            with reading(path, _ADVICE):
                codes, known = encode_labels(values[start:stop], f"'{path}'", stop - start, names)
            found = [] if codes is None else codes.tolist()
            texts += [known[code] if known and code >= 0 else None for code in found or [-1] * (stop - start)]
        return texts

    def where(self, row: int) -> str:
        """Name the shard, the row in it, and its id where it has one of its own."""
        shard = bisect.bisect_right(self.starts, row) - 1
        return row_name(
            self.paths[shard], row - self.starts[shard], self._names[row] if self._names else None
        )

    def chunks(self, length: int) -> Iterator[list[Payload]]:
        """Return all rows in order, at most ``length`` at a time."""
        for number, images in self.arrays(length):
            with reading(self.paths[number], _ADVICE):
                values = images.to_pylist()
            base = Path(self.paths[number]).parent
            yield [as_payload(value, base) for value in values]

    def arrays(self, length: int) -> Iterator[tuple[int, Any]]:
        """Return (number of the shard, Arrow array of at most ``length`` images), in order."""
        for number, path in enumerate(self.paths):
            left = self.starts[number + 1] - self.starts[number]
            self._check(number, 0)
            with reading(path, _ADVICE):
                for batch in open_shard(path).read(length, [self.column], 0):
                    if (left := left - batch.num_rows) < 0:
                        break
                    yield number, batch.column(0)
            self._check(number, left)

    def _check(self, number: int, left: int) -> None:
        if left or file_mark(self.paths[number]) != self.marks[number]:
            raise ShardError(f"'{self.paths[number]}' has changed since it was opened: open it again")

    def seekable(self) -> Records:
        """Return the same rows from a temporary copy that can be read by row."""
        return SpooledRecords(self)


def _read_columns(
    opened: Opened, path: str, image: str, columns: dict[str, list[Any]], first: str
) -> tuple[int, Sequence[str]]:
    """Add a shard's values to those of each column; how many rows it has, and what it leaves out."""
    if missing := {image, *columns} - set(opened.schema.names):
        raise DataError(f"'{path}' lacks the column {', '.join(sorted(missing))} of '{first}'")
    if not columns:
        return opened.length(())[0], opened.skipped
    count = 0
    for batch in opened.read(_SCAN, list(columns), 0):
        count += batch.num_rows
        for name, values in columns.items():
            values += batch.column(name).to_pylist()
    return count, opened.skipped


class SpooledRecords(Records):
    """Rows of shards copied, still encoded, to memory-mapped temporary files.

    Most shards cannot be read by row, and one row group of parquet may hold the whole set, so random access
    would decode it again for every image. The copy takes as much disk as the encoded images ($TMPDIR chooses
    where), no memory, is opened by path in worker processes, and goes away with the object that made it.
    """

    def __init__(self, source: ShardSet) -> None:
        import pyarrow as pa

        self.name, self.ids = source.name, source.ids
        self.labels, self.classes, self.skipped = source.labels, source.classes, source.skipped
        self.source_where = source.where
        # of each batch: its first row; its file, its number there, and the folder of its shard
        self.firsts, self.batches = list[int](), list[tuple[int, int, Path]]()
        home = Path(tempfile.gettempdir())
        sweep(home)
        self.folder, rows = home / temporary_name("probjepa"), 0
        weakref.finalize(self, _remove, self.folder, os.getpid())
        writers: dict[Any, Any] = {}  # a file for each type that the images have: shards may differ
        written = list[int]()
        try:
            self.folder.mkdir(mode=0o700)
            for number, images in source.arrays(_COPY):
                schema = pa.schema([("image", images.type)])
                if images.type not in writers:
                    writers[images.type] = len(written), pa.ipc.new_file(self._file(len(written)), schema)
                    written.append(0)
                file, writer = writers[images.type]
                writer.write_batch(pa.record_batch([images], schema=schema))
                self.firsts.append(rows)
                self.batches.append((file, written[file], Path(source.paths[number]).parent))
                written[file] += 1
                rows += len(images)
            for _, writer in writers.values():
                writer.close()
        except OSError as error:
            raise DataError(
                f"{self.name} does not fit into memory, and its copy not into '{self.folder}' ({error}): "
                "set TMPDIR to a folder with more space"
            ) from error
        self._readers: dict[int, Any] = {}

    def _file(self, number: int) -> str:
        return str(self.folder / f"images-{number}.arrow")

    def where(self, row: int) -> str:
        """Name the shard and the row in it."""
        return self.source_where(row)

    def read(self, row: int) -> Payload:
        """Return what one row holds."""
        at = bisect.bisect_right(self.firsts, row) - 1
        file, number, base = self.batches[at]
        if file not in self._readers:
            import pyarrow as pa

            self._readers[file] = pa.ipc.open_file(pa.memory_map(self._file(file)))
        value = self._readers[file].get_batch(number).column(0)[row - self.firsts[at]].as_py()
        return as_payload(value, base)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker that drops its copy must not take the file from the others
        shutil.rmtree(folder, ignore_errors=True)
