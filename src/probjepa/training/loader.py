"""Batches in an order that depends on (seed, epoch) alone, and that can start in the middle of an epoch."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, cast
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from probjepa.data.streams import Stream, lane_count
from probjepa.distributed import total
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError, warn
from probjepa.training.schedules import step_seed


class Rows(Protocol):
    """What a loader reads: an ``ImageSet``, ``StreamedImages``, or views that are kept."""

    def __len__(self) -> int: ...

    def get(self, rows: Any) -> Tensor:
        """Return the batch of some rows."""
        ...


class _Batches(torch.utils.data.Dataset[Any]):
    """One item a batch: a worker decodes a whole batch, and nothing is collated in the main process."""

    def __init__(self, images: Rows, order: list[Tensor]) -> None:
        self.images, self.order = images, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images.get(self.order[index])
        except ProbjepaError as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            return error  # a worker hands it over as it is, in one line


class EpochLoader:
    """Iterate over an image set in uint8 batches (B, C, H, W), one epoch an iteration.

    The order of an epoch is a permutation drawn from (seed, epoch). ``state_dict`` points at the next batch,
    and an iteration starts there: Lightning saves and loads it, so a run resumes in the middle of an epoch.

    Parameters
    ----------
    images
        an ``ImageSet`` or ``StreamedImages``
    batch_size
        images a batch and process
    seed
        of the order
    shuffle
        False keeps the order of the set
    drop_last
        leave out the last, smaller batch; False keeps it
    workers
        processes that read ahead; 0 reads in this process
    rank, world_size
        which share of every epoch this process sees; all shares have the same number of batches

    Raises
    ------
    DataError
        for fewer than two images
    ConfigError
        if ``batch_size`` images for every process are more than the set has
    """

    def __init__(
        self,
        images: Rows,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        n = len(images)
        if n < 2:
            raise DataError(f"training needs at least 2 images, the data has {n}: give a larger set")
        if batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2, got {batch_size}")
        if drop_last and batch_size * world_size > n:
            raise ConfigError(
                f"batch_size {batch_size}{f' on {world_size} processes' * (world_size > 1)} is more than the "
                f"{n} images: set it to {n // world_size} or less"
            )
        self.images, self.batch_size = images, batch_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.workers, self.rank, self.world_size = workers, rank, world_size
        self.epoch, self.batch = 0, 0  # of the next batch

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever the next iteration starts."""
        share = len(self.images) / self.world_size
        return int(share // self.batch_size) if self.drop_last else int(-(-share // self.batch_size))

    @property
    def sampler(self) -> EpochLoader:
        """Itself: Lightning calls ``loader.sampler.set_epoch`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``, unless already inside it."""
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that ``state_dict`` returned.

        Raises
        ------
        ArtifactError
            if an epoch has no such batch
        """
        if not 0 <= state["batch"] < len(self):
            raise ArtifactError(
                f"the checkpoint stopped at batch {state['batch']}, an epoch of this data has {len(self)}: "
                "resume with the same data and batch_size"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def order(self, epoch: int) -> list[Tensor]:
        """Return the indices of each batch of ``epoch``, for this process."""
        n = len(self.images)
        if self.shuffle:
            # its own stream: rank −1 is no process, so the order shares no seed with a step
            rows = np.random.default_rng(step_seed(self.seed, epoch, -1)).permutation(n)
        else:
            rows = np.arange(n)
        share = len(self) * self.batch_size if self.drop_last else -(-n // self.world_size)
        # np.resize repeats from the start where the processes' shares would differ by one row
        mine = torch.from_numpy(np.resize(rows, share * self.world_size)[self.rank :: self.world_size].copy())
        return list(torch.split(mine, self.batch_size))

    def __iter__(self) -> Iterator[Tensor]:
        # a generator: Lightning calls iter() before it sets the epoch, nothing runs before next()
        epoch, start, length = self.epoch, self.batch, len(self)
        for index, batch in enumerate(self._from(epoch, start), start + 1):
            # moved on before the batch is handed out, since nobody asks for the end after the last one
            self.epoch, self.batch = (epoch + 1, 0) if index == length else (epoch, index)
            yield batch

    def _from(self, epoch: int, start: int) -> Iterator[Tensor]:
        batches = _Batches(self.images, self.order(epoch)[start:])
        if self.workers == 0:
            return (batches[i] for i in range(len(batches)))
        return _read_ahead(batches, self.workers)


class _Pieces(torch.utils.data.IterableDataset[Any]):
    """What each worker reads of an epoch's batches; its error is handed over as ``_Batches`` does."""

    def __init__(self, stream: Stream, asked: Mapping[str, Any]) -> None:
        self.stream, self.asked = stream, asked

    def __iter__(self) -> Generator[Any, None, None]:
        worker = torch.utils.data.get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            yield from self.stream.pieces(**self.asked, share=share)
        except ProbjepaError as error:
            if worker is None:
                raise
            yield error


class StreamLoader(EpochLoader):
    """Iterate over shards as ``EpochLoader`` does over an image set; its workers read different shards.

    Batches do not depend on the number of workers, nor on that of processes where it divides 32. A row of
    the sample is in the place of each that cannot be read; :attr:`unreadable` counts those of this epoch.
    """

    def __init__(self, stream: Stream, batch_size: int, **options: Any) -> None:
        super().__init__(cast(Rows, stream), batch_size, **options)
        self.stream = stream
        self.unreadable = 0

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch, and the rows that all processes left out before it."""
        return super().state_dict() | {"unreadable": total(self.unreadable)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that ``state_dict`` returned; the first process counts what all left out before."""
        super().load_state_dict(state)
        self.unreadable = 0 if self.rank else state["unreadable"]

    def _from(self, epoch: int, start: int) -> Iterator[Tensor]:
        if start == 0:
            self.unreadable = 0
        asked = {
            "draw": step_seed(self.seed, epoch, -1), "batch_size": self.batch_size,
            "batches": range(start, len(self)), "rank": self.rank, "world_size": self.world_size,
        }  # fmt: skip
        # each has a lane at least
        workers = min(self.workers, lane_count(self.world_size) // self.world_size)
        read = _Pieces(self.stream, asked)
        # an error's traceback would keep what is read ahead, and its workers
        with closing(_read_ahead(read, workers) if workers else iter(read)) as pieces:
            for _ in range(start, len(self)):
                batch = torch.empty((self.batch_size, *self.stream.shape), dtype=torch.uint8)
                for _ in range(max(workers, 1)):  # they come in turn
                    places, pixels, broken = next(pieces)
                    batch[places] = pixels
                    self._note(broken)
                yield batch

    def _note(self, broken: Sequence[str]) -> None:
        if broken and not self.unreadable:
            warn(f"{broken[0]}: another image is in its place, and metrics.csv counts such rows (unreadable)")
        self.unreadable += len(broken)


def make_loader(images: Rows | Stream, batch_size: int, **options: Any) -> EpochLoader:
    """Return the loader of a set, or of a stream."""
    kind: Any = StreamLoader if isinstance(images, Stream) else EpochLoader
    loader: EpochLoader = kind(images, batch_size, **options)
    return loader


_READING: WeakSet[Any] = WeakSet()  # what workers read for, and nobody has closed


def _read_ahead(dataset: Any, workers: int) -> Generator[Any, None, None]:
    """Yield what workers read, who end with it, or raise the error that one hands over."""
    batches: Any = iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or the workers' seed would be drawn from the global generator
            worker_init_fn=_leave_signals_to_the_run,
        )
    )
    _READING.add(batches)
    try:
        for item in batches:
            if isinstance(item, ProbjepaError):
                raise item
            yield item
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if "DataLoader worker process" in str(error):  # of the data
            raise
        # what it had read cannot be taken from it any more
        raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly") from error
    finally:
        batches._shutdown_workers()


@atexit.register
def _end_workers() -> None:
    """Tell the workers to end before Python ends: it asks them by SIGTERM, which they leave to the run."""
    for batches in list(_READING):
        batches._shutdown_workers()


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker is no more: torch raises it wherever the process just is."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole group stops the run after its step, which still waits for its batch."""
    for signum in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(signum, signal.SIG_IGN)
