"""What a study is made of: rows, columns, budgets, published figures, findings. Declarations, no running."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.registry import Registry

if TYPE_CHECKING:
    from probjepa.report.page import Section

BUDGETS = ("quick", "small", "medium", "full")
# the runner imports what is declared here, and is imported when a study is run
RUNNERS = Registry("runner", {"study": "probjepa_experiments.runner:reproduce"})
Look = Callable[[str, str], float]  # (row's label, column's label) → the figure of one seed
Result = Mapping[str, Any]  # a cell's JSON, with the label of the row that reads it under "row"


@dataclass(frozen=True)
class Row:
    """One line of a table: what is run, once for each data set and seed, in some of the budgets.

    ``method`` is a name in METHODS; ``settings`` and ``fit`` are its settings and those of ``fit``, where
    they differ from the recipe and the budget's. ``task`` is "train"; "random-init" and "raw-pixels" are the
    baselines that training must beat, "cost" a step's price. ``score`` stands for ``{score}`` in the columns'
    figures: several lines may read one training.
    """

    label: str
    method: str = "vje"
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    task: str = "train"
    score: str = ""
    budgets: tuple[str, ...] = BUDGETS

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Return those that it is run with: pixels have no seed, and a step's cost has rounds."""
        return seeds[:1] if self.task in ("raw-pixels", "cost") else seeds


# what training must beat: the labels of these rows in every table
RANDOM, PIXELS = "random initialisation", "raw pixels"


@dataclass(frozen=True)
class Column:
    """One column: the name of a cell's figure, and how it is shown.

    ``{score}`` in ``figure`` is the row's; a column with ``{ood}`` stands for one column an
    out-of-distribution set, whose name takes its place in ``label`` too. No interval leaves ``limits``
    (None: no limit), which are 0 and 1 of percentages. The terminal leaves out what is not ``brief``. Of a
    ``p_value`` the seeds are shown, each by itself: a mean of p-values is none.
    """

    label: str
    figure: str
    percent: bool = False
    better: Literal["max", "min"] | None = None
    plot: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    brief: bool = True
    p_value: bool = False

    def __post_init__(self) -> None:
        if self.percent:
            object.__setattr__(self, "limits", (0, 1))


class NotMeasuredError(Exception):
    """A finding reads a figure that there is not: no such row at this budget, or not measured yet."""


def measured(look: Look, rows: Iterable[str], column: str) -> list[float]:
    """Return the figures of those of the rows that were measured."""
    found = []
    for row in rows:
        with suppress(NotMeasuredError):
            found.append(look(row, column))
    return found


@dataclass(frozen=True)
class Finding:
    """A claim, the paper's or our own, and what it says of the figures of one seed on one data set.

    ``holds`` reads figures by (row, column), and a seed in which it raises NotMeasuredError is not judged.
    ``asserted``: stable over seeds on digits, so that the nightly tests fail where it does not hold; the
    others are reported as they come out.
    """

    claim: str
    holds: Callable[[Look], bool]
    asserted: bool = False


@dataclass(frozen=True)
class Budget:
    """How much is spent on a cell: what every cell of a budget has in common.

    Attributes
    ----------
    settings, fit
        of every model, over its defaults (the backbone and its options); of ``fit``: equal epochs and batches
    methods
        method → settings that this backbone asks for
    rates
        a row's label, or a method → its learning rate, where it was searched for at this budget
    seeds, rows, n_bootstrap
        how many: seeds, counted from ``--seed``; training images (stratified) or rows of a table, None for
        all; resamples of each interval
    threads
        of torch; None: as they are
    cost
        of the step that is timed: size, channels, batch, rounds, and whatever else differs
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 3
    rows: int | None = None
    n_bootstrap: int = 1000
    threads: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """What a cell is run on, opened: a hash of it, the channels and size of its images.

    ``ood`` has the out-of-distribution sets by name, ``not_run`` a line for each that is not there. A study
    that draws its data has no more than this.
    """

    fingerprint: str = ""
    shape: tuple[int, int] = (3, 32)
    ood: Mapping[str, Any] = field(default_factory=dict)
    not_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set by name: its title, and the ``files`` under the data root that it needs."""

    title: str
    files: tuple[str, ...] = ()

    def missing(self, data_root: Path | None) -> str | None:
        """Return why it cannot be opened ("no <path>"), or None."""
        if data_root is None:
            return f"no --data-root, which holds {self.files[0]}" if self.files else None
        paths = [data_root / file for file in self.files]
        return next((f"no {path}" for path in paths if not path.exists()), None)

    def open(self, data_root: Path | None = None, rows: int | None = None, seed: int = 0) -> Data:
        """Open it, with at most ``rows`` training rows; a table is split anew for every seed.

        Raises
        ------
        DataError
            where a file is not there, or cannot be read
        """
        reason = self.missing(data_root)
        if reason:
            raise DataError(f"{self.title}: {reason}: put it there, or pass another --data-root")
        return self.read(data_root or Path(), rows, seed)

    def read(self, data_root: Path, rows: int | None, seed: int) -> Data:
        """Open it, where all its files are there."""
        return Data()


@dataclass(frozen=True)
class Measured:
    """What running a cell returns.

    Figures, name → {value, low, high} or a bare number without an interval; a line for each thing that was
    not measured; and what the study's own sections draw, which metrics.json leaves out.
    """

    figures: Mapping[str, Mapping[str, float | None] | float | None]
    notes: Iterable[str] = ()
    pictures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """What a row's own settings are put on, with every default spelt out.

    Keywords of the model's constructor and of ``fit``, and the modules that they name: their code decides the
    figures, beside that of the measurement's ``roots``.
    """

    settings: Mapping[str, Any]
    fit: Mapping[str, Any]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """What determines a cell's figures; ``label`` and ``slug`` are for the eye."""

    label: str
    task: str
    method: str
    settings: Mapping[str, Any]
    fit: Mapping[str, Any]
    dataset: str
    fingerprint: str
    budget: str
    seed: int
    slug: str
    modules: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What its key is the hash of, as JSON has it."""
        names = ("task", "method", "settings", "fit", "dataset", "fingerprint", "budget", "seed")
        return {name: plain(getattr(self, name)) for name in names}

    @property
    def key(self) -> str:
        """The name of its file and of its run folder."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{self.slug}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plain(value: Any) -> Any:
    """Return the JSON of settings in one spelling: 1 and 1.0 are one number, a tuple and a list one list."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return float(value) if math.isfinite(value) else str(value)


MakeBase = Callable[[Row, Budget, str, Data], Base]
# (cell, its data, a folder that is kept until the cell is done, budget, whether to show progress)
RunCell = Callable[[Cell, Any, Path, Budget, bool], Measured]


@dataclass(frozen=True)
class Measurement:
    """How cells are made and run: what studies of one kind have in common.

    Attributes
    ----------
    run, base
        runs one cell; makes what a row's settings are put on (None: they are put on the budget's)
    sources, seeded_data
        the data sets by name; whether they are drawn or split anew for each seed
    roots
        modules whose code, with all that they import, decides the figures; (): the module of ``run``
    sections
        results → further sections of the page: its pictures
    intervals
        what the intervals are, where they are not the runner's 95 % ones
    """

    run: RunCell
    base: MakeBase | None = None
    sources: Mapping[str, Source] = field(default_factory=lambda: {"drawn": Source("drawn data")})
    seeded_data: bool = False
    roots: tuple[str, ...] = ()
    sections: Callable[[Sequence[Result]], Sequence[Section]] = lambda _: ()
    intervals: str = ""


@dataclass(frozen=True)
class Published:
    """The paper's figures, by (data set, row, column) in the column's unit, and the ``budget`` of them."""

    budget: str
    figures: Mapping[tuple[str, str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A table or figure of a paper, or of one's own: called, it runs.

    ``name`` is as ``probjepa list`` has it, ``title`` the page's heading. ``budgets`` has them by name,
    ``data`` for each the names of its data sets ({}: all of the measurement's). ``answer`` says in
    words what the tables of metrics.json come to, where claims do not. ``about`` is a fixed text
    under the results: what the columns mean, and what is ours. ``ranked``: a table over all data sets is put
    before theirs, with each column's mean and mean rank.
    """

    name: str
    title: str
    paper: str
    question: str
    measurement: Measurement
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    budgets: Mapping[str, Budget]
    data: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    published: Published = Published("nothing is published")
    answer: Callable[[Mapping[str, Any]], str] | None = None
    about: str = ""
    ranked: bool = False

    def rows_of(self, budget: str) -> list[Row]:
        """Return the lines that a budget runs."""
        return [row for row in self.rows if budget in row.budgets]

    def sources_of(self, budget: str) -> dict[str, Source]:
        """Return the data sets that a budget runs on, by name."""
        known = self.measurement.sources
        return {name: known[name] for name in self.data.get(budget) or known}

    def budget(self, name: str) -> Budget:
        """Return a budget by name, or raise ConfigError."""
        if name in self.budgets:
            return self.budgets[name]
        if name in BUDGETS:
            drawn = not any(source.files for source in self.measurement.sources.values())
            why = ": its data are drawn, any CPU will do" if drawn else ""
            raise ConfigError(f"{self.name} runs as {' or '.join(self.budgets)}, not '{name}'{why}")
        raise unknown_name("budget", name, self.budgets)

    def cell_of(self, row: Row, budget: Budget, dataset: str, data: Data, seed: int) -> Cell:
        """Return the cell that a row reads."""
        task, method, base = self.name, "", Base(budget.settings, budget.fit)
        if self.measurement.base is not None:
            task, method, base = row.task, row.method, self.measurement.base(row, budget, dataset, data)
        given, known = plain(row.settings), plain(base.settings)
        changes = [f"{name}={row.settings[name]}" for name in sorted(given) if given[name] != known.get(name)]
        parts = [task if task != "train" else "", method, *changes, dataset, budget.name, f"s{seed}"]
        slug = "-".join(re.sub(r"[^a-z0-9=.]+", "_", part.lower()).strip("_") for part in parts if part)
        return Cell(
            row.label, task, method, {**base.settings, **row.settings}, {**base.fit, **row.fit}, dataset,
            data.fingerprint, budget.name, seed, slug[:120], base.modules,
        )  # fmt: skip

    def __call__(self, out: Path, **how: Any) -> None:
        """Run it ``how`` the keywords of ``probjepa_experiments.runner.reproduce`` say."""
        RUNNERS["study"](self, out, **how)
