"""One progress bar for a whole run: epoch, time left, and the latest losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from probjepa.registry import importing
from probjepa.terminal import console


class ProgressBar:
    """A bar over all steps of a run on stderr; without ``shown``, nothing.

    As a context it is taken down at the end of the block.
    """

    def __init__(self, shown: bool = True) -> None:
        self._bar: Any = None
        if not shown:
            return
        with importing():
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
            console=console(),
            expand=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, total_steps: int, done_steps: int = 0, what: str = "training") -> None:
        """Show the bar, where a resumed run left it."""
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total_steps, completed=done_steps, terms="")
            self._bar.start()

    def advance(self, done_steps: int) -> None:
        """Move to a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done_steps)

    def update(self, done_steps: int, epoch: int, epochs: int) -> None:
        """Move to a step of an epoch, counted from 1."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done_steps, description=f"epoch {epoch}/{epochs}")

    def show(self, terms: Mapping[str, float]) -> None:
        """Show the latest losses."""
        if self._bar is not None:
            text = "  ".join(f"{name} {value:.3g}" for name, value in terms.items())
            self._bar.update(self._task, terms=text)

    def stop(self) -> None:
        """Leave the bar as it is, and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
