"""Shards to train on that need not fit into memory: each is read once an epoch, in a shuffled order.

The shards are shuffled and laid end to end, and that line is cut into lanes of one length. An epoch takes a
row of each lane in turn; a lane's rows are shuffled among those that the buffer holds. So the order depends
on one number alone, and starts anywhere: what is before is not decoded, nor all of it read.
"""

from __future__ import annotations

import bisect
import glob
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probjepa.data.decode import Decoder, Payload, Unreadable
from probjepa.data.files import suffix_of
from probjepa.data.fitting import Fit, side_and_fit
from probjepa.data.images import Images, ImageSet, Shaped
from probjepa.data.records import Check, Records, attempt, broken_image, encode_labels, stacked
from probjepa.data.shard_files import (
    Shard,
    ShardError,
    file_mark,
    find_shards,
    holds_shards,
    hub_address,
    is_remote,
)
from probjepa.data.shard_readers import Places
from probjepa.data.shards import Layout, ShardRecords, common_layout, row_name
from probjepa.data.sources import READERS, open_images, peek
from probjepa.data.tables import one_split
from probjepa.errors import ConfigError, DataError
from probjepa.provenance import free_memory
from probjepa.typed import settings_checked

LANES = 32
_SAMPLE_ROWS, _SAMPLE_BYTES = 10_000, 2**28
_READ = 64  # rows of a shard at a time
_THREADS = 16  # that look at shards: where these are in a store, that is mostly waiting


class Part(NamedTuple):
    """A shard: its rows, what tells its file from what it was, and the places of some rows of a tar file."""

    shard: Shard
    rows: int
    mark: str
    places: Places


class Piece(NamedTuple):
    """What one reader has of a batch: pixels (n, C, H, W), their places in it, and what could not be read."""

    places: Tensor
    pixels: Tensor
    broken: list[str]


class Stream(Shaped, Records):
    """Shards of N images in all.

    Attributes
    ----------
    parts, layout, decoder, shape
        the shards that have rows, their columns, how an image is decoded, and the shape (C, H, W) of each
    buffer
        rows that are held, still encoded, to be shuffled
    skip
        whether a row of the sample takes the place of one that cannot be read
    sample
        some thousand rows, spread over all, for what looks at images beside the training
    skipped
        a line for each shard, and each row of the sample, that was left out
    """

    sample: ImageSet

    def __init__(
        self, name: str, parts: Sequence[Part], layout: Layout, decoder: Decoder, *, buffer: int, skip: bool,
        skipped: Sequence[str], columns: tuple[str | None, str | None],
    ) -> None:  # fmt: skip
        self.name, self.parts, self.layout, self.decoder = name, list(parts), layout, decoder
        self.buffer, self.skip, self.skipped, self._columns = buffer, skip, list(skipped), columns
        self._starts = [0, *accumulate(part.rows for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""
        return self.sample.shape

    def where(self, row: int) -> str:
        """Name the shard, the row in it, and its id where it has one of its own (compressed tars: no id)."""
        number = bisect.bisect_right(self._starts, row) - 1
        at, own, path = row - self._starts[number], None, self.parts[number].shard.path
        if suffix_of(path) not in (".tar.gz", ".tgz"):  # read from their beginnings
            with suppress(ShardError):  # it is asked for where something is wrong
                own = self._open(number, at).next_id()
        return row_name(path, at, own)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the shards, and the order of their rows, from others."""
        # a size or a number of channels that was not asked for is that of the images
        decoder = replace(self.decoder, channels=self.shape[0], size=self.decoder.size or self.shape[1])
        digest = hashlib.sha256(repr((decoder, self.shape, self.layout)).encode())
        for part in self.parts:
            digest.update(repr((part.shard.name, part.rows, part.mark)).encode())
        return {
            "data_images": len(self),
            "data_shards": len(self.parts),
            "data_sha256": digest.hexdigest()[:16],
            "stream_buffer": self.buffer,
        }

    def pieces(
        self, draw: int, batch_size: int, batches: range, *, rank: int = 0, world_size: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Piece]:  # fmt: skip
        """Yield what one of a process's readers has of each of its batches.

        Parameters
        ----------
        draw
            what decides on the order
        batch_size, batches
            images a batch and process, and which batches of the epoch
        rank, world_size
            which process of how many
        share
            which reader of how many that this process has

        Raises
        ------
        DataError
            for a shard that is not as it was, an image that cannot be read or is of another shape
        """
        lanes, size = lane_count(world_size), batch_size * world_size
        mine = range(rank, lanes, world_size)[share[0] :: share[1]]

        def before(lane: int, batch: int) -> int:
            return max(0, -((lane - batch * size) // lanes))  # of the lane's rows

        readers = {lane: self._decoded(draw, lane, lanes, before(lane, batches.start)) for lane in mine}
        for batch in batches:
            taken = [
                (lane, row * lanes + lane - batch * size)
                for lane in mine
                for row in range(before(lane, batch), before(lane, batch + 1))
            ]
            pixels = np.empty((len(taken), *self.shape), dtype=np.uint8)
            broken = []
            for at, (lane, _) in enumerate(taken):
                image, line = next(readers[lane])
                pixels[at] = image  # one grey channel is repeated over three
                broken += [line] if line else []
            places = torch.tensor([place // world_size for _, place in taken], dtype=torch.int64)
            yield Piece(places, torch.from_numpy(pixels), broken)

    def _decoded(self, draw: int, lane: int, lanes: int, start: int) -> Iterator[tuple[Any, str]]:
        """Yield a lane's images from the ``start``-th of its order on, each with what was broken."""
        encoded: Iterator[tuple[int, Payload]] | None = None
        for first, stop, order in self._windows(draw, lane, lanes, start):
            encoded = encoded or self._encoded(draw, lane, lanes, first)
            held = list(islice(encoded, stop - first))
            for at in order[max(0, start - first) :]:
                yield self._image(*held[at])
            held.clear()  # before the next are read

    def _windows(self, draw: int, lane: int, lanes: int, start: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield what a lane shuffles at a time: (first, one after the last, the order of those between).

        The one with the row ``start`` comes first. Lanes end theirs at different times, so that they do not
        all read at once.
        """
        count = len(self) // lanes + (lane < len(self) % lanes)
        length = max(1, self.buffer // LANES)
        shift = lane * length // lanes
        for number in range((start + shift) // length, -(-(count + shift) // length)):
            first, stop = max(0, number * length - shift), min(count, (number + 1) * length - shift)
            yield first, stop, np.random.default_rng((draw, lane, number)).permutation(stop - first).tolist()

    def _image(self, row: int, payload: Payload) -> tuple[Any, str]:
        """Return the pixels of a row, or of one of the sample and why it is there."""
        line = ""
        image = attempt(self, self.decoder, row, payload)
        if isinstance(image, Unreadable):
            line = f"{self.where(row)} {image}"
            if not self.skip:
                raise broken_image(line)
            image = self.sample.images[row % len(self.sample)].numpy()
        if image.shape[1:] != self.shape[1:] or image.shape[0] > self.shape[0]:
            raise DataError(
                f"{self.where(row)} has the shape {image.shape}, and the first rows have {self.shape}: pass "
                "a size, or --convert (convert=True) for other channels"
            )
        return image, line

    def _encoded(self, draw: int, lane: int, lanes: int, start: int) -> Iterator[tuple[int, Payload]]:
        """Yield (row, payload) of a lane from its ``start``-th row on, in the order of the shards."""
        for number, first, stop in self._segments(draw, lane, lanes, start):
            row = first
            wanted = stop - first
            for payload in islice(self._open(number, first).images(min(wanted, _READ)), wanted):
                yield self._starts[number] + row, payload
                row += 1
            if row != stop:
                raise _changed(self.parts[number])

    def _segments(self, draw: int, lane: int, lanes: int, start: int) -> Iterator[tuple[int, int, int]]:
        """Yield what a lane holds from its ``start``-th row on: (shard, first row, one after the last)."""
        share, more = divmod(len(self), lanes)
        begin, end = (share * at + min(at, more) for at in (lane, lane + 1))
        random = np.random.default_rng(draw)
        order = random.permutation(len(self.parts)).tolist()
        # few shards: the line starts in the midst of one, or the same rows were always the first
        turn = int(random.integers(len(self))) if len(self.parts) < LANES else 0
        begin, end, at = begin + start + turn, end + turn, 0
        for number in order * 2:
            rows = self.parts[number].rows
            first, stop = max(begin - at, 0), min(end - at, rows)
            if first < stop:
                yield number, first, stop
            at += rows

    def _open(self, number: int, start: int) -> ShardRecords:
        """Open one shard at a row; ShardError if it is not as it was."""
        part = self.parts[number]
        if file_mark(part.shard.path) != part.mark:
            raise _changed(part)
        return ShardRecords(part.shard, self.layout, *self._columns, start=start, places=part.places)

    def look(self, seed: int) -> None:
        """Decode the sample, and learn the shape of the images from it."""
        side = self.decoder.size or 256
        rows = min(_SAMPLE_ROWS, max(256, _SAMPLE_BYTES // (3 * side * side)))
        check = Check(self, self.decoder, self.skip)
        images, known = list[Any](), list[tuple[str, Any]]()
        for lane in range(LANES):
            left = -(-rows // LANES)
            for number, first, stop in self._segments(seed, lane, LANES, 0):
                records, row = self._open(number, first), first
                wanted = min(left, stop - first)
                chunks = records.chunks(min(wanted, _READ))
                for payload in islice(chain.from_iterable(chunks), wanted):
                    whole = self._starts[number] + row
                    image = attempt(self, self.decoder, whole, payload)
                    if isinstance(image, Unreadable):
                        check.broken(whole, image)
                    else:
                        check.add(whole, image.shape)
                        images.append(image)
                        known.append(records.known.pop(row))
                    row += 1
                if not (left := left - (row - first)):
                    break
        check.finish()
        self.skipped, pixels = check.skipped, stacked(images, check.channels)
        labels, classes = encode_labels([label for _, label in known], self.name, len(known))
        self.sample = ImageSet(pixels, labels, [of for of, _ in known], classes, self.name)


def lane_count(world_size: int) -> int:
    """Return the lanes of an epoch, as many for each process: the same for 1, 2, 4, 8, 16 and 32 of them."""
    return -(-LANES // world_size) * world_size


def _changed(part: Part) -> ShardError:
    return ShardError(f"'{part.shard.path}' has changed since it was opened: train again, with overwrite")


@settings_checked
def open_training(
    source: Any, *, stream: bool | Literal["auto"] = "auto", buffer: int = 4096, seed: int = 0,
    memory_limit: float | None = None, **reading: Any,
) -> Images | Stream:  # fmt: skip
    """Open a set to train on: as a stream of shards, or as ``open_images`` does.

    Parameters
    ----------
    source
        what ``open_images`` takes, or shards: a folder, a file, a glob or an address of parquet, Arrow,
        tar or litdata's files; with ``stream=True`` also ``hf:NAME[:SPLIT]``, of which the hub has parquet
        files
    stream
        ``"auto"``: tar, Arrow and litdata's files, what has an address, and parquet files whose images would
        take more than ``memory_limit``
    buffer
        rows that are held to be shuffled
    seed
        of the choice of the sample
    memory_limit, reading
        as ``open_images`` has it, and what else that takes

    Raises
    ------
    ConfigError, DataError
        as ``open_images``; for ``stream=True`` with what is no shards, and for a shard that cannot be read
        or has other columns than the first, unless ``on_error`` is "skip"
    """
    place = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if isinstance(source, Images) or stream is False or (stream == "auto" and not _are_shards(place)):
        return open_images(source, memory_limit=memory_limit, **reading)
    if place is None:
        raise ConfigError(
            f"stream is for shards, and the data is a {type(source).__name__}: give a folder or an address"
        )
    found = _survey(place, buffer, **reading)
    if stream == "auto" and all(suffix_of(part.shard.path) == ".parquet" for part in found.parts):
        limit = free_memory() // 2 if memory_limit is None else memory_limit
        if not is_remote(place) and len(found) * math.prod(peek(found._open(0, 0), found.decoder)) <= limit:
            return open_images(source, memory_limit=memory_limit, **reading)
    found.look(seed)
    return found


def _are_shards(place: str | None) -> bool:
    """Whether a source is one that may be streamed unasked."""
    if place is None or any(place.startswith(scheme) for scheme in READERS if scheme.endswith(":")):
        return False
    if is_remote(place) or Path(place).is_dir():
        return is_remote(place) or holds_shards(place)
    return suffix_of(place) is not None and (Path(place).is_file() or glob.has_magic(place))


def _find(place: str) -> list[Shard]:
    """The shards of a folder, a file, a glob, an address, or a set of the hub."""
    if place.startswith("hf:") and not is_remote(place):
        place = hub_address(place.removeprefix("hf:"))
    if not is_remote(place) and glob.has_magic(place) and not Path(place).exists():
        return [shard for path in sorted(glob.glob(place)) for shard in find_shards(path)]
    found = find_shards(place)
    one_split(place, [f"{shard.name[:-8]}{suffix_of(shard.path)}" for shard in found])
    return found


@settings_checked
def _survey(
    place: str, buffer: int, *, size: int | Fit | None = None, channels: int | None = None,
    convert: bool = False, on_error: Literal["raise", "skip"] = "raise", labels: str | None = None,
    ids: str | None = None, progress: bool = False, workers: int | None = None,
) -> Stream:  # fmt: skip
    """Look at every shard: its columns, how many rows it has, and what tells it from what it was.

    A stream is decoded by the processes that read it, whatever ``workers`` says.
    """
    side, fit = side_and_fit(size)
    decoder = Decoder(side, channels, convert, fit)
    shards = _find(place)
    layout, lines = common_layout(shards, labels, ids, skip=on_error == "skip")
    if layout is None:
        raise DataError(f"'{place}': none of its shards can be read (the first: {lines[0]})")

    def look(shard: Shard) -> tuple[Part, Sequence[str]] | ShardError:
        try:
            mark = file_mark(shard.path)
            records = ShardRecords(shard, layout, labels, ids)
            rows, places = records.count()
            return Part(shard, rows, mark, places), records.skipped
        except ShardError as error:
            return error

    parts, lines = list[Part](), list[str]()
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(look, shards):
            if not isinstance(found, ShardError):
                part, skipped = found
                parts += [part] if part.rows else []
                lines += skipped if part.rows else [f"'{part.shard.path}' has no rows", *skipped]
            elif on_error == "skip":
                lines.append(str(found))
            else:
                raise found
    if not parts:
        raise DataError(f"'{place}' holds no images: check the source")
    return Stream(
        place, parts, layout, decoder, buffer=buffer, skip=on_error == "skip", skipped=lines,
        columns=(labels, ids),
    )  # fmt: skip
