"""The rows of a shard, read and decoded some at a time."""

from __future__ import annotations

import os
import posixpath
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import torch

from probjepa.data.decode import Decoder, Payload, Unreadable, as_payload
from probjepa.data.files import IMAGE_SUFFIXES
from probjepa.data.images import ImageSet
from probjepa.data.litdata_chunks import open_chunk
from probjepa.data.records import Check, Records, default_workers, each, encode_labels, stacked
from probjepa.data.rows import as_column, identity
from probjepa.data.shard_files import Shard, ShardError, filesystem, is_remote, suffix_of
from probjepa.data.tables import class_names, holds_images, id_column, image_column, label_column
from probjepa.errors import DataError, MissingExtraError, ProbjepaError, ProbjepaWarning, few
from probjepa.files import first_line, regular

_BUFFER = 1 << 20  # bytes of a parquet column that are read at a time
_SPACING = 256  # rows of a tar file between two places that are kept
_LINKS = 40  # of a tar file that are followed to come to a file


class Opened(NamedTuple):
    """A file of rows: its Arrow schema, how many rows it has, and what reads them.

    ``read(rows, columns, start)`` gives Arrow batches of at most so many rows, from the row ``start`` on.
    ``length()`` gives the rows, and of a tar file, which tells them only when it is read through, the
    places of some. ``skipped`` has a line for each of its links that was read and leads to no file in it.
    """

    schema: Any
    read: Callable[[int, list[str], int], Iterator[Any]]
    length: Callable[[], tuple[int, tuple[int, ...]]]
    skipped: Sequence[str] = ()


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


def _parquet(path: str, places: Sequence[int] = ()) -> Opened:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(_opened(path), buffer_size=_BUFFER, pre_buffer=False)
    about = file.metadata

    def read(rows: int, columns: list[str], start: int) -> Iterator[Any]:
        group = 0
        while group < about.num_row_groups and start >= (count := about.row_group(group).num_rows):
            group, start = group + 1, start - count
        groups = range(group, about.num_row_groups)
        # no threads: Arrow's do not live on in a process that is forked
        batches = file.iter_batches(batch_size=rows, columns=columns, row_groups=groups, use_threads=False)
        return _from_row(batches, rows, columns, start)

    return Opened(file.schema_arrow, read, lambda: (about.num_rows, ()))


def _arrow(path: str, places: Sequence[int] = ()) -> Opened:
    """A file of Arrow's, or a stream, as the Hugging Face Hub's libraries write it; batch by batch."""
    import pyarrow as pa

    place = _opened(path)
    source = pa.memory_map(place) if isinstance(place, str) else pa.PythonFile(place, mode="r")
    try:
        file = pa.ipc.open_file(source)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        batches = file = pa.ipc.open_stream(source)
    return Opened(
        file.schema,
        lambda rows, columns, start: _from_row(batches, rows, columns, start),
        lambda: (sum(batch.num_rows for batch in batches), ()),
    )


def _from_row(batches: Iterator[Any], rows: int, columns: list[str], start: int) -> Iterator[Any]:
    """Batches of at most so many rows, from the row ``start`` on."""
    for batch in batches:
        for first in range(min(start, batch.num_rows), batch.num_rows, rows):
            part = batch.slice(first, rows).select(columns)
            part.validate(full=True)  # Arrow takes a damaged file's offsets as they are
            yield part
        start = max(0, start - batch.num_rows)


def _tar(path: str, places: Sequence[int] = ()) -> Opened:
    """The images of a tar file, which is read in one go: id, image, and label where there is one."""
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.string())])
    skipped = list[str]()

    @contextmanager
    def members(place: int, columns: Sequence[str]) -> Iterator[Iterator[_Member]]:
        opened = _opened(path)
        skipped.clear()
        with open(opened, "rb") if isinstance(opened, str) else opened as file:
            yield _members(path, file, place, columns, skipped)

    def read(rows: int, columns: list[str], start: int) -> Iterator[Any]:
        known = min(start // _SPACING, len(places) - 1)
        first, place = (known * _SPACING, places[known]) if known >= 0 else (0, 0)
        with members(place, columns) as found:
            wanted = islice(found, start - first, None)
            while held := [dict(zip(schema.names, row, strict=False)) for row in islice(wanted, rows)]:
                yield pa.RecordBatch.from_pylist(held, schema).select(columns)

    def count() -> tuple[int, tuple[int, ...]]:
        with members(0, ()) as found:
            number, kept = -1, []
            for number, (*_, place) in enumerate(found):
                if number % _SPACING == 0 and place is not None:
                    kept.append(place)
        return number + 1, tuple(kept)

    return Opened(schema, read, count, skipped)


# its name, its content, its label, and where its group starts in a file that is not compressed
_Member = tuple[str, bytes, str | None, int | None]


class _Links:
    """The files of a tar file that its links lead to; the whole of it is looked through for the first link.

    What is compressed is unpacked for that, to a temporary file that ``stack`` closes.
    """

    def __init__(self, file: IO[bytes], stack: ExitStack) -> None:
        self._file, self._stack = file, stack

    def follow(self, link: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """Return the file that a link leads to, if it is one of the tar file."""
        found: tarfile.TarInfo | None = link
        for _ in range(_LINKS):
            if found is None or not _is_link(found):
                return found
            folder = posixpath.dirname(found.name) if found.issym() else ""
            found = self._files.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
        return None

    @cached_property
    def tar(self) -> tarfile.TarFile:
        """The tar file, opened at any place."""
        at, file = self._file.tell(), self._file
        if _is_compressed(file, 0):
            file = self._stack.enter_context(tempfile.TemporaryFile(prefix="probjepa-"))  # noqa: SIM115
            with tarfile.open(fileobj=self._file, mode="r:*") as packed:
                content: Any = packed.fileobj
                content.seek(0)
                shutil.copyfileobj(content, file)
            file.seek(0)
        tar = self._stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
        tar.getmembers()
        self._file.seek(at)
        return tar

    @cached_property
    def _files(self) -> dict[str, tarfile.TarInfo]:
        # of what is there twice, the file: a file that is packed again is a link to its own name
        known = [member for member in self.tar if member.isfile() or _is_link(member)]
        known.sort(key=tarfile.TarInfo.isfile)
        return {posixpath.normpath(member.name): member for member in known}


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _is_compressed(file: IO[bytes], start: int) -> bool:
    """Whether a tar file is compressed; ``file`` is left at ``start``."""
    file.seek(start)
    compressed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
    file.seek(start)
    return compressed


def _members(
    path: str, file: IO[bytes], start: int, columns: Sequence[str], skipped: list[str]
) -> Iterator[_Member]:
    """The images with their labels: what KEY.cls beside KEY.png says (WebDataset), else the first folder.

    Of contents, those that ``columns`` do not name are not read. A link is read as the file that it leads to
    in the tar file; ``skipped`` gets a line for one that leads to none.
    """
    mode: Any = "r:*" if _is_compressed(file, start) else "r:"
    with tarfile.open(fileobj=file, mode=mode) as tar, ExitStack() as stack:
        links = _Links(file, stack)
        key, images, label, place = "", list[tuple[str, bytes]](), "", None
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or the headers of all stay in memory
            # names may hold bytes that are no text
            name = PurePosixPath(member.name.encode("utf-8", "backslashreplace").decode())
            if name.name.startswith("."):
                continue
            held, home = member, tar
            if _is_link(member):
                found = links.follow(member)
                if found is None:
                    skipped.append(f"{path}, {name} is a link that leads to no file in it")
                    continue
                held, home = found, links.tar
                if posixpath.normpath(found.name) == posixpath.normpath(member.name):
                    continue  # that very file
            if not held.isfile():
                continue
            stem = str(name.with_name(name.name.partition(".")[0]))
            if stem != key:
                yield from ((x, pixels, label or _first_folder(x), place) for x, pixels in images)
                key, images, label = stem, [], ""
                place = member.offset if tar.fileobj is file else None
            if name.suffix.lower() in IMAGE_SUFFIXES:
                content = home.extractfile(held) if "image" in columns else None
                images.append((str(name), content.read() if content else b""))
            elif name.suffix.lower() == ".cls" and "label" in columns:
                content = home.extractfile(held)
                label = content.read().decode("utf-8", "backslashreplace").strip() if content else ""
        yield from ((x, pixels, label or _first_folder(x), place) for x, pixels in images)
        # two blocks of zeros end it: tarfile takes the rest of one that is cut off, or damaged, for its end
        if not (last := tar.fileobj.read(tarfile.BLOCKSIZE)) or any(last):
            raise tarfile.ReadError("unexpected end of data")


def _first_folder(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None


def _chunk(path: str, places: Sequence[int] = ()) -> Opened:
    schema, read, count = open_chunk(path)
    return Opened(schema, read, lambda: (count, ()))


_READERS: dict[str, Callable[[str, Sequence[int]], Opened]] = {
    ".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow, ".ipc": _arrow,
    ".tar": _tar, ".tar.gz": _tar, ".tgz": _tar, ".bin": _chunk,
}  # fmt: skip


@contextmanager
def reading(
    path: str, advice: str = "write it again, or leave such shards out, --on-error skip"
) -> Iterator[None]:
    """Turn whatever a broken file makes of its reader into one line."""
    try:
        yield
    except (ShardError, MissingExtraError):
        raise
    except ProbjepaError as error:
        raise ShardError(str(error)) from error
    except Exception as error:  # many types
        raise ShardError(
            f"'{path}' cannot be read as {suffix_of(path)} ({first_line(error)}): {advice}"
        ) from error


def open_shard(path: str, places: Sequence[int] = ()) -> Opened:
    """Open a file of rows by the reader of its suffix, which may raise any error; ``places``: see Opened."""
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"'{path}' is no shard: they end in {', '.join(_READERS)}")
    return _READERS[suffix](path, places)


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


def layout_of(schema: Any, where: str, labels: str | None, ids: str | None) -> Layout:
    """Return which columns of an Arrow schema hold images, labels and ids; DataError if none can."""
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

    def __init__(
        self, shard: Shard, layout: Layout, labels: str | None, ids: str | None, *,
        start: int = 0, places: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.name, self.layout, self.known = shard.path, layout, dict[int, tuple[str, Any]]()
        self._wanted_ids, self._rows = ids, start
        with reading(shard.path):
            self._opened = open_shard(shard.path, places)
            schema = self._opened.schema
            found = layout_of(schema, f"'{shard.path}'", labels, ids)
            if found.label is not None and str(schema.field(found.label).type) == "null":
                found = found._replace(texts=layout.texts)  # of no label it is not known what it would be
            self._names = class_names(schema, layout.label)
        self.skipped = self._opened.skipped
        if found != layout:
            raise ShardError(
                f"'{shard.path}' has other columns than the first shard ({found}; the first: {layout}): "
                "write all shards alike"
            )

    def __len__(self) -> int:
        return self._rows

    def count(self) -> tuple[int, tuple[int, ...]]:
        """Return how many rows there are, and the places of some in a tar file."""
        with reading(self.name):
            return self._opened.length()

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
    if skip:
        check.skipped += records.skipped
    elif records.skipped:
        warnings.warn(
            f"left out: {few(records.skipped, 2)}: pack the file, too, or have such links listed, --on-error "
            "skip (on_error='skip')",
            ProbjepaWarning,
            stacklevel=2,
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
