"""Run an experiment's cells, each once, and bring their figures together: rows, intervals, findings."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probjepa.errors import DataError
from probjepa.experiments.budgets import Budget, budget_of
from probjepa.experiments.cells import Cell, make_cell, run_cell
from probjepa.experiments.datasets import RANDOM_PIXELS, DataSet, missing, open_data_set, title_of
from probjepa.experiments.declare import Column, Experiment, Finding
from probjepa.files import refuse_existing, write_text
from probjepa.metrics import seed_interval

if TYPE_CHECKING:
    from probjepa.report.page import Section

Result = Mapping[str, Any]


def reproduce(
    experiment: Experiment,
    out: Path,
    *,
    data_root: Path | None,
    budget: str,
    cells: Path | None,
    seed: int,
    overwrite: bool,
    progress: bool,
    budgets: Callable[[str], Budget] = budget_of,
    run: Callable[..., dict[str, Any]] | None = None,
    sections: Callable[[Sequence[Result]], Sequence[Section]] = lambda _: (),
) -> None:
    """Run an experiment into ``out``: metrics.json, report.html and a printed summary.

    Each cell is one JSON in ``cells`` as soon as it ends; one that is there is not run again, whichever
    experiment it was run for. A cell that was cut short goes on from ``out``/runs.

    Parameters
    ----------
    data_root
        folder of the data sets; one that is not there is reported as not run
    budget
        "quick", "small" or "full"
    cells
        folder of the finished cells; None: ``out``/cells
    budgets, run, sections
        what an experiment has of its own: its budgets by name, what runs a cell (None: ``run_cell``), and
        what follows its tables on the page, from the cells' results. What a result has under "pictures" is
        for these sections alone: metrics.json leaves it out

    Raises
    ------
    ArtifactError
        if ``out`` holds a finished study or something else, or cannot be written
    ConfigError
        for an unknown budget
    DataError
        if none of the data sets is there
    Interrupted
        after Ctrl-C; the same command goes on
    """
    from probjepa.experiments.grid_page import page, print_summary

    spent = budgets(budget)
    half_done = not (out / "metrics.json").exists() and any(
        (out / part).is_dir() for part in ("cells", "runs")
    )
    refuse_existing(out, overwrite or half_done)
    names = experiment.data[budget]
    absent = {name: reason for name in names if (reason := missing(name, data_root))}
    if len(absent) == len(names):
        reasons = "; ".join(f"{title_of(name)}: {reason}" for name, reason in absent.items())
        raise DataError(f"{experiment.name} has no data ({reasons}): pass --data-root, or --budget quick")
    not_run = [f"{title_of(name)}: not run: {reason}" for name, reason in absent.items()]
    found: list[dict[str, Any]] = []
    ood: dict[str, list[str]] = {}
    present = [name for name in names if name not in absent]
    left = len(present) * len({cell.key for cell in plan(experiment, spent, present[0], None, seed)})
    with _threads(spent.threads):
        for name in present:
            data = None if name == RANDOM_PIXELS else open_data_set(name, data_root, spent.images)
            ood[name] = [] if data is None else list(data.ood)
            not_run += [] if data is None else [f"{data.title}: not run: {line}" for line in data.not_run]
            done: dict[str, dict[str, Any]] = {}
            for cell in plan(experiment, spent, name, data, seed):
                if cell.key not in done:
                    left -= 1
                    done[cell.key] = _finished_or_run(
                        cell, data, spent, out, cells, progress, left, run or run_cell
                    )
                found.append({"row": cell.label, "key": cell.key, **done[cell.key]})
    bare = [{key: value for key, value in result.items() if key != "pictures"} for result in found]
    metrics = summarise(experiment, spent, present, ood, bare, not_run, seed)
    write_text(out / "report.html", page(metrics, sections(found)))
    _write_json(out / "metrics.json", metrics)
    shutil.rmtree(out / "runs", ignore_errors=True)
    print_summary(metrics)


def plan(
    experiment: Experiment, budget: Budget, name: str, data: DataSet | None, seed: int
) -> Iterator[Cell]:
    """Yield the cells of a data set, row by row and seed by seed; rows that read one training repeat it."""
    shape = (budget.cost["channels"], budget.cost["image_size"]) if name == RANDOM_PIXELS else (3, 32)
    mark = ""
    if data is not None:
        shape, mark = (data.train.channels, data.train.size), data.fingerprint
    for row in experiment.rows_of(budget.name):
        # pixels have no seed, and a step's cost has rounds
        count = budget.seeds if row.task in ("train", "random-init") else 1
        for number in range(seed, seed + count):
            yield make_cell(row, budget, name, shape, number, mark)


def _finished_or_run(
    cell: Cell,
    data: DataSet | None,
    budget: Budget,
    out: Path,
    cells: Path | None,
    progress: bool,
    left: int,
    run: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    place = (cells or out / "cells") / f"{cell.key}.json"
    result = finished(place, cell)
    how = "kept"
    if result is None:
        folder = out / "runs" / cell.key
        bar = progress and budget.name != "quick"
        result = run(cell, data, folder, n_bootstrap=budget.n_bootstrap, progress=bar)
        _write_json(place, result)
        shutil.rmtree(folder, ignore_errors=True)
        how = f"{result['seconds']:.0f} s"
    if progress:
        failed = f", failed: {result['failed']}" if result["failed"] else ""
        where = f"{cell.label}, {title_of(cell.dataset)}, seed {cell.seed}"
        print(f"{where}: {how}{failed}; {left} left", file=sys.stderr, flush=True)
    return result


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finished(place: Path, cell: Cell) -> dict[str, Any] | None:
    """Return a cell's result, if it is there, whole, and of exactly these settings."""
    try:
        result = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("cell") != cell.identity:
        return None
    return result if {"figures", "failed", "notes", "seconds"} <= result.keys() else None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summarise(
    experiment: Experiment,
    budget: Budget,
    names: Sequence[str],
    ood: Mapping[str, Sequence[str]],
    found: Sequence[dict[str, Any]],
    not_run: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return metrics.json: every cell, the table of each data set, the findings, and what it was run with."""
    tables = {}
    for name in names:
        columns = expand(experiment.columns, ood[name])
        of = [result for result in found if result["cell"]["dataset"] == name]
        rows = _rows(experiment, budget, columns, name, of)
        tables[name] = {
            "title": title_of(name),
            "columns": [asdict(column) for column in columns],
            "rows": rows,
            "findings": [judge(finding, rows) for finding in experiment.findings],
        }
    versions = {json.dumps(result["versions"], sort_keys=True) for result in found}
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "question": experiment.question,
        "budget": {"name": budget.name, "title": budget.title, "fit": dict(budget.fit)},
        "backbone": {"name": budget.backbone, "options": dict(budget.backbone_options)},
        "seeds": list(range(seed, seed + budget.seeds)),
        "published_budget": experiment.published_budget,
        "intervals": experiment.intervals or _intervals(budget),
        "hardware": sorted({result["hardware"] for result in found}),
        "versions": [json.loads(text) for text in sorted(versions)],
        "seconds": round(sum({result["key"]: result["seconds"] for result in found}.values()), 1),
        "not_run": list(not_run),
        "tables": tables,
        "cells": list(found),
    }


def _intervals(budget: Budget) -> str:
    if budget.seeds >= 3:
        return (
            "95 % intervals of the mean over seeds (Student's t); of a row without seeds, Wilson or bootstrap"
        )
    return "95 % intervals of one seed (Wilson or bootstrap), without what seeds differ by"


def expand(columns: Sequence[Column], ood: Sequence[str]) -> list[Column]:
    """Return the columns with each ``{ood}`` one spelt out for every out-of-distribution set."""
    spelt = []
    for column in columns:
        for name in ood if "{ood}" in column.figure else [""]:
            figure, label = (text.replace("{ood}", name) for text in (column.figure, column.label))
            spelt.append(replace(column, label=label, figure=figure))
    return spelt


def _rows(
    experiment: Experiment, budget: Budget, columns: Sequence[Column], name: str, found: Sequence[Result]
) -> list[dict[str, Any]]:
    rows = []
    for row in experiment.rows_of(budget.name):
        of = [result for result in found if result["row"] == row.label]
        values = {}
        for column in columns:
            figure = column.figure.replace("{score}", row.score)
            each = [result["figures"].get(figure) for result in of]
            values[column.label] = aggregate(each, column.limits)
            published = experiment.published.get((name, row.label, column.label))
            if published is not None:
                values[column.label]["published"] = published
        failed = [result["failed"] for result in of if result["failed"]]
        rows.append({"label": row.label, "values": values, "cells": len(of), "failed": failed})
    return rows


def aggregate(
    figures: Sequence[Mapping[str, float | None] | None],
    limits: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Return a figure over seeds, as ``metrics.seed_interval`` does; a None was not measured."""
    known = [figure for figure in figures if figure and figure["value"] is not None]
    own = (known[0]["low"], known[0]["high"]) if len(known) == 1 else None
    return seed_interval([figure["value"] if figure else None for figure in figures], own, limits)


class _NotMeasuredError(Exception):
    pass


def judge(finding: Finding, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return in how many seeds a finding holds, of how many it could be judged in, and on what figures.

    A seed in which any figure that it reads is missing is not judged.
    """
    by_label = {row["label"]: row["values"] for row in rows}
    read: dict[tuple[str, str], float | None] = {}

    def look(seed: int) -> Callable[[str, str], float]:
        def value(row: str, column: str) -> float:
            figure = by_label.get(row, {}).get(column)
            if figure is None or not figure["seeds"]:
                raise _NotMeasuredError
            read[row, column] = figure["value"]
            # a row without seeds, such as raw pixels, is compared with every seed of the others
            found = figure["seeds"][seed if len(figure["seeds"]) > 1 else 0]
            if found is None:
                raise _NotMeasuredError
            return float(found)

        return value

    holds, judged = 0, 0
    for seed in range(max((len(v["seeds"]) for of in by_label.values() for v in of.values()), default=0)):
        try:
            holds += bool(finding.holds(look(seed)))
            judged += 1
        except _NotMeasuredError:
            continue
    evidence = [{"row": row, "column": column, "value": value} for (row, column), value in read.items()]
    return {
        "claim": finding.claim,
        "asserted": finding.asserted,
        "holds": holds,
        "judged": judged,
        "evidence": evidence,
    }


def verdict(finding: Mapping[str, Any]) -> str:
    """Return "holds", "holds in 2 of 3 seeds", "does not hold" or "not judged" of a judged finding."""
    holds, judged = finding["holds"], finding["judged"]
    if not judged:
        return "not judged"
    if 0 < holds < judged:
        return f"holds in {holds} of {judged} seeds"
    return ("holds" if holds else "does not hold") + ("" if judged == 1 else f", all {judged} seeds")
