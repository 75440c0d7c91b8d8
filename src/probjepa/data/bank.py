"""Embeddings larger than memory: the shards that ``embed`` writes, as one array mapped from a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.format import write_array_header_1_0

from probjepa.data.shard_files import ShardError, find_shards
from probjepa.data.shards import read_column
from probjepa.errors import DataError
from probjepa.files import cannot_write, refuse_existing, staged_file

_ROWS = 4096  # of a shard at a time
Rows: TypeAlias = npt.NDArray[np.float32]
Bank: TypeAlias = np.memmap[Any, np.dtype[np.float32]]


def open_bank(source: str | Path, *, column: str = "embedding", file: str | Path | None = None) -> Bank:
    """Return the embeddings (N, D) of a folder of shards, in the order of the shards' names.

    They are copied, some thousand rows at a time, to one .npy file, and mapped from it read-only. So memory
    does not grow with N; the file takes 4·N·D bytes of disk.

    Parameters
    ----------
    source
        a folder or an address of parquet or Arrow files such as ``embed --out FOLDER`` writes, or one file
    column
        of lists of D numbers; they are kept in float32
    file
        the .npy file to write, which ``numpy.load(file, mmap_mode="r")`` maps again. None: one in $TMPDIR
        without a name, whose space is free again when the array is gone

    Raises
    ------
    DataError
        for a shard that cannot be read, lacks the column, has rows of another width, or a number that is
        null or not finite in float32; or no row at all
    ArtifactError
        if ``file`` is there already, or cannot be written
    """
    blocks = _embeddings(str(source), column)
    if file is None:
        return map_rows(blocks)
    path = Path(file)
    refuse_existing(path, False, "choose another file")
    with staged_file(path) as stage, stage.open("wb") as out:
        _write(blocks, out)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def map_rows(blocks: Iterable[Rows]) -> Bank:
    """Return blocks of rows (n, D) as one array, mapped from a file in $TMPDIR that has no name.

    Raises
    ------
    ArtifactError
        if it cannot be written
    """
    try:
        with tempfile.TemporaryFile(prefix="probjepa-") as out:
            begin, shape = _write(blocks, out)
            return np.memmap(out, np.float32, "r", offset=begin, shape=shape)
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error


def _embeddings(source: str, column: str) -> Iterator[Rows]:
    width = 0
    for shard in find_shards(source):
        for lists in read_column(shard, column, _ROWS):
            if not len(lists):
                continue
            rows = _numbers(lists, f"'{shard.path}': '{column}'")
            width = width or rows.shape[1]
            if rows.shape[1] != width:
                raise ShardError(
                    f"'{shard.path}': '{column}' has rows of {rows.shape[1]} numbers, and those before it "
                    f"{width}: embed all shards with one encoder"
                )
            yield rows
    if not width:
        raise DataError(f"the shards of '{source}' have no rows: check the source")


def _write(blocks: Iterable[Rows], out: IO[bytes]) -> tuple[int, tuple[int, int]]:
    """Write a .npy file; where its numbers begin, and their shape."""
    _write_head(out, 0, 0)
    begin, count, width = out.tell(), 0, 0
    for rows in blocks:
        out.write(rows.tobytes())
        count, width = count + len(rows), rows.shape[1]
    out.seek(0)
    _write_head(out, count, width)
    assert out.tell() == begin
    out.flush()
    return begin, (count, width)


def _write_head(out: IO[bytes], *shape: int) -> None:
    """NumPy leaves room in it for any number of rows."""
    write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _numbers(lists: Any, where: str) -> Rows:
    """Return lists of numbers, of one length, as (n, D)."""
    try:
        lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
        with np.errstate(over="ignore"):  # what overflows is refused
            flat = lists.flatten().to_numpy(zero_copy_only=False).astype("<f4", copy=False)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        raise ShardError(f"{where} holds {lists.type} values: choose a column of lists of numbers") from None
    if lists.null_count or len(lengths) != 1 or not lengths[0]:
        raise ShardError(f"{where} has lists of different lengths, or none: embed the shard again")
    rows: Rows = flat.reshape(len(lists), -1)
    if wrong := int((~np.isfinite(rows)).any(1).sum()):
        raise ShardError(
            f"{where} has null, NaN, Inf or a number beyond float32 in {wrong} of {len(rows)} rows: embed "
            "the shard again, or leave these rows out"
        )
    return rows
