"""Checkpoints that are whole or not there, and a callback that writes them often."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from probjepa.errors import ArtifactError
from probjepa.files import read_checkpoint, write_checkpoint
from probjepa.training.interrupt import Interrupted, StopRequest


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin: writes by temporary name, fsync and rename; loads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; see :func:`probjepa.files.write_checkpoint`."""
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
        return read_checkpoint(path, "start afresh with overwrite", map_location=map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


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
        a time and not a number of steps: resuming is exact anywhere, so only the cost counts; longer where
        writing is slow, so that it takes at most a twentieth of the time
    """

    def __init__(self, path: Path | None, stop: StopRequest, every_seconds: float = 30.0) -> None:
        self.path, self.stop, self.every_seconds = path, stop, every_seconds
        self._last = time.monotonic()
        self._cost = 0.0  # seconds that the last checkpoint took

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps, where it is time to."""
        # Lightning restarts a checkpoint of the last batch after the epoch's end, without its hooks: leave
        # that batch to on_train_epoch_end. Amid an accumulation there are gradients that no checkpoint holds.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        due = time.monotonic() - self._last >= max(self.every_seconds, 20 * self._cost)
        stop = self._any(trainer, bool(self.stop))
        if stop or self._any(trainer, due):
            self._save(trainer)
        if stop:
            raise self._interrupted(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch."""
        self._save(trainer)
        if trainer.current_epoch + 1 != trainer.max_epochs and self._any(trainer, bool(self.stop)):
            raise self._interrupted(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        start = time.monotonic()
        if self.path is not None:
            trainer.save_checkpoint(self.path)
        self._last = time.monotonic()
        self._cost = self._last - start

    def _interrupted(self, trainer: L.Trainer) -> Interrupted:
        saved = "there is no run folder, so nothing was saved"
        if self.path is not None:
            saved = f"go on from {self.path} with resume=True (--resume)"
        return Interrupted(f"interrupted after step {trainer.global_step}: {saved}")

    @staticmethod
    def _any(trainer: L.Trainer, decision: bool) -> bool:
        """Return whether any process decides so: saving and stopping are done together or not at all."""
        return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))
