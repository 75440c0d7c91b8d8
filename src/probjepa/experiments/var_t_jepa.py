"""Var-T-JEPA and T-JEPA beside raw features on tables: accuracy, selection, and whether doubt is ambiguity.

"Var-JEPA", arXiv 2603.20111; T-JEPA, arXiv 2410.05016. The encoder is fitted on the training rows alone; the
sources fit it on all rows, the test rows included.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import probjepa
from probjepa.errors import DataError, unknown_name
from probjepa.experiments.cells import Cell
from probjepa.experiments.grid import aggregate, finished, judge
from probjepa.experiments.table_sets import SOURCES, TableSet, missing, open_table_set
from probjepa.experiments.var_t_jepa_table import (
    COLUMNS,
    FINDINGS,
    PREDICTORS,
    PRINTED,
    PUBLISHED,
    ROWS,
    flat_figures,
    rounded,
)
from probjepa.files import refuse_existing, write_text
from probjepa.tabular.selection import PROBABILITY
from probjepa.training.interrupt import Interrupted

NAME = "var-t-jepa"
METHODS = {"raw": "raw features", "t-jepa": "T-JEPA", "var-t-jepa": "Var-T-JEPA"}


@dataclass(frozen=True)
class Budget:
    """What is run: tables, seeds counted from ``--seed``, training rows at most, settings of the encoders.

    ``published``: each table's published settings, in the place of the preset "small".
    """

    title: str
    tables: tuple[str, ...]
    seeds: int
    train_rows: int | None = None
    published: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


_ALL = ("adult", "electricity", "credit", "sim", "digits")
BUDGETS = {
    "quick": Budget(
        "600 training rows, encoders of one layer, 8 epochs, one seed", ("sim", "wine", "breast-cancer"), 1,
        600,
        settings={"max_epochs": 8, "dim": 16, "n_layers": 1, "ff_dim": 32, "device": "cpu"},
    ),
    "small": Budget(
        "all training rows, the preset “small”, five seeds, on a CPU", _ALL, 5, settings={"device": "cpu"}
    ),
    "full": Budget(
        "all rows, the published settings, 100 epochs, three seeds, on a GPU", _ALL, 3, published=True
    ),
}  # fmt: skip


def reproduce(
    out: Path,
    *,
    data_root: Path | None,
    budget: str,
    cells: Path | None,
    seed: int,
    overwrite: bool,
    progress: bool,
) -> None:
    """Run the study into ``out``: one JSON a cell as they end, then metrics.json and report.html.

    A cell is a method on a table with a seed; one whose settings are the same is not run again.

    Parameters
    ----------
    data_root
        holds tabular/adult.parquet, electricity.parquet and credit_default.parquet; a table that is not there
        is reported as not run
    budget
        "quick", "small" or "full"
    cells
        folder of the finished cells; None: ``out``/cells

    Raises
    ------
    ConfigError
        for an unknown budget
    ArtifactError
        if ``out`` holds a finished study or something else, or cannot be written
    DataError
        for a table that is there and cannot be read
    Interrupted
        after Ctrl-C; the same command goes on
    """
    from probjepa.experiments.grid_page import page, print_summary

    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    spent = BUDGETS[budget]
    half_done = not (out / "metrics.json").exists() and (out / "cells").is_dir()
    refuse_existing(out, overwrite or half_done)
    absent = {name: reason for name in spent.tables if (reason := missing(name, data_root))}
    present = [name for name in spent.tables if name not in absent]
    left = len(present) * spent.seeds * len(METHODS)
    found: list[dict[str, Any]] = []
    for number in range(seed, seed + spent.seeds):  # a study cut short has every table of the first seeds
        for name in present:
            data = open_table_set(name, data_root, number, spent.train_rows)
            for method in METHODS:
                cell = make_cell(method, name, data, budget, number)
                place = (cells or out / "cells") / f"{cell.key}.json"
                result, how = finished(place, cell), "kept"
                if result is None:
                    result = run_cell(cell, data)
                    write_text(
                        place, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
                    )
                    how = f"{result['seconds']:.0f} s"
                found.append({"row": cell.label, "key": cell.key, **result})
                left -= 1
                if progress:
                    where = f"{cell.label}, {SOURCES[name].title}, seed {number}"
                    failed = f", failed: {result['failed']}" if result["failed"] else ""
                    print(f"{where}: {how}{failed}; {left} left", file=sys.stderr, flush=True)
    not_run = [f"{SOURCES[name].title}: not run: {reason}" for name, reason in absent.items()]
    metrics = summarise(found, budget, present, not_run, seed)
    write_text(out / "report.html", page(metrics))
    write_text(
        out / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    print_summary(_in_short(metrics))


def _in_short(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a terminal holds; the page has all."""
    kept = [asdict(column) for column in COLUMNS if column.plot or column.label in PRINTED]
    return {**metrics, "tables": {k: {**of, "columns": kept} for k, of in metrics["tables"].items()}}


def make_cell(method: str, table: str, data: TableSet, budget: str, seed: int) -> Cell:
    """Return the cell of a method: what determines its figures, with the preset's settings spelt out."""
    settings: dict[str, Any] = {}
    if method != "raw":
        from probjepa.tabular import TABLE_METHODS
        from probjepa.tabular.presets import PRESETS

        spent = BUDGETS[budget]
        preset = SOURCES[table].preset if spent.published else "small"
        known = set(inspect.signature(TABLE_METHODS[method].__init__).parameters)
        own = {key: value for key, value in PRESETS[preset].items() if key in known}
        settings = {**own, **spent.settings}
    slug = f"{method}-{table}-{budget}-s{seed}"
    fit = {"predictors": list(PREDICTORS)}
    return Cell(METHODS[method], "train", method, settings, fit, table, data.fingerprint, budget, seed, slug)


def run_cell(cell: Cell, data: TableSet) -> dict[str, Any]:
    """Fit a cell's encoder on the training rows, and evaluate it; return its JSON.

    A fit that fails (a loss that is not finite) gives a result with the reason under "failed".
    """
    from probjepa.provenance import hardware
    from probjepa.tabular.downstream import evaluate_once

    started = time.monotonic()
    figures: dict[str, Any] = {}
    notes: list[str] = []
    failed = None
    try:
        outcome = evaluate_once(
            _factory(cell, data), data.train, data.validation, data.test, data.target, seed=cell.seed,
            predictors=tuple(PREDICTORS), column_types=data.column_types,
        )  # fmt: skip
    except Interrupted:
        raise Interrupted(f"{cell.label} was stopped: run the same command again to go on") from None
    except DataError as error:
        failed = str(error)
    else:
        figures = flat_figures(outcome.figures)
        notes = _notes(outcome.figures, cell.label)
        if data.ambiguity is not None:
            figures |= _ambiguity(outcome, data)
    import torch

    return {
        "cell": cell.identity,
        "figures": figures,
        "failed": failed,
        "notes": notes,
        "seconds": round(time.monotonic() - started, 1),
        "hardware": hardware(),
        "versions": {"probjepa": probjepa.__version__, "torch": str(torch.__version__)},
    }


def _factory(cell: Cell, data: TableSet) -> Any:
    if cell.method == "raw":
        return None
    from probjepa.tabular import TABLE_METHODS

    kind = TABLE_METHODS[cell.method]
    types = dict(data.column_types) or None
    return lambda seed: kind(column_types=types, random_state=seed, **cell.settings)


def _ambiguity(outcome: Any, data: TableSet) -> dict[str, Any]:
    """How each source of doubt tells the ambiguity, by the names of ``COLUMNS``."""
    from probjepa.tabular.simulated import ambiguity_figures

    assert data.ambiguity is not None
    flat = {}
    for space, by_predictor in outcome.unsure.items():
        sources = {**outcome.doubt, **({PROBABILITY: by_predictor["MLP"]} if "MLP" in by_predictor else {})}
        for source, doubt in sources.items():
            if doubt.min() < doubt.max():
                for name, value in ambiguity_figures(doubt, data.ambiguity).items():
                    known = rounded(value) if math.isfinite(value) else None
                    flat[f"{space}|{name}/{source}"] = {"value": known, "low": None, "high": None}
    return flat


def _notes(figures: Mapping[str, Any], label: str) -> list[str]:
    from probjepa.metrics.collapse import collapse_advice

    notes = [
        f"{name}: not run: {of['not run']}"
        for name, of in figures["accuracy"]["raw"].items()
        if "not run" in of
    ]
    if "collapse" in figures:
        advice = collapse_advice({key: of["value"] for key, of in figures["collapse"].items()})
        if advice:
            notes.append(f"{label}: {advice}")
    return notes


def summarise(
    found: Sequence[dict[str, Any]], budget: str, names: Sequence[str], not_run: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return metrics.json, laid out as the other experiments': a table of each data set, findings, cells."""
    spent = BUDGETS[budget]
    tables = {}
    for name in names:
        rows = []
        for row, (method, space) in ROWS.items():
            of = [r for r in found if r["cell"]["dataset"] == name and r["cell"]["method"] == method]
            values = {}
            for column in COLUMNS:
                figure = f"{space}|{column.figure}"
                values[column.label] = aggregate(
                    [result["figures"].get(figure) for result in of], column.limits
                )
                if (name, row, column.label) in PUBLISHED:
                    values[column.label]["published"] = PUBLISHED[name, row, column.label]
            failed = [result["failed"] for result in of if result["failed"]]
            rows.append({"label": row, "values": values, "cells": len(of), "failed": failed})
        tables[name] = {
            "title": SOURCES[name].title,
            "columns": [asdict(column) for column in COLUMNS],
            "rows": rows,
            "findings": [judge(finding, rows) for finding in FINDINGS],
        }
    versions = {json.dumps(result["versions"], sort_keys=True) for result in found}
    return {
        "experiment": NAME,
        "title": "Var-T-JEPA and T-JEPA on tables",
        "paper": "Var-JEPA, arXiv 2603.20111; T-JEPA, arXiv 2410.05016",
        "question": "Are embeddings of tables worth more than raw features, and does their uncertainty find "
        "errors and ambiguity?",
        "budget": {
            "name": budget,
            "title": spent.title,
            "fit": {"training rows": spent.train_rows or "all", **spent.settings},
        },
        "backbone": {"name": "a transformer on one token a feature", "options": {}},
        "seeds": list(range(seed, seed + spent.seeds)),
        "intervals": "95 % intervals of the mean over seeds (Student's t)"
        if spent.seeds >= 3
        else "95 % Wilson intervals of one seed's accuracies",
        "published_budget": "five seeds, the best over six predictors; the encoder is fitted on all rows, "
        "the test rows included",
        "hardware": sorted({result["hardware"] for result in found}),
        "versions": [json.loads(text) for text in sorted(versions)],
        "seconds": round(sum({result["key"]: result["seconds"] for result in found}.values()), 1),
        "not_run": list(not_run),
        "tables": tables,
        "cells": list(found),
    }
