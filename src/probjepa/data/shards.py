"""The rows of a shard, read and decoded some at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from probjepa.data.decode import Decoder, Payload, Unreadable, as_payload
from probjepa.data.images import ImageSet
from probjepa.data.records import Check, Records, default_workers, each, encode_labels, stacked
from probjepa.data.rows import as_column, identity
from probjepa.data.shard_files import Shard, ShardError
from probjepa.data.shard_readers import Places, open_shard, reading
from probjepa.data.tables import class_names, holds_images, id_column, image_column, label_column
from probjepa.errors import few, short, warn

_NAMES = 4096  # ids at a time


class Layout(NamedTuple):
    """Which columns of a shard are read, and whether its labels are texts; None: it has none to tell by."""

    image: str
    label: str | None
    id: str | None
    texts: bool | None

    def __str__(self) -> str:
        label = f"{'texts' if self.texts else 'numbers'} '{self.label}'" if self.label else "none"
        return f"images '{self.image}', labels {label}, ids {self.id or 'none'}"


def read_layout(shard: Shard, labels: str | None = None, ids: str | None = None) -> Layout:
    """Return which columns of a shard hold images, labels and ids, chosen as ``open_images`` does.

    Raises
    ------
    ShardError
        if it cannot be read, or has no such columns
    """
    with reading(shard.path):
        return layout_of(open_shard(shard.path).schema, f"'{shard.path}'", labels, ids)


def read_column(shard: Shard, column: str, rows: int) -> Iterator[Any]:
    """Yield one column of a shard as Arrow arrays of at most so many rows, in order.

    Raises
    ------
    ShardError
        if it cannot be read, or has no such column
    """
    with reading(shard.path):
        opened = open_shard(shard.path)
        if column not in opened.schema.names:
            raise ShardError(
                f"'{shard.path}' lacks the column '{column}' (it has {', '.join(opened.schema.names)}): "
                "choose another"
            )
        for batch in opened.read(rows, [column], 0):
            yield batch.column(0)


def common_layout(
    shards: Sequence[Shard], labels: str | None = None, ids: str | None = None, *, skip: bool = False
) -> tuple[Layout | None, list[str]]:
    """Return the columns that the first readable shard has, and why others before it cannot be read.

    Whether labels are texts says the first of them that has any. None: none can be read.

    Raises
    ------
    ShardError
        if the first cannot be read, unless ``skip``
    """
    layout, failed = None, list[str]()
    for shard in shards:
        try:
            found = read_layout(shard, labels, ids)
        except ShardError as error:
            if layout is None:
                if not skip:
                    raise
                failed.append(str(error))
            continue
        layout = layout or found
        if layout[:3] == found[:3]:
            layout = layout._replace(texts=found.texts)
        if layout.texts is not None:
            break
    if layout is not None and layout.texts is None:  # nor has any other labels
        layout = layout._replace(texts=False)
    return layout, failed


def layout_of(schema: Any, where: str, labels: str | None, ids: str | None) -> Layout:
    """Return which columns of an Arrow schema hold images, labels and ids; DataError if none can."""
    import pyarrow as pa

    found = [field.name for field in schema if holds_images(field.type)]
    image = image_column(found, schema.names, where)
    label = label_column([name for name in schema.names if name != image], labels, where)
    texts: bool | None = False
    if label is not None:
        kind = schema.field(label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = class_names(schema, label) is not None or "string" in str(kind)
        if not texts and pa.types.is_null(kind):
            texts = None
    return Layout(image, label, id_column(schema.names, ids, where), texts)


def row_name(shard: str, row: int, own: str | None) -> str:
    """Return the words on one row of a shard, with its own id: in a tar file it is found by its name."""
    return f"{shard}, row {row}" + (f" ('{short(own, 200)}')" if own is not None else "")


class ShardRecords(Records):
    """The rows of one shard, read in order; what is not asked for is not kept.

    Attributes
    ----------
    known
        row → its id and label, of rows that are read and not yet taken
    """

    def __init__(
        self, shard: Shard, layout: Layout, labels: str | None, ids: str | None, *,
        start: int = 0, places: Places = (),
    ) -> None:  # fmt: skip
        self.name, self.layout, self.known = shard.path, layout, dict[int, tuple[str, Any]]()
        self._file = shard.file
        self._wanted_ids, self._rows = ids, start
        with reading(shard.path):
            self._opened = open_shard(shard.path, places)
            schema = self._opened.schema
            found = layout_of(schema, f"'{shard.path}'", labels, ids)
            if found.texts is None:
                found = found._replace(texts=layout.texts)
            self._names = class_names(schema, layout.label)
        self.skipped = self._opened.skipped
        if found != layout:
            raise ShardError(
                f"'{shard.path}' has other columns than the first shard ({found}; the first: {layout}): "
                "write all shards alike"
            )

    def __len__(self) -> int:
        return self._rows

    def where(self, row: int) -> str:
        """Name the shard, the row in it, and its id where it has one of its own."""
        own = self.known[row][0] if row in self.known else None
        return row_name(self.name, row, None if own == self._made_id(row) else own)

    def _made_id(self, row: int) -> str:
        """The id of a row that has none."""
        return f"{self._file}:{row}"

    def next_id(self) -> str | None:
        """Return the id of the row that comes next, if it has one of its own."""
        if self.layout.id is None:
            return None
        with reading(self.name):
            # from a row amid a group of rows parquet reads all before it, in batches of as many
            (batch,) = islice(self._opened.read(_NAMES, [self.layout.id], self._rows), 1)
            value = batch.column(0)[0].as_py()
        return None if value is None else str(value)

    def count(self) -> tuple[int, Places]:
        """Return how many rows there are, and the places of some in a tar file."""
        with reading(self.name):
            return self._opened.length([self.layout.label] if self.layout.label is not None else [])

    def images(self, length: int) -> Iterator[Payload]:
        """Return the images alone of all rows, or of those from ``start`` on."""
        base = Path(os.path.dirname(self.name))
        with reading(self.name):
            for batch in self._opened.read(length, [self.layout.image], self._rows):
                yield from (as_payload(value, base) for value in batch.column(0).to_pylist())

    def chunks(self, length: int) -> Iterator[list[Payload]]:
        """Return all rows in order, or those from ``start`` on, at most ``length`` at a time."""
        layout, base = self.layout, Path(os.path.dirname(self.name))
        with reading(self.name):
            columns = {name: None for name in layout[:3] if name is not None}
            for batch in self._opened.read(length, list(columns), self._rows):
                count = batch.num_rows
                ids = [self._made_id(row) for row in range(self._rows, self._rows + count)]
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
    decoder = replace(decoder, levels=np.zeros(256, np.bool_), animated=set())  # what is said is of this one
    check = Check(records, decoder, skip)
    check.skipped = [] if failed is None else failed
    workers = default_workers((decoder.size or 64) ** 2)
    pixels, known = list[Any](), list[tuple[str, Any]]()
    for row, image in each(records, decoder, workers=workers, progress=False, text=""):
        if isinstance(image, Unreadable):
            check.broken(row, image)
            del records.known[row]
            continue
        check.add(row, image.shape)
        of = records.known.pop(row)
        del check.rows[1:]  # the first is for messages
        pixels.append(image)
        known.append(of)
        if len(pixels) == rows:
            yield _rows(pixels, known, layout, decoder)
            pixels, known = [], []
    if skip:
        check.skipped += records.skipped
    elif records.skipped:
        warn(
            f"left out: {few(records.skipped, 2)}: pack the file, too, or have such links listed, --on-error "
            "skip (on_error='skip')"
        )
    if len(records):
        with reading(shard.path):
            check.finish()
    if pixels:
        yield _rows(pixels, known, layout, decoder)


def _rows(pixels: list[Any], known: list[tuple[str, Any]], layout: Layout, decoder: Decoder) -> Rows:
    images = stacked(pixels, decoder.channels or max(image.shape[0] for image in pixels))
    return Rows(ImageSet(images, None, [name for name, _ in known]), named_columns(known, layout))


def named_columns(known: list[tuple[str, Any]], layout: Layout) -> dict[str, Any]:
    """Return the columns "id" and, where the shards have labels, "label" of some rows."""
    import pyarrow as pa

    columns: dict[str, Any] = {"id": as_column([name for name, _ in known], pa.string())}
    if layout.label is not None:
        columns["label"] = as_column(
            [label for _, label in known], pa.string() if layout.texts else pa.int64()
        )
    return columns
