"""A bar for a fit, on stderr, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self


class FitProgress:
    """Context of a fit's progress bar: epoch, time left, latest losses; without ``verbose``, nothing."""

    def __init__(self, total_steps: int, verbose: bool, done_steps: int = 0) -> None:
        self._bar: Any = None
        if verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[losses]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("fit", total=total_steps, completed=done_steps, losses="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, epoch: int, epochs: int) -> None:
        """Move on by a step."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"epoch {epoch + 1}/{epochs}")

    def show(self, losses: Mapping[str, float]) -> None:
        """Show an epoch's losses."""
        if self._bar is not None:
            shown = ("loss", "validation_loss")
            text = "  ".join(f"{name} {losses[name]:.4g}" for name in shown if name in losses)
            self._bar.update(self._task, losses=text)
