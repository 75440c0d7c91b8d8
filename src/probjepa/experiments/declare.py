"""What a table of a paper is made of: rows, columns, published figures and findings. Data, no running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BUDGETS = ("quick", "small", "full")
Task = Literal["train", "random-init", "raw-pixels", "cost"]
Look = Callable[[str, str], float]  # (row's label, column's label) → the figure of one seed


@dataclass(frozen=True)
class Row:
    """One line of a table: what is trained, once for each data set and seed.

    Attributes
    ----------
    label
        what the line is called
    method, settings, fit
        name in METHODS; its settings and those of ``fit``, where they differ from the recipe and the budget's
    task
        "train"; "random-init" and "raw-pixels": the baselines that training must beat; "cost": a step's price
    score
        stands for ``{score}`` in the columns' figures: several lines may read one training
    budgets
        where the line is run
    """

    label: str
    method: str = "vje"
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "train"
    score: str = ""
    budgets: tuple[str, ...] = BUDGETS


@dataclass(frozen=True)
class Column:
    """One column: the name of a cell's figure, and how it is shown.

    ``{score}`` in ``figure`` is the row's; a column with ``{ood}`` stands for one column an
    out-of-distribution set, whose name takes its place in ``label`` too. No interval leaves ``limits``
    (None: no limit), which are 0 and 1 of percentages.
    """

    label: str
    figure: str
    percent: bool = False
    better: Literal["max", "min"] | None = None
    plot: bool = False
    limits: tuple[float | None, float | None] = (None, None)

    def __post_init__(self) -> None:
        if self.percent:
            object.__setattr__(self, "limits", (0, 1))


@dataclass(frozen=True)
class Finding:
    """A claim, the paper's or our own, and what it says of the figures of one seed on one data set.

    ``holds`` reads figures by (row, column). ``asserted``: stable over seeds on digits, so that the nightly
    tests fail where it does not hold; the others are reported as they come out.
    """

    claim: str
    holds: Callable[[Look], bool]
    asserted: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes
    ----------
    name, title, paper, question
        as ``probjepa list`` has it; the page's heading; where it is from; what it answers
    rows, columns, findings
        see there
    data
        budget → names of the data sets, as ``datasets.DATA_SETS`` has them
    published
        (data set, row, column) → the paper's figure, in the column's unit
    published_budget
        what the published figures were trained with
    intervals
        what the intervals are, where they are not the runner's 95 % ones
    """

    name: str
    title: str
    paper: str
    question: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    findings: tuple[Finding, ...] = ()
    data: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "quick": ("digits",),
            "small": ("cifar10",),
            "full": ("cifar10", "cifar100", "stl10"),
        }
    )
    published: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    published_budget: str = ""
    intervals: str = ""

    def rows_of(self, budget: str) -> list[Row]:
        """Return the lines that a budget runs."""
        return [row for row in self.rows if budget in row.budgets]

    def __call__(
        self,
        out: Path,
        *,
        data_root: Path | None,
        budget: str,
        cells: Path | None,
        seed: int,
        overwrite: bool,
        progress: bool,
    ) -> None:
        """Run it; see ``probjepa.experiments.grid.reproduce``."""
        from probjepa.experiments.grid import reproduce

        reproduce(
            self, out, data_root=data_root, budget=budget, cells=cells, seed=seed, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip


# the columns that most tables share
KNN_H = Column("kNN on h, %", "knn20/h", percent=True, better="max", plot=True)
KNN_MU = Column("kNN on μ, %", "knn20/mu", percent=True, better="max", plot=True)
KNN_EMA = Column("kNN on EMA h, %", "knn20/ema-h", percent=True, better="max")
VARIANCE = Column("mean σ²", "mean variance", plot=True, limits=(0, None))
KL = Column("KL, nats", "kl", limits=(0, None))
RANK = Column("effective rank", "effective rank", limits=(0, None))
LEARNED = (KNN_H, KNN_MU, VARIANCE, KL, RANK)
OOD = Column("AUROC, {ood}", "auroc/{ood}/{score}", better="max", plot=True, limits=(0, 1))
