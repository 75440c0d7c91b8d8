"""The rows of a shard, read and decoded some at a time."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from probjepa.data.decode import Decoder, Payload, Unreadable, as_payload
from probjepa.data.files import IMAGE_SUFFIXES
from probjepa.data.images import ImageSet
from probjepa.data.records import Records, default_workers, each, encode_labels
from probjepa.data.rows import as_column, identity
from probjepa.data.shard_files import Shard, ShardError, filesystem, is_remote, suffix_of
from probjepa.data.sources import Check
from probjepa.data.tables import class_names, holds_images, id_column, image_column, label_column
from probjepa.errors import DataError, ProbjepaError
from probjepa.files import first_line, regular

_BUFFER = 1 << 20  # bytes of a parquet column that are read at a time
# an Arrow schema, and what gives so many rows at a time of some columns
Opened = tuple[Any, Callable[[int, list[str]], Iterator[Any]]]


class Layout(NamedTuple):
    """Which columns of a shard are read, and whether its labels are texts."""

    image: str
    label: str | None
    id: str | None
    texts: bool

    def __str__(self) -> str:
        label = f"{'texts' if self.texts else 'numbers'} '{self.label}'" if self.label else "none"
        return f"images '{self.image}', labels {label}, ids {self.id or 'none'}"


def _opened(path: str) -> Any:
    """A file to read: a path as it is, for Arrow reads that best."""
    if not is_remote(path):
        return str(regular(path))
    system, name = filesystem(path)
    return system.open(name, "rb")


def _parquet(path: str) -> Opened:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(_opened(path), buffer_size=_BUFFER, pre_buffer=False)
    return file.schema_arrow, lambda rows, columns: file.iter_batches(batch_size=rows, columns=columns)


def _arrow(path: str) -> Opened:
    """A file of Arrow's, or a stream, as the Hugging Face Hub's libraries write it; batch by batch."""
    import pyarrow as pa

    place = _opened(path)
    source = pa.memory_map(place) if isinstance(place, str) else pa.PythonFile(place)
    try:
        file = pa.ipc.open_file(source)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        batches = file = pa.ipc.open_stream(source)
    return file.schema, lambda rows, columns: (
        batch.slice(start, rows).select(columns)
        for batch in batches
        for start in range(0, batch.num_rows, rows)
    )


def _tar(path: str) -> Opened:
    """The images of a tar file, which is read in one go: id, image, and label where there is one."""
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.string())])

    def batches(rows: int, columns: list[str]) -> Iterator[Any]:
        place = _opened(path)
        with open(place, "rb") if isinstance(place, str) else place as file:
            held = []
            for row in _members(file):
                held.append(dict(zip(schema.names, row, strict=True)))
                if len(held) == rows:
                    yield pa.RecordBatch.from_pylist(held, schema)
                    held = []
            if held:
                yield pa.RecordBatch.from_pylist(held, schema)

    return schema, batches


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes, str | None]]:
    """The images with their labels: what KEY.cls beside KEY.png says (WebDataset), else the first folder."""
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        key, images, label = "", list[tuple[str, bytes]](), ""
        for member in tar:
            # names may hold bytes that are no text
            name = PurePosixPath(member.name.encode("utf-8", "backslashreplace").decode())
            content = None if not member.isfile() or name.name.startswith(".") else tar.extractfile(member)
            if content is None:
                continue
            stem = str(name.with_name(name.name.partition(".")[0]))
            if stem != key:
                yield from ((x, pixels, label or _first_folder(x)) for x, pixels in images)
                key, images, label = stem, [], ""
            if name.suffix.lower() in IMAGE_SUFFIXES:
                images.append((str(name), content.read()))
            elif name.suffix.lower() == ".cls":
                label = content.read().decode("utf-8", "backslashreplace").strip()
        yield from ((x, pixels, label or _first_folder(x)) for x, pixels in images)


def _first_folder(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None


_READERS: dict[str, Callable[[str], Opened]] = {
    ".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow, ".ipc": _arrow,
    ".tar": _tar, ".tar.gz": _tar, ".tgz": _tar,
}  # fmt: skip


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn whatever a broken file makes of its reader into one line."""
    try:
        yield
    except ShardError:
        raise
    except ProbjepaError as error:
        raise ShardError(str(error)) from error
    except Exception as error:  # many types
        raise ShardError(
            f"'{path}' cannot be read as {suffix_of(path)} ({first_line(error)}): write it again, or leave "
            "such shards out, --on-error skip"
        ) from error


def _open(path: str) -> Opened:
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"'{path}' is no shard: they end in {', '.join(_READERS)}")
    return _READERS[suffix](path)


def read_layout(shard: Shard, labels: str | None = None, ids: str | None = None) -> Layout:
    """Return which columns of a shard hold images, labels and ids, chosen as ``open_images`` does.

    Raises
    ------
    ShardError
        if it cannot be read, or has no such columns
    """
    with _reading(shard.path):
        return _layout(_open(shard.path)[0], f"'{shard.path}'", labels, ids)


def _layout(schema: Any, where: str, labels: str | None, ids: str | None) -> Layout:
    import pyarrow as pa

    found = [field.name for field in schema if holds_images(field.type)]
    image = image_column(found, schema.names, where)
    label = label_column([name for name in schema.names if name != image], labels, where)
    texts = False
    if label is not None:
        kind = schema.field(label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = class_names(schema, label) is not None or "string" in str(kind)
    return Layout(image, label, id_column(schema.names, ids, where), texts)


class ShardRecords(Records):
    """The rows of one shard, read in order; what is not asked for is not kept.

    Attributes
    ----------
    known
        row → its id and label, of rows that are read and not yet taken
    """

    def __init__(self, shard: Shard, layout: Layout, labels: str | None, ids: str | None) -> None:
        self.name, self.layout, self.known = shard.path, layout, dict[int, tuple[str, Any]]()
        self._wanted_ids, self._rows = ids, 0
        with _reading(shard.path):
            schema, self._batches = _open(shard.path)
            found = _layout(schema, f"'{shard.path}'", labels, ids)
            if found.label is not None and str(schema.field(found.label).type) == "null":
                found = found._replace(texts=layout.texts)  # of no label it is not known what it would be
            self._names = class_names(schema, layout.label)
        if found != layout:
            raise ShardError(
                f"'{shard.path}' has other columns than the first shard ({found}; the first: {layout}): "
                "write all shards alike"
            )

    def __len__(self) -> int:
        return self._rows

    def read(self, row: int) -> Payload:
        """Refuse: a shard is read in order."""
        raise NotImplementedError("a shard is read in order")

    def chunks(self, length: int) -> Iterator[list[Payload]]:
        """Return all rows in order, at most ``length`` at a time."""
        layout, base = self.layout, Path(os.path.dirname(self.name))
        with _reading(self.name):
            columns = {name: None for name in layout[:3] if name is not None}
            for batch in self._batches(length, list(columns)):
                count = batch.num_rows
                ids = [
                    f"{os.path.basename(self.name)}:{row}" for row in range(self._rows, self._rows + count)
                ]
                if layout.id is not None:
                    for row, value in enumerate(batch.column(layout.id).to_pylist()):
                        if value is not None:
                            ids[row] = str(value)
                        elif self._wanted_ids is not None:
                            raise ShardError(f"{self.where(self._rows + row)} has no id in '{layout.id}'")
                labels: list[Any] = [None] * count
                if layout.label is not None:
                    values = batch.column(layout.label).to_pylist()
                    codes, names = encode_labels(values, self.name, count, self._names)
                    rows = ImageSet(torch.empty(count, 1, 1, 1, dtype=torch.uint8), codes, ids, names)
                    column = identity(rows, slice(None)).get("label")
                    labels = labels if column is None else column.to_pylist()
                self.known.update(enumerate(zip(ids, labels, strict=True), self._rows))
                self._rows += count
                yield [as_payload(value, base) for value in batch.column(layout.image).to_pylist()]


class Rows(NamedTuple):
    """Some rows of a shard, decoded."""

    images: ImageSet
    columns: dict[str, Any]  # "id", and "label" where the shards have labels


def read_shard(
    shard: Shard, layout: Layout, decoder: Decoder, rows: int, *,
    labels: str | None = None, ids: str | None = None, skip: bool = False, failed: list[str] | None = None,
) -> Iterator[Rows]:  # fmt: skip
    """Read a shard in order, so many rows at a time; the last may be fewer.

    Parameters
    ----------
    shard, layout
        what is read, and the columns that it must have
    decoder
        how its images become pixels
    rows
        that can be decoded, of each
    labels, ids
        as ``open_images`` has them
    skip
        leave rows out that cannot be decoded, and tell ``failed`` which and why

    Raises
    ------
    ShardError
        if it cannot be read, or no row of it can
    DataError
        for an image that cannot be decoded, or of another size or another count of channels
    """
    records = ShardRecords(shard, layout, labels, ids)
    check = Check(records, decoder, skip)
    check.skipped = [] if failed is None else failed
    workers = default_workers((decoder.size or 64) ** 2)
    pixels, known = list[Any](), list[tuple[str, Any]]()
    for row, image in each(records, decoder, workers=workers, progress=False, text=""):
        of = records.known.pop(row)
        if isinstance(image, Unreadable):
            check.broken(row, image)
            continue
        check.add(row, image.shape)
        del check.rows[1:]  # the first is for messages
        pixels.append(image)
        known.append(of)
        if len(pixels) == rows:
            yield _rows(pixels, known, layout, decoder)
            pixels, known = [], []
    if len(records):
        with _reading(shard.path):
            check.finish()
    if pixels:
        yield _rows(pixels, known, layout, decoder)


def _rows(pixels: list[Any], known: list[tuple[str, Any]], layout: Layout, decoder: Decoder) -> Rows:
    channels = decoder.channels or max(image.shape[0] for image in pixels)
    whole = np.empty((len(pixels), channels, *pixels[0].shape[1:]), dtype=np.uint8)
    for row, image in enumerate(pixels):
        whole[row] = image  # one grey channel is repeated over three
    ids = [name for name, _ in known]
    return Rows(ImageSet(torch.from_numpy(whole), None, ids), named_columns(known, layout))


def named_columns(known: list[tuple[str, Any]], layout: Layout) -> dict[str, Any]:
    """Return the columns "id" and, where the shards have labels, "label" of some rows."""
    import pyarrow as pa

    columns: dict[str, Any] = {"id": as_column([name for name, _ in known], pa.string())}
    if layout.label is not None:
        columns["label"] = as_column(
            [label for _, label in known], pa.string() if layout.texts else pa.int64()
        )
    return columns
