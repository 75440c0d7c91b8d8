"""Rows of encoded images as a source hands them over, and the pass that decodes them on several cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa._arrays import as_array, is_labelled, refuse_masked
from probjepa.data.decode import FEW_LEVELS, Decoder, Payload, Unreadable, as_payload
from probjepa.errors import DataError, warn
from probjepa.files import file_state, is_rewritten, regular
from probjepa.provenance import usable_cpus
from probjepa.registry import imported
from probjepa.terminal import passing

T = TypeVar("T")
Job = TypeVar("Job")

UNLABELLED = -1  # the number of a row without a label, as STL-10 has it
_CHUNK = 64
USUAL_SIZE = 224  # of the views of photographs, in pixels
# Below this, Pillow's Python side dominates and threads only fight over the interpreter lock (32 px JPEGs on
# two cores: 59 µs an image with one thread, 88 with two; 64 px: 73 and 66; 256 px: 318 and 184).
_THREADS_PAY_FROM = 64 * 64


class Records:
    """Encoded images with their labels, readable by row and picklable.

    ``labels`` may stay None until every row was read once (a torch ``Dataset`` tells them only then).
    """

    name: str
    ids: list[str]
    labels: Tensor | None = None
    classes: list[str] | None = None
    skipped: Sequence[str] = ()  # a line for each file that its reader left out

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, row: int) -> str:
        """Name one row for a message."""
        return f"{self.name}, row {row}"

    def read(self, row: int) -> Payload:
        """Return what one row holds; NotImplementedError where rows are read in order alone."""
        raise NotImplementedError(f"{self.name} is read in order")

    def chunks(self, length: int) -> Iterator[list[Payload]]:
        """Return all rows in order, at most ``length`` at a time."""
        for start in range(0, len(self), length):
            yield [self.read(row) for row in range(start, min(start + length, len(self)))]

    def seekable(self) -> Records:
        """Return records whose ``read`` is fast for any row."""
        return self


class FileRecords(Records):
    """Image files below a folder."""

    def __init__(
        self, name: str, root: Path, ids: list[str], labels: Tensor | None, classes: list[str] | None
    ) -> None:
        self.name, self.root, self.ids, self.labels, self.classes = name, root, ids, labels, classes

    def where(self, row: int) -> str:
        """Name the file."""
        return str(self.root / self.ids[row])

    def read(self, row: int) -> Payload:
        """Return the path of one file."""
        return self.root / self.ids[row]


class ArrayRecords(Records):
    """Rows of one array (N, …); given the .npy file they are mapped from, a pickle holds only its path."""

    def __init__(
        self,
        name: str,
        array: npt.NDArray[Any],
        labels: Sequence[Any] | npt.NDArray[Any] | Tensor | None = None,
        *,
        file: Path | None = None,
    ) -> None:
        refuse_masked(array, f"{name}: an array that")
        if array.ndim not in (3, 4):
            raise DataError(
                f"{name}: an array of shape {array.shape} is no set of images: "
                "pass (N, H, W), (N, H, W, C) or (N, C, H, W)"
            )
        self.name, self.file = name, file
        self._array: npt.NDArray[Any] | None = array
        self._mapped = None if file is None else file_state(file)
        self.ids = [str(row) for row in range(len(array))]
        if labels is not None:
            self.labels, self.classes = encode_labels(labels, name, len(array))

    @property
    def array(self) -> npt.NDArray[Any]:
        """The rows, (N, …)."""
        if self._array is None:
            assert self.file is not None
            try:
                array = np.load(regular(self.file), mmap_mode="r", allow_pickle=False)
            except (FileNotFoundError, EOFError, ValueError) as error:
                raise self._changed() from error
            if file_state(self.file) != self._mapped:  # in a process of workers
                raise self._changed()
            self._array = array
        return self._array

    def read(self, row: int) -> Payload:
        """Return one row; DataError if the file has been written to since it was mapped.

        Its rows would be of two arrays, and one that it no longer holds would end the process: what is
        returned is a copy.
        """
        if self.file is None:
            return as_payload(self.array[row])
        if is_rewritten(self.file, self._mapped):
            raise self._changed()
        return as_payload(np.array(self.array[row]))

    def _changed(self) -> DataError:
        return DataError(f"{self.file} changed while it was read: leave it as it is, and start again")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.file is None else {**self.__dict__, "_array": None}


def encode_labels(
    values: Sequence[Any] | npt.NDArray[Any] | Tensor,
    where: str,
    count: int,
    classes: list[str] | None = None,
) -> tuple[Tensor | None, list[str] | None]:
    """Return labels as int64 (N,) and their class names: integers stay as they are, strings are numbered.

    A missing label (None, NaN) is −1; where no row has one, there are no labels.

    Raises
    ------
    DataError
        for a wrong number of labels, labels that are neither integers nor strings, or one without a name
        among ``classes``
    """
    advice = "or leave labels out with labels=none (--labels none)"
    try:
        array = np.array(values, dtype=object) if isinstance(values, list | tuple) else as_array(values)
    except ValueError:
        raise DataError(
            f"{where}: labels are arrays of several shapes: pass one label an image, {advice}"
        ) from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (count,):
        raise DataError(
            f"{where}: {count} images but labels of shape {array.shape}: pass one label an image, {advice}"
        )
    labelled = is_labelled(array)
    known = array[labelled]
    if not len(known):
        return None, classes
    codes = np.full(count, UNLABELLED, dtype=np.int64)
    if all(isinstance(value, str) for value in known.tolist()):
        names, codes[labelled] = np.unique(known.astype(str), return_inverse=True)
        return torch.from_numpy(codes), names.tolist()
    try:
        codes[labelled] = known.astype(np.int64)
        whole = array.dtype.kind in "buifO" and bool((codes[labelled] == known).all())
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise DataError(
            f"{where}: labels are neither whole numbers nor strings (dtype {array.dtype}): pass such, "
            f"{advice}"
        )
    if classes is not None and not 0 <= int(codes[labelled].min()) <= int(codes.max()) < len(classes):
        raise DataError(
            f"{where}: labels {codes[labelled].min()} to {codes.max()} and {len(classes)} class names: "
            "number the classes from 0, and name each"
        )
    return torch.from_numpy(codes), classes


def is_scalar(value: Any) -> bool:
    """Whether a value is a single one, or an array or a list of one."""
    try:
        return np.shape(value) in ((), (1,))
    except ValueError:  # lists of different lengths
        return False


def default_workers(pixels: int) -> int:
    """Return the threads that decode images of about ``pixels`` pixels fastest."""
    return usable_cpus() if pixels >= _THREADS_PAY_FROM else 1


def each(
    records: Records, function: Callable[[Payload], T], *, workers: int, progress: bool, text: str
) -> Iterator[tuple[int, T | Unreadable]]:
    """Apply ``function`` to every row, in order; a row that cannot be read gives its Unreadable.

    Raises
    ------
    DataError
        what ``function`` raises, with the row named in front
    """

    def run(job: tuple[int, list[Payload]]) -> list[T | Unreadable]:
        start, payloads = job
        return [attempt(records, function, start + offset, value) for offset, value in enumerate(payloads)]

    def numbered() -> Iterator[tuple[int, list[Payload]]]:
        start = 0
        for payloads in records.chunks(_CHUNK):
            yield start, payloads
            start += len(payloads)

    rich = imported("rich.progress")
    columns = rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()
    row = 0
    with rich.Progress(rich.TextColumn("{task.description}"), *columns, **passing(progress)) as bar:
        task = bar.add_task(text, total=len(records))
        for chunk in in_threads(run, numbered(), workers):
            for result in chunk:
                yield row, result
                row += 1
            bar.advance(task, len(chunk))


def in_threads(function: Callable[[Job], T], jobs: Iterable[Job], workers: int) -> Iterator[T]:
    """Apply a function to jobs on so many threads, in order; the caller's own thread makes the jobs.

    Few are made ahead: the payloads and results of a large set never pile up in memory.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    left = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(function, job) for job in islice(left, 2 * workers))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(function, job) for job in islice(left, 1))
            yield done


def stacked(images: Sequence[npt.NDArray[np.uint8]], channels: int) -> Tensor:
    """Return images (C, H, W) of one size as (N, channels, H, W): one grey channel is repeated over three."""
    whole = np.empty((len(images), channels, *images[0].shape[1:]), dtype=np.uint8)
    for row, image in enumerate(images):
        whole[row] = image
    return torch.from_numpy(whole)


def attempt(records: Records, function: Callable[[Payload], T], row: int, payload: Payload) -> T | Unreadable:
    """Apply ``function`` to one row: Unreadable is returned, a DataError gets the row's name in front."""
    try:
        return function(payload)
    except Unreadable as broken:
        return broken
    except DataError as error:
        raise DataError(f"{records.where(row)}: {error}") from None


def broken_image(line: str) -> DataError:
    """Return the error of an image that cannot be read, of which the line says where and why."""
    return DataError(
        f"{line}: repair or remove it, or leave such images out, --on-error skip (on_error='skip')"
    )


class Check:
    """What one pass over the rows learns: which are readable, of what size, with how many channels."""

    def __init__(self, records: Records, decoder: Decoder, skip: bool) -> None:
        self.records, self.decoder, self.skip = records, decoder, skip
        self.rows: list[int] = []
        self.skipped = list(records.skipped)
        self.channels = 1
        self._colour_row: int | None = None
        self.side: tuple[int, int] | None = None

    def broken(self, row: int, reason: Unreadable) -> None:
        """Note a row that cannot be read; DataError unless such rows are to be skipped."""
        line = f"{self.records.where(row)} {reason}"
        if not self.skip:
            raise broken_image(line)
        self.skipped.append(line)

    def add(self, row: int, shape: tuple[int, ...]) -> None:
        """Note a row that comes out as (C, H, W); DataError for another size than the first's."""
        side = (shape[1], shape[2])
        if self.side is None:
            self.side = side
        if side != self.side:
            (h, w), first = self.side, self.records.where(self.rows[0])
            least = min(*self.side, *side, USUAL_SIZE)
            raise DataError(
                f"{first} is {w}×{h} pixels and {self.records.where(row)} is {side[1]}×{side[0]}: "
                f"pass a size to bring all images to one, such as {least} (train: --set image_size={least}; "
                f"open_images: size={least})"
            )
        if shape[0] > self.channels:
            self.channels, self._colour_row = shape[0], row
        if self.decoder.channels == 1 and self.channels == 3:
            raise self._mismatch(row)
        self.rows.append(row)

    def finish(self) -> None:
        """Raise DataError if no row could be read, or all are grey and three channels are wanted; warn."""
        if not self.rows:
            raise DataError(
                f"{self.records.name}: none of its {len(self.records)} images can be read "
                f"(the first: {(self.skipped or ['there is no data'])[0]})"
            )
        if self.decoder.channels == 3 and self.channels == 1:
            raise self._mismatch(self.rows[0])
        if self.decoder.animated:
            formats = ", ".join(sorted(self.decoder.animated))
            warn(
                f"{self.records.name}: it has files of several frames ({formats}), "
                "of which the first alone is read: save the others as files of their own"
            )
        levels = int(self.decoder.levels.sum())
        if 0 < levels < FEW_LEVELS:
            warn(
                f"{self.records.name}: its 16-bit images are left {levels} of 256 grey levels, for their "
                "values reach a small part of 0..65535: save them scaled to it"
            )

    def _mismatch(self, row: int) -> DataError:
        return DataError(
            f"{self.records.where(row)} has {self.channels} channel(s) and {self.decoder.channels} "
            "are wanted: pass --convert (convert=True) to convert"
        )
