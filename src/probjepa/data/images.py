"""Sets of images in memory or decoded on demand, with one reading interface."""

from __future__ import annotations

import dataclasses
import multiprocessing
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa.data.decode import Decoder, Payload, Unreadable
from probjepa.data.records import Records, attempt, in_threads
from probjepa.errors import ConfigError, DataError, short
from probjepa.files import first_line
from probjepa.typed import settings_checked

Rows = Sequence[int] | Tensor | np.ndarray[Any, Any] | slice
S = TypeVar("S", bound="Images")


class Shaped(ABC):
    """What has images of one shape."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """The shorter side in pixels."""
        return min(self.shape[1:])


class Images(Shaped):
    """What every set of N images offers, wherever its pixels are.

    Attributes
    ----------
    labels
        int64 (N,), or None
    ids
        one name an image: its path in the folder, its row, or ``shard:row``
    classes
        the names of the labels 0, 1, …, or None
    name
        the source it was opened from
    skipped
        a line for each image left out because it could not be read
    """

    labels: Tensor | None
    ids: list[str]
    classes: list[str] | None
    name: str
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def get(self, indices: Rows) -> Tensor:
        """Return the pixels of some rows, uint8 (n, C, H, W)."""

    @abstractmethod
    def subset(self: S, indices: Rows) -> S:
        """Return the set of some rows, in the order given; a boolean mask (N,) also selects."""

    def _named(self, rows: Tensor) -> dict[str, Any]:
        """Labels and ids of some rows."""
        labels = None if self.labels is None else self.labels[rows]
        return {"labels": labels, "ids": [self.ids[row] for row in rows.tolist()]}

    def with_labels_in(self: S, labels: Iterable[int | str]) -> S:
        """Return the rows whose label, or class name, is one of ``labels``."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels to choose by: open a labelled source")
        numbers = []
        for label in labels:
            if isinstance(label, str):
                if self.classes is None or label not in self.classes:
                    raise DataError(
                        f"{self.name} has no class '{label}' (known: {self.classes or 'no names'})"
                    )
                label = self.classes.index(label)
            try:
                numbers.append(operator.index(label))
            except TypeError:
                raise DataError(
                    f"'{short(label)}' is no label to choose by: pass whole numbers or class names"
                ) from None
        return self.subset(torch.isin(self.labels, torch.tensor(numbers, dtype=torch.int64)))

    @settings_checked
    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, slice]]:
        """Return all rows in order as (uint8 (B, C, H, W), their slice)."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: pass at least 1")
        for start in range(0, len(self), batch_size):
            rows = slice(start, min(start + batch_size, len(self)))
            yield self.get(rows), rows


def _row_numbers(indices: Rows, count: int) -> Tensor:
    try:
        numbers = np.arange(*indices.indices(count)) if isinstance(indices, slice) else indices
        rows = numbers.cpu() if isinstance(numbers, Tensor) else torch.from_numpy(np.array(numbers))
    except (TypeError, ValueError) as error:  # of texts, objects, lists of different lengths
        raise DataError(f"rows are no numbers ({first_line(error)}): pass whole numbers or a mask") from None
    if rows.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
        raise DataError(
            f"rows are {rows.dtype} of shape {tuple(rows.shape)}: pass whole numbers (n,) or a mask (N,)"
        )
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise DataError(
                f"a mask of shape {tuple(rows.shape)} for {count} images: pass one value an image"
            )
        return rows.nonzero()[:, 0]
    rows = rows.to(torch.int64)
    if int(rows.min()) < -count or int(rows.max()) >= count:
        raise DataError(f"rows {int(rows.min())} to {int(rows.max())} are not all among the {count} images")
    return rows % count


@dataclass(frozen=True, eq=False)
class ImageSet(Images):
    """Images in memory.

    Attributes
    ----------
    images
        uint8 (N, C, H, W), C = 1 or 3; shares memory with a uint8 array or tensor that it was made from
    """

    images: Tensor
    labels: Tensor | None
    ids: list[str]
    classes: list[str] | None = None
    name: str = "images"
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise DataError(
                f"{self.name}: images must be uint8 (N, 1 or 3, H, W), not {self.images.dtype} {shape}"
            )
        if len(self.ids) != shape[0] or (self.labels is not None and self.labels.shape != shape[:1]):
            raise DataError(f"{self.name}: {shape[0]} images need as many ids and labels")
        if self.labels is None or self.classes is None or not shape[0]:
            return
        if (largest := int(self.labels.max())) >= len(self.classes):
            raise DataError(
                f"{self.name}: labels to {largest} and {len(self.classes)} class names: number the classes "
                "from 0, and name each"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""
        return cast(tuple[int, int, int], tuple(self.images.shape[1:]))

    def get(self, indices: Rows) -> Tensor:
        """Return the pixels of some rows, uint8 (n, C, H, W); a slice is a view."""
        if isinstance(indices, slice) and (indices.step or 1) > 0:
            return self.images[indices]
        return self.images[_row_numbers(indices, len(self))]

    def subset(self, indices: Rows) -> ImageSet:
        """Return the set of some rows, in the order given; a boolean mask (N,) also selects."""
        rows = _row_numbers(indices, len(self))
        return dataclasses.replace(self, images=self.images[rows], **self._named(rows))


@dataclass(frozen=True, eq=False)
class StreamedImages(Images):
    """Images decoded each time they are asked for; picklable, so that loader processes can share the set.

    Attributes
    ----------
    records, rows
        where the encoded images are, and which of them belong to the set
    decoder, image_shape
        how they are decoded, and the shape (C, H, W) that every one must come out with
    workers
        threads that decode for one ``get`` in the main process; a worker process uses one
    """

    records: Records
    rows: Tensor
    decoder: Decoder
    image_shape: tuple[int, int, int]
    labels: Tensor | None
    ids: list[str]
    classes: list[str] | None = None
    name: str = "images"
    skipped: list[str] = field(default_factory=list)
    workers: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""
        return self.image_shape

    def get(self, indices: Rows) -> Tensor:
        """Decode some rows to uint8 (n, C, H, W); one that cannot be read raises DataError."""
        rows = self.rows[_row_numbers(indices, len(self))].tolist()
        batch = np.empty((len(rows), *self.shape), dtype=np.uint8)

        def decoded(job: tuple[int, Payload]) -> npt.NDArray[np.uint8] | Unreadable:
            return attempt(self.records, self.decoder, *job)

        places: dict[int, list[int]] = {}  # each row is read once, however often it is asked for
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)
        # the records may be a user's own, and are read in this thread alone
        encoded = ((row, self.records.read(row)) for row in places)
        workers = self.workers if multiprocessing.parent_process() is None else 1
        for row, pixels in zip(places, in_threads(decoded, encoded, workers), strict=True):
            if isinstance(pixels, Unreadable):
                raise DataError(
                    f"{self.records.where(row)} {pixels}: repair or remove it, "
                    "or open the set again with --on-error skip (on_error='skip')"
                )
            if pixels.shape[1:] != self.shape[1:] or pixels.shape[0] > self.shape[0]:
                raise DataError(f"{self.records.where(row)} changed since the set was opened: open it again")
            batch[places[row]] = pixels  # one grey channel is repeated over three
        return torch.from_numpy(batch)

    def subset(self, indices: Rows) -> StreamedImages:
        """Return the set of some rows, in the order given; a boolean mask (N,) also selects."""
        rows = _row_numbers(indices, len(self))
        return dataclasses.replace(self, rows=self.rows[rows], **self._named(rows))


@settings_checked
def split(images: S, fraction: float, seed: int) -> tuple[S, S]:
    """Return (the rest, a random ``fraction`` held out), stratified where labels are known.

    Each class gives its share rounded down; the rows still missing come from the classes with the largest
    remainders, so that the held-out part has round(N·fraction) rows. Both parts keep the set's order.

    Raises
    ------
    DataError
        if either part would be empty
    ConfigError
        for a fraction that is no finite number, or a seed that is no whole one from 0 on
    """
    count = len(images)
    wanted = round(count * fraction)
    if not 0 < wanted < count:
        raise DataError(
            f"{images.name}: a fraction of {fraction:g} of {count} images leaves one part empty: "
            "pass one between 0 and 1 that leaves rows on both sides"
        )
    random = np.random.default_rng(seed)
    labels = np.zeros(count, dtype=np.int64) if images.labels is None else images.labels.numpy()
    _, group = np.unique(labels, return_inverse=True)
    exact = np.bincount(group) * (wanted / count)
    quota = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - quota), kind="stable")
    quota[largest[: wanted - quota.sum()]] += 1
    held = np.zeros(count, dtype=bool)
    for index, take in enumerate(quota):
        held[random.permutation(np.flatnonzero(group == index))[:take]] = True
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))
