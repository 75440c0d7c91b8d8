"""What ``evaluate`` and ``demo`` leave: metrics.json, report.html and a summary on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from probjepa.evaluation import Evaluation
from probjepa.files import write_text
from probjepa.report.evaluation import evaluation_report
from probjepa.report.jacobian import jacobian_sections

_MOST_INTERVALS = 3  # columns of them that 80 characters hold


def write_evaluation(result: Evaluation, out: Path) -> None:
    """Write metrics.json and report.html into ``out``, each atomically."""
    write_text(out / "metrics.json", json.dumps(result.metrics, indent=2) + "\n")
    write_text(
        out / "report.html",
        evaluation_report(result.metrics, result.arrays, sections=jacobian_sections(result.arrays)),
    )


def print_summary(metrics: dict[str, Any]) -> None:
    """Print accuracies and AUROC with their 95 % intervals."""
    console = Console()
    if metrics["accuracy"]:
        table = Table(title="accuracy, % (95 % interval)", title_justify="left")
        probes = list(next(iter(metrics["accuracy"].values())))
        for column in ("on", *probes):
            table.add_column(column)
        for space, row in metrics["accuracy"].items():
            table.add_row(space, *(_interval(row.get(probe), 100, 1) for probe in probes))
        console.print(table)
    if metrics["ood"]:
        wide = len(metrics["ood"]) > _MOST_INTERVALS
        interval = "" if wide else " (95 % interval)"
        table = Table(title=f"AUROC{interval}; out-of-distribution is positive", title_justify="left")
        for column in ("score", *metrics["ood"]):
            table.add_column(column)
        for detector in next(iter(metrics["ood"].values())):
            found = [by[detector]["auroc"] for by in metrics["ood"].values()]
            cells = [f"{x['value']:.3f}" if wide else _interval(x, 1, 3) for x in found]
            table.add_row(detector, *cells)
        console.print(table)
    if "openood" in metrics:
        table = Table(title="OpenOOD: mean AUROC of its groups", title_justify="left")
        for column in ("score", "near", "far", "overall"):
            table.add_column(column)
        for score, of in metrics["openood"]["averages"].items():
            table.add_row(score, *("–" if x is None else f"{x:.3f}" for x in of["auroc"].values()))
        console.print(table)
    if "variance" in metrics:
        variance, collapse = metrics["variance"], metrics["collapse"]
        console.print(
            f"mean σ² {variance['mean']:.3f}, KL {variance['kl_per_dimension']:.3f} nats a dimension, "
            f"effective rank {collapse['effective_rank']:.1f}"
        )


def _interval(entry: dict[str, float] | None, scale: float, digits: int) -> str:
    if entry is None:
        return "–"
    value, low, high = (f"{entry[key] * scale:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"
