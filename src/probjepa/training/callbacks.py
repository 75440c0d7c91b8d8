"""Lightning callbacks of a run: metrics.csv, the checkpoint and the progress bar."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from probjepa.errors import ArtifactError
from probjepa.files import write_atomic
from probjepa.model_files import read_checkpoint, write_checkpoint
from probjepa.training.checkpoint import TimedWriter
from probjepa.training.folder import metrics_csv
from probjepa.training.interrupt import Interrupted, StopRequest
from probjepa.training.loader import StreamLoader
from probjepa.training.module import Module
from probjepa.training.monitors import Monitor
from probjepa.training.progress import ProgressBar


class MetricsTable(L.Callback):
    """metrics.csv: a row an epoch: mean loss terms, the monitors' values and the seconds taken.

    The rows and the sums of the unfinished epoch travel in the checkpoint, and the file is written whole and
    atomically each time: after a resume it has no row twice and none missing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._seconds = 0.0  # of this epoch, before the last resume
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the table and the unfinished epoch."""
        seconds = self._seconds + time.monotonic() - self._since
        return {"rows": self.rows, "sums": self._sums, "steps": self._steps, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where ``state_dict`` was returned."""
        self.rows, self._sums = list(state_dict["rows"]), dict(state_dict["sums"])
        self._steps, self._seconds = state_dict["steps"], state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the terms of an optimiser step."""
        if not trainer.fit_loop._should_accumulate():
            self._steps += 1
            for name, value in cast(Module, pl_module).terms.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the epoch's row and write the table."""
        now = time.monotonic()
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {f"train/{name}": total / self._steps for name, total in self._sums.items()}
        row["learning_rate"] = cast(Module, pl_module).rate
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Monitor):
                row |= callback.latest
        loader = trainer.train_dataloader
        if isinstance(loader, StreamLoader) and loader.stream.skip:
            count = torch.tensor(float(loader.unreadable), device=trainer.strategy.root_device)
            row["unreadable"] = int(trainer.strategy.reduce(count, reduce_op="sum"))
        row["seconds"] = round(self._seconds + now - self._since, 3)
        self.rows.append(row)
        self._sums, self._steps, self._seconds, self._since = {}, 0, 0.0, now
        if self.path is not None and trainer.is_global_zero:
            write_atomic(self.path, metrics_csv(self.rows).encode())


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin: writes by temporary name, fsync and rename; loads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; see :func:`probjepa.model_files.write_checkpoint`."""
        write_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, always with ``weights_only=True``: a pickle with code in it is refused.

        Raises
        ------
        ArtifactError
            if the file is missing, damaged, or holds more than tensors and plain values
        """
        if not Path(path).is_file():
            raise ArtifactError(f"no checkpoint at {path}: train without resume, or check the path")
        return read_checkpoint(path, "start from scratch with overwrite", map_location=map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Restored(L.Callback):
    """Take what a checkpoint holds before other callbacks start: their errors are not its fault."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what was restored."""
        cast(Module, pl_module).accept_restored()


class Checkpointer(Checkpoint):
    """Write ``path`` at the end of every epoch, every ``every_seconds`` between, and at a requested stop.

    Parameters
    ----------
    path
        the file, or None to write nothing and only heed ``stop``
    stop
        set by a signal; :class:`~probjepa.training.interrupt.Interrupted` is raised once the checkpoint is
        written
    every_seconds
        see :class:`~probjepa.training.checkpoint.TimedWriter`
    """

    def __init__(self, path: Path | None, stop: StopRequest, every_seconds: float = 30.0) -> None:
        self.path, self.stop = path, stop
        self._writer = TimedWriter(every_seconds)
        self._ended = False  # whether a callback (EarlyStopping) has ended the run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run that had been ended trains no more."""
        # Lightning's handler, set meanwhile, exchanges a tensor at once: amid a step all processes would hang
        self.stop.listen()
        self._writer.start()
        trainer.should_stop = trainer.should_stop or self._ended

    def state_dict(self) -> dict[str, Any]:
        """Return whether the run has ended."""
        return {"ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self._ended = state_dict.get("ended") is True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps, where it is time to."""
        # Lightning restarts a checkpoint of the last batch after the epoch's end, without its hooks: leave
        # that batch to on_train_epoch_end. Amid an accumulation there are gradients that no checkpoint holds.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        stop = self._any(trainer, bool(self.stop))
        if stop or self._any(trainer, self._writer.due):
            self._save(trainer)
        if stop:
            raise self._interrupted(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch."""
        self._ended = trainer.should_stop
        self._save(trainer)
        if trainer.current_epoch + 1 != trainer.max_epochs and self._any(trainer, bool(self.stop)):
            raise self._interrupted(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        path = self.path
        self._writer.write(lambda: None if path is None else trainer.save_checkpoint(path))

    def _interrupted(self, trainer: L.Trainer) -> Interrupted:
        saved = "there is no run folder, so nothing was saved"
        if self.path is not None:
            saved = f"go on from {self.path} with resume=True (--resume)"
        return Interrupted(f"interrupted after step {trainer.global_step}: {saved}")

    @staticmethod
    def _any(trainer: L.Trainer, decision: bool) -> bool:
        """Return whether any process decides so: saving and stopping are done together or not at all."""
        return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


class ProgressLine(L.Callback):
    """The progress bar of the first process: epoch, time left, and the terms of the latest step."""

    def __init__(self) -> None:
        self._bar = ProgressBar()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, where a resumed run left it."""
        if trainer.is_global_zero:
            self._bar.start(cast(Module, pl_module).total_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if trainer.is_global_zero:
            self._bar.update(trainer.global_step, trainer.current_epoch + 1, trainer.max_epochs or 0)
            self._bar.show(cast(Module, pl_module).terms)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._bar.stop()
