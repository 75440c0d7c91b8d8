"""Run a study's cells, each once: what is finished and of today's code is kept, the rest is run."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from probjepa.claims import ClaimedError, claimed
from probjepa.errors import ArtifactError, ConfigError, DataError, MissingExtraError, ProbjepaError
from probjepa.files import refuse_existing, refuse_foreign, regular, write_text
from probjepa.provenance import hardware, versions
from probjepa.terminal import say
from probjepa.training.auto import threads_that_fit, using_threads
from probjepa.training.interrupt import Interrupted
from probjepa_experiments.code import changed, fingerprint, mark
from probjepa_experiments.figures import summarise
from probjepa_experiments.study import Budget, Cell, Data, Measured, Study

_Kind = tuple[str, str, str]  # task, method, data set: cells taken to last alike
_PAUSE = 0.5  # seconds between looks at a cell that another process runs
_MINUTE = 60
_BEGUN = "begun.json"  # stands in a folder until its study is finished, and says which it is
_NAMED = 3  # changed modules, or absent data sets, that a line names


def reproduce(
    study: Study,
    out: Path,
    *,
    data_root: Path | None,
    budget: str,
    cells: Path | None,
    seed: int,
    overwrite: bool,
    progress: bool,
    finished_only: bool = False,
) -> None:
    """Run a study into ``out``: metrics.json, report.html and a printed summary.

    Each cell is one JSON in ``cells`` as soon as it ends. One that is there is not run again, whichever study
    it was run for, as long as the code that decides its figures is what it was. A cell that was cut short
    goes on from ``out``/runs. Several processes with one ``cells`` share the work: each leaves out what
    another is running, and waits for it at the end.

    Parameters
    ----------
    data_root
        folder of the data sets; one that is not there is reported as not run
    budget
        "quick", "small", "medium" or "full"
    cells
        folder of the finished cells; None: ``out``/cells
    finished_only
        run nothing: summarise the cells that are finished, with today's code, and name those that are not
        under "not run"

    Raises
    ------
    ArtifactError
        if ``out`` holds a finished study or something else, or cannot be written
    ConfigError
        for an unknown budget, or a setting that a cell refuses
    DataError
        if none of the data sets is there, or one cannot be read
    Interrupted
        after Ctrl-C; the same command goes on
    """
    from probjepa_experiments.page import page, print_summary

    spent = study.budget(budget)
    begun, asked = out / _BEGUN, {"experiment": study.name, "budget": budget, "seed": seed}
    half_done = _goes_on(begun, asked, overwrite)
    refuse_existing(out, overwrite or half_done)
    if overwrite and not half_done:
        refuse_foreign(out)
    sources = study.sources_of(budget)
    absent = {name: why for name, of in sources.items() if (why := of.missing(data_root))}
    if len(absent) == len(sources):
        reasons = "; ".join(f"{sources[name].title}: {why}" for name, why in [*absent.items()][:_NAMED])
        reasons += f"; and {len(absent) - _NAMED} more" * (len(absent) > _NAMED)
        or_quick = ", or --budget quick" if "quick" in study.budgets else ""
        raise DataError(f"{study.name} has no data ({reasons}): pass --data-root{or_quick}")
    not_run = [f"{sources[name].title}: not run: {why}" for name, why in absent.items()]
    places = [
        (seeds, name) for seeds in seed_groups(study, spent, seed) for name in sources if name not in absent
    ]
    planned_cells = (cell for seeds, name in places for cell in plan(study, spent, name, Data(), seeds))
    kinds = {cell.key: _kind(cell) for cell in planned_cells}
    write_json(begun, asked)
    work = _Work(study, spent, out, cells or out / "cells", progress, left=Counter(kinds.values()))
    found: list[dict[str, Any]] = []
    ood: dict[str, list[str]] = {}
    plans: list[tuple[str, int, list[Cell]]] = []
    whole = True
    with using_threads(spent.threads or threads_that_fit()):
        for seeds, name in places:
            data = sources[name].open(data_root, spent.rows, seeds[0])
            if name not in ood:
                ood[name] = list(data.ood)
                not_run += [f"{sources[name].title}: not run: {line}" for line in data.not_run]
            planned = list(plan(study, spent, name, data, seeds))
            if finished_only:
                left = {cell.key: why for cell in planned if (why := work.unfinished(cell))}
                for cell in planned:
                    if cell.key in left:
                        not_run.append(f"{cell.label}, seed {cell.seed}: {left[cell.key]}")
                planned, whole = [cell for cell in planned if cell.key not in left], whole and not left
            elif overwrite:  # what cannot be gone on with is in there
                _drop_runs(out, planned)
            for cell in planned:
                work.result(cell, data, wait=False)
            plans.append((name, seeds[0], planned))
        for name, first, planned in plans:  # what other processes were running
            if any(cell.key not in work.done for cell in planned):
                data = sources[name].open(data_root, spent.rows, first)
            for cell in planned:
                found.append({"row": cell.label, "key": cell.key, **work.result(cell, data, wait=True)})
    if finished_only:
        work.say(work.rest())
    metrics = summarise(study, spent, ood, found, not_run, seed)
    write_text(out / "report.html", page(metrics, study, found))
    write_json(out / "metrics.json", metrics)
    if whole:  # else the same command goes on, and finds what is half done
        _drop_runs(out, (cell for *_, planned in plans for cell in planned))
        begun.unlink(missing_ok=True)
    print_summary(metrics)


def _goes_on(begun: Path, asked: dict[str, Any], overwrite: bool) -> bool:
    """Whether a folder holds what is begun of what is asked for, by the file that says so.

    ArtifactError if it is of another study, budget or seed, and is not to be overwritten.
    """
    try:
        found = json.loads(begun.read_text(encoding="utf-8"))
        named = {name: found.get(name, value) for name, value in asked.items()}  # older files name the study
    except (OSError, ValueError, AttributeError):
        return False
    if named != asked and not overwrite:
        raise ArtifactError(
            f"{begun.parent} exists already, with {named['experiment']} (budget {named['budget']}, seed "
            f"{named['seed']}) that was stopped and can go on: choose another --out, or pass --overwrite"
        )
    return named == asked


def _drop_runs(out: Path, cells: Iterable[Cell]) -> None:
    """Remove what is begun of cells, and no other runs that stand there."""
    runs, known = out / "runs", {cell.key for cell in cells}
    for item in runs.iterdir() if runs.is_dir() else ():
        if item.name.rpartition("-")[0] in known:
            shutil.rmtree(item, ignore_errors=True)
    with suppress(OSError):  # others are there, or nothing
        runs.rmdir()


def seed_groups(study: Study, budget: Budget, seed: int) -> list[list[int]]:
    """Return the seeds that are run on the same data: all, or one at a time where they are drawn anew."""
    seeds = list(range(seed, seed + budget.seeds))
    return [[each] for each in seeds] if study.measurement.seeded_data else [seeds]


def plan(study: Study, budget: Budget, name: str, data: Data, seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield the cells of a data set, row by row and seed by seed; rows that read one training repeat it."""
    for row in study.rows_of(budget.name):
        for seed in row.seeds(seeds):
            yield study.cell_of(row, budget, name, data, seed)


@dataclass
class _Work:
    """What is done of a study, and how the rest is run."""

    study: Study
    budget: Budget
    out: Path
    cells: Path
    progress: bool
    left: Counter[_Kind]
    seconds: dict[_Kind, list[float]] = field(default_factory=lambda: defaultdict(list))  # of cells done
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: bool = False  # that there are cells without a record of their code

    def result(self, cell: Cell, data: Data, *, wait: bool) -> dict[str, Any]:
        """Return a cell's JSON, from this run, from its file, or by running it.

        A finished one is read where nothing can be written, too. While another process runs it, wait, or
        return {} at once.
        """
        while cell.key not in self.done:
            try:
                with claimed(self.cells / f"{cell.key}.json") if self.unfinished(cell) else nullcontext():
                    self.done[cell.key] = self._result(cell, data)
            except ClaimedError:
                if not wait:
                    return {}
                time.sleep(_PAUSE)
        return self.done[cell.key]

    def unfinished(self, cell: Cell) -> str:
        """Return why the file of a cell is of no use, or ""."""
        result = finished(self.cells / f"{cell.key}.json", cell)
        if result is None:
            return "not run yet"
        return "" if result.get("code") == self._code(cell) else "run with code that has changed since"

    def _code(self, cell: Cell) -> dict[str, str]:
        """The hashes of the modules that decide a cell's figures."""
        measurement = self.study.measurement
        return fingerprint((*(measurement.roots or (measurement.run.__module__,)), *cell.modules))

    def _result(self, cell: Cell, data: Data) -> dict[str, Any]:
        where = f"{cell.label}, {self.study.measurement.sources[cell.dataset].title}, seed {cell.seed}"
        code = self._code(cell)
        place = self.cells / f"{cell.key}.json"
        result, how = finished(place, cell), "kept"
        if result is not None and result.get("code") != code:
            self._say_stale(where, result.get("code"), code)
            result = None
        if result is None:
            result = self._run(cell, data, code)
            write_json(place, result)
            shutil.rmtree(self._folder(cell, code), ignore_errors=True)
            how = f"{result['seconds']:.0f} s"
        failed = f", failed: {result['failed']}" if result["failed"] else ""
        kind = _kind(cell)
        self.left[kind] -= 1
        self.seconds[kind].append(result["seconds"])
        self.say(f"{where}: {how}{failed}; {self.rest()}")
        return result

    def rest(self) -> str:
        """How many cells are left, and how long they take one process, as what was like them took."""
        words = f"{self.left.total()} left"
        left, everything = +self.left, [one for each in self.seconds.values() for one in each]
        if not left or not everything:
            return words
        takes = sum(number * fmean(self.seconds.get(kind) or everything) for kind, number in left.items())
        return f"{words}, about {duration(takes)}"

    def _run(self, cell: Cell, data: Data, code: Mapping[str, str]) -> dict[str, Any]:
        started = time.monotonic()
        folder = self._folder(cell, code)
        bar = self.progress and self.budget.name != "quick"
        failed = None
        try:
            measured = self.study.measurement.run(cell, data, folder, self.budget, bar)
        except Interrupted as stop:
            raise stop.otherwise(
                f" of {cell.label}: run the same command again to go on ({self.rest()})"
            ) from None
        except (ArtifactError, ConfigError, MissingExtraError):  # the user must act
            raise
        except ProbjepaError as error:
            measured, failed = Measured({}), str(error)
        return {
            "cell": cell.identity,
            "figures": {name: figure(value) for name, value in measured.figures.items()},
            "failed": failed,
            "notes": list(measured.notes),
            "seconds": round(time.monotonic() - started, 1),
            **({"pictures": dict(measured.pictures)} if measured.pictures else {}),
            "hardware": hardware(),
            "versions": versions(),
            "code": dict(code),
        }

    def _folder(self, cell: Cell, code: Mapping[str, str]) -> Path:
        """Where a cell trains; what another code left half-done is not gone on with."""
        return self.out / "runs" / f"{cell.key}-{mark(code)}"

    def _say_stale(self, where: str, stored: Mapping[str, str] | None, code: Mapping[str, str]) -> None:
        if stored is not None:
            modules = changed(stored, code)
            more = f" and {len(modules) - _NAMED} more" if len(modules) > _NAMED else ""
            self.say(f"{where}: stale: code of {', '.join(modules[:_NAMED])}{more} changed; run again")
        elif not self.told:
            self.told = True
            self.say(f"{self.cells} holds cells that do not say what code they are of: stale, run again")

    def say(self, line: str) -> None:
        if self.progress:
            say(line, error=True)


def _kind(cell: Cell) -> _Kind:
    return cell.task, cell.method, cell.dataset


def duration(seconds: float) -> str:
    """Return seconds as people say them: "40 s", "12 min", "2 h 10 min"."""
    if round(seconds) < _MINUTE:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / _MINUTE), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def finished(place: Path, cell: Cell) -> dict[str, Any] | None:
    """Return a cell's result, if it is there, whole, and of exactly these settings."""
    try:
        result = json.loads(regular(place).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or result.get("cell") != cell.identity:
        return None
    return result if _is_whole(result) else None


def _is_whole(result: Mapping[str, Any]) -> bool:
    """Whether what a cell found has the parts that it should, of their types."""
    figures, failed = result.get("figures"), result.get("failed", 0)
    seconds, versions_then = result.get("seconds"), result.get("versions")
    return (
        isinstance(figures, dict)
        and bool(figures or failed)
        and all(isinstance(of, dict) and of.keys() >= {"value", "low", "high"} for of in figures.values())
        and all(x is None or isinstance(x, int | float) for of in figures.values() for x in of.values())
        and isinstance(result.get("notes"), list)
        and all(isinstance(note, str) for note in result["notes"])
        and isinstance(seconds, int | float)
        and 0 <= seconds < math.inf
        and isinstance(failed, str | None)
        and isinstance(result.get("hardware"), str)
        and isinstance(versions_then, dict)
        and all(isinstance(versions_then.get(name), str) for name in ("probjepa", "torch"))
        and isinstance(result.get("code", {}), dict)
        and isinstance(pictures := result.get("pictures", {}), dict)
        and all(isinstance(of, dict | list) for of in pictures.values())
    )


def figure(value: Mapping[str, float | None] | float | None) -> dict[str, float | None]:
    """Return a figure as the JSON keeps it: six digits, and None for what is not finite."""
    parts = value if isinstance(value, Mapping) else {"value": value, "low": None, "high": None}
    known = {key: x if x is not None and math.isfinite(x) else None for key, x in parts.items()}
    return {key: None if x is None else float(f"{x:.6g}") for key, x in known.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as cells and metrics.json have it."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
