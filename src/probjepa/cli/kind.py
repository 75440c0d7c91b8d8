"""What the commands ask of a kind of data: one protocol, which images and tables follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from probjepa.cli.options import Evaluating, Scoring, Shared, Training

if TYPE_CHECKING:
    from probjepa.data.rows import TableWriter
    from probjepa.metrics.conformal import Rule
    from probjepa.scores import SetScorer

Columns = dict[str, Any]  # name → a value an input


class Scored(NamedTuple):
    """How many inputs were scored, how many of them earlier, and how many are flagged, if any may be."""

    inputs: int
    known: int = 0
    flagged: int | None = None


def write_scores(
    kind: Kind, scorer: SetScorer, data: Any, calibration: Any, rule: Rule, columns: Columns, out: Path
) -> Scored:
    """Score inputs, decide by calibration inputs where there are any, and write them beside ``columns``."""
    from probjepa.data.rows import open_table

    known = None if calibration is None else scorer(calibration, calibration=True)[0]
    values, parts = scorer(data)
    decided = {} if known is None else rule.decide(values, known)
    with open_table(out, kind.shared.overwrite) as table:
        table.write({**columns, "score": values, **decided, **parts})
        kind.note(table)
    return Scored(len(data), flagged=None if known is None else int(decided["flagged"].sum()))


class Kind(Protocol):
    """What the commands ask of one kind of data: to train a model, and then of a trained one."""

    unit: str  # what one of its inputs is called
    shared: Shared

    def __init__(self, source: str, shared: Shared) -> None: ...

    @staticmethod
    def train(method: str, data: str, options: Training) -> str:
        """Train a method, write the run folder, and say what it was trained on."""

    def embed(self, data: str) -> tuple[int, Iterator[Columns]]:
        """Return how many inputs there are, and the rows of ``embed``'s table, some at a time."""

    def score(self, data: str, out: Path, options: Scoring) -> Scored:
        """Write the table of ``score``."""

    def note(self, table: TableWriter) -> None:
        """Say in the metadata of a table, some of whose rows are written, how its inputs were encoded."""

    def evaluate(self, train: str, test: str, out: Path, options: Evaluating) -> None:
        """Write metrics.json and report.html into ``out``, and print a summary."""
