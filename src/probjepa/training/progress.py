"""One progress bar for the whole run, with the loss and its terms."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as L

from probjepa.training.module import Module


class ProgressLine(L.Callback):
    """A bar over all steps on stderr: epoch, time left, and the terms of the latest step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            # the terms have what is left of the line: a method with many does not push out the rest
            TextColumn(
                "{task.fields[terms]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            console=Console(stderr=True),
            expand=True,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, where a resumed run left it."""
        if trainer.is_global_zero:
            total = cast(Module, pl_module).total_steps
            self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, terms="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if trainer.is_global_zero:
            terms = "  ".join(f"{name} {value:.3g}" for name, value in cast(Module, pl_module).terms.items())
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.update(self._task, completed=trainer.global_step, description=epoch, terms=terms)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._bar.stop()
