"""The readers of shards: a file of rows in any of their formats, as batches of Arrow."""

from __future__ import annotations

import bisect
import math
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from probjepa.data.files import IMAGE_SUFFIXES, suffix_of
from probjepa.data.litdata_chunks import open_chunk
from probjepa.data.shard_files import ShardError, filesystem, is_remote
from probjepa.errors import DataError, MissingExtraError, ProbjepaError, short
from probjepa.files import file_state, first_line, is_rewritten, regular

_BUFFER = 1 << 20  # bytes of a parquet column that are read at a time
_SPACING = 256  # rows of a tar file between two places that are kept, or more
_LINKS = 40  # of a tar file that are followed to come to a file

# of a tar file: a row, and where the group that it is the first of starts
Places = tuple[tuple[int, int], ...]


class Opened(NamedTuple):
    """A file of rows: its Arrow schema, how many rows it has, and what reads them.

    ``read(rows, columns, start)`` gives Arrow batches of at most so many rows, from the row ``start`` on.
    ``length(columns)`` gives the rows, and of a tar file, which tells them only when it is read through, the
    places of some; the named columns of it are then read, too, so that what is wrong with them is known.
    ``skipped`` has a line for each of its links that was read and leads to no file in it.
    """

    schema: Any
    read: Callable[[int, list[str], int], Iterator[Any]]
    length: Callable[[Sequence[str]], tuple[int, Places]]
    skipped: Sequence[str] = ()


def _opened(path: str) -> Any:
    """A file to read: a path as it is, for Arrow reads that best."""
    if not is_remote(path):
        return str(regular(path))
    system, name = filesystem(path)
    return system.open(name, "rb")


def _parquet(path: str, places: Places = ()) -> Opened:
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

    return Opened(file.schema_arrow, read, lambda columns: (about.num_rows, ()))


def _arrow(path: str, places: Places = ()) -> Opened:
    """A file of Arrow's, or a stream, as the Hugging Face Hub's libraries write it; batch by batch."""
    import pyarrow as pa

    place = _opened(path)
    source = pa.memory_map(place) if isinstance(place, str) else pa.PythonFile(place, mode="r")
    state = None if is_remote(path) else file_state(Path(path))

    def check() -> None:
        # what a mapped file no longer holds ends the process
        if is_rewritten(Path(path), state):
            raise ValueError("it changed while it was read: leave it as it is")

    try:
        file = pa.ipc.open_file(source)
        found = (file.get_batch(i) for i in range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        found = file = pa.ipc.open_stream(source)

    def batches() -> Iterator[Any]:
        check()
        for batch in found:
            yield batch
            check()

    return Opened(
        file.schema,
        lambda rows, columns, start: _from_row(batches(), rows, columns, start, check),
        lambda columns: (sum(batch.num_rows for batch in batches()), ()),
    )


def _from_row(
    batches: Iterator[Any],
    rows: int,
    columns: list[str],
    start: int,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Batches of at most so many rows, from the row ``start`` on; ``check`` is called before each is read."""
    for batch in batches:
        for first in range(min(start, batch.num_rows), batch.num_rows, rows):
            check()
            part = batch.slice(first, rows).select(columns)
            part.validate(full=True)  # Arrow takes a damaged file's offsets as they are
            yield part
        start = max(0, start - batch.num_rows)


def _tar(path: str, places: Places = ()) -> Opened:
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
        known = bisect.bisect_right(places, (start, math.inf)) - 1
        first, place = places[known] if known >= 0 else (0, 0)
        with members(place, columns) as found:
            wanted = islice(found, start - first, None)
            while held := [dict(zip(schema.names, row, strict=False)) for row in islice(wanted, rows)]:
                yield pa.RecordBatch.from_pylist(held, schema).select(columns)

    def count(columns: Sequence[str]) -> tuple[int, Places]:
        with members(0, columns) as found:
            number, kept = -1, list[tuple[int, int]]()
            for number, (*_, place) in enumerate(found):
                if place is not None and (not kept or number >= kept[-1][0] + _SPACING):
                    kept.append((number, place))
        return number + 1, tuple(kept)

    return Opened(schema, read, count, skipped)


# its name, its content, its label, and where its group starts, of the first of a group that is not compressed
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
    """The images with their labels: what KEY.cls next to KEY.png says (WebDataset), else the first folder.

    Of contents, those that ``columns`` do not name are not read. A link is read as the file that it leads to
    in the tar file; ``skipped`` gets a line for one that leads to none. ShardError for a label that is empty
    or stands apart from its image, and where none stands beside an image: the folder's name would be taken
    for it; and for a key with several labels.
    """
    mode: Any = "r:*" if _is_compressed(file, start) else "r:"
    with tarfile.open(fileobj=file, mode=mode) as tar, ExitStack() as stack:
        links = _Links(file, stack)
        key, images, label, place = "", list[tuple[str, bytes]](), "", None
        met = dict[int, bool]()  # key → whether it has a label: a number takes half of a name's memory
        own = set[bool]()  # whether images have labels of their own
        alone = ""  # a label without an image

        def group() -> Iterator[_Member]:
            nonlocal alone
            if "label" in columns and (images or label):
                if met.get(hash(key)) or (label and hash(key) in met):
                    raise ShardError(
                        f"'{path}': {short(key, 200)}.cls does not stand next to its image: pack the files "
                        "by name (tar --sort=name), or leave labels out with labels=none (--labels none)"
                    )
                met[hash(key)] = bool(label)
                if images:
                    own.add(bool(label))
                else:
                    alone = alone or key
            return _group(images, label, place)

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
                yield from group()
                key, images, label = stem, [], ""
                place = member.offset if tar.fileobj is file else None
            if name.suffix.lower() in IMAGE_SUFFIXES:
                content = home.extractfile(held) if "image" in columns else None
                images.append((str(name), content.read() if content else b""))
            elif name.suffix.lower() == ".cls" and "label" in columns:
                content = home.extractfile(held)
                said = content.read().decode("utf-8", "backslashreplace").strip() if content else ""
                if not said:
                    raise ShardError(
                        f"'{path}': {short(str(name), 200)} is empty: write the label of its image in it, or "
                        "leave labels out with labels=none (--labels none)"
                    )
                if label not in ("", said):
                    raise ShardError(
                        f"'{path}': {short(key, 200)} has several labels, of which {short(str(name), 200)} "
                        "is one (a key ends at the first dot of a name): give each image a key of its own, "
                        "or leave labels out with labels=none (--labels none)"
                    )
                label = said
        yield from group()
        if start == 0 and alone and own == {False}:
            raise ShardError(
                f"'{path}': no label has an image of its name ({short(alone, 200)}.cls, for one): put "
                "KEY.cls in the folder of KEY.png, or leave labels out with labels=none (--labels none)"
            )
        # two blocks of zeros end it: tarfile takes the rest of one that is cut off, or damaged, for its end
        if not (last := tar.fileobj.read(tarfile.BLOCKSIZE)) or any(last):
            raise tarfile.ReadError("unexpected end of data")


def _group(images: Sequence[tuple[str, bytes]], label: str, place: int | None) -> Iterator[_Member]:
    for name, pixels in images:
        yield name, pixels, label or _first_folder(name), place
        place = None


def _first_folder(name: str) -> str | None:
    parts = [part for part in PurePosixPath(name).parts if part.strip("/") not in ("", "..")]
    return parts[0] if len(parts) > 1 else None


def _chunk(path: str, places: Places = ()) -> Opened:
    schema, read, count = open_chunk(path)
    return Opened(schema, read, lambda columns: (count, ()))


_READERS: dict[str, Callable[[str, Places], Opened]] = {
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
    except PermissionError as error:
        reason = error.strerror or first_line(error)  # those of stores have words alone
        raise ShardError(f"'{path}' cannot be read ({reason}): check your rights") from error
    except Exception as error:  # many types
        raise ShardError(
            f"'{path}' cannot be read as {suffix_of(path)} ({first_line(error)}): {advice}"
        ) from error


def open_shard(path: str, places: Places = ()) -> Opened:
    """Open a file of rows by the reader of its suffix, which may raise any error; ``places``: see Opened."""
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"'{path}' is no shard: they end in {', '.join(_READERS)}")
    return _READERS[suffix](path, places)
