"""What an evaluation leaves: metrics.json, report.html and a summary on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from probjepa.evaluation import Evaluation
from probjepa.evaluation.selective import lead
from probjepa.files import staged_directory, write_text
from probjepa.report.evaluation import evaluation_report
from probjepa.report.jacobian import jacobian_sections
from probjepa.report.sections import SEEDS_ALONE, labels_note
from probjepa.terminal import console, printable

#: what ``write_pages`` writes, that by which it is known as whole first
PAGES = ("report.html", "metrics.json", "scores.parquet")
_MOST_INTERVALS = 3  # columns of them that 80 characters hold


def write_evaluation(result: Evaluation, out: Path) -> None:
    """Write metrics.json, scores.parquet and report.html into ``out``: all or none."""
    sections = jacobian_sections(result.arrays)
    write_pages(result, out, evaluation_report(result.metrics, result.arrays, sections=sections))


def write_pages(result: Evaluation, out: Path, page: str) -> None:
    """Write the figures of an evaluation, its scores by row and its page into ``out``: all or none."""
    with staged_directory(out, last="report.html") as stage:
        with open(stage / "scores.parquet", "wb") as file:
            pq.write_table(result.arrays["rows"], file)
        write_text(stage / "metrics.json", json.dumps(result.metrics, indent=2) + "\n")
        write_text(stage / "report.html", page)


def print_summary(metrics: dict[str, Any]) -> None:
    """Print accuracies and AUROC with their 95 % intervals."""
    terminal = console(error=False)
    if metrics["accuracy"]:
        probes = list(next(iter(metrics["accuracy"].values())))
        table = _table("accuracy, % (95 % interval)", "on", *probes)
        for space, row in metrics["accuracy"].items():
            table.add_row(printable(space), *(_interval(row.get(probe), 100, 1) for probe in probes))
        terminal.print(table)
    if note := labels_note(metrics["labels"]):
        terminal.print(printable(note))
    if metrics["ood"]:
        wide = len(metrics["ood"]) > _MOST_INTERVALS
        interval = "" if wide else " (95 % interval)"
        table = _table(f"AUROC{interval}; out-of-distribution is positive", "score", *metrics["ood"])
        for detector in next(iter(metrics["ood"].values())):
            found = [by[detector]["auroc"] for by in metrics["ood"].values()]
            cells = [_number(x["value"], 1, 3) if wide else _interval(x, 1, 3) for x in found]
            table.add_row(printable(detector), *cells)
        terminal.print(table)
    if "openood" in metrics:
        table = _table("OpenOOD: mean AUROC of its groups", "score", "near", "far", "overall")
        for score, of in metrics["openood"]["averages"].items():
            table.add_row(printable(score), *("–" if x is None else f"{x:.3f}" for x in of["auroc"].values()))
        terminal.print(table)
    if "variance" in metrics:
        variance, collapse = metrics["variance"], metrics["collapse"]
        terminal.print(
            f"mean σ² {variance['mean']:.3f}, KL {variance['kl_per_dimension']:.3f} nats a dimension, "
            f"effective rank {collapse['effective_rank']:.1f}"
        )


def _table(title: str, *columns: str) -> Table:
    return Table(*map(printable, columns), title=printable(title), title_justify="left")


def _number(x: float | None, scale: float, digits: int) -> str:
    return "–" if x is None else f"{x * scale:.{digits}f}"


def _interval(entry: Mapping[str, float | None] | None, scale: float, digits: int) -> str:
    """A figure with its interval, where it has one: a figure of two seeds has none."""
    if entry is None:
        return "–"
    value, low, high = (_number(entry[key], scale, digits) for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})" if entry["low"] is not None else value


def print_table_summary(metrics: Mapping[str, Any]) -> None:
    """Print accuracies with their 95 % intervals, and what leaving uncertain rows out gains."""
    terminal = console(error=False)
    seeds = f" {SEEDS_ALONE}" if len(metrics["settings"]["seeds"]) > 1 else ""
    table = _table(f"accuracy, % (95 % interval{seeds})", "features", *metrics["settings"]["predictors"])
    for space, row in metrics["accuracy"].items():
        table.add_row(printable(space), *(_text(of) for of in row.values()))
    terminal.print(table)
    if selective := metrics["selective"]["embedding"]:
        predictor = lead(selective)
        title = f"{predictor} on the embedding: error by uncertainty"
        table = _table(title, "uncertainty", "AURC", "accuracy at 50 % coverage, %")
        for source, of in selective[predictor].items():
            half = of["accuracy_at"]["0.5"]["value"]
            table.add_row(printable(source), _number(of["aurc"]["value"], 1, 4), _number(half, 100, 1))
        terminal.print(table)
    if note := labels_note(metrics["labels"]):
        terminal.print(printable(note))
    if metrics["left_out_as_in_train"]:
        terminal.print(
            f"{metrics['left_out_as_in_train']:,} test rows also stand in the training table: left out"
        )
    for name, rows in metrics["test_rows_also_in"].items():
        if rows:
            terminal.print(f"{rows:,} test rows equal a row of the {name} table, as few values may by chance")


def _text(of: Mapping[str, Any]) -> str:
    if "not run" in of:
        return f"not run: {of['not run']}"
    return _interval(of["accuracy"], 100, 1)
