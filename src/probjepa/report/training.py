"""The report of one training run, from what the run left in its directory."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probjepa.errors import ArtifactError
from probjepa.files import write_text
from probjepa.report.curves import collapse_curves, diagnostic_columns, series, training_curves
from probjepa.report.page import Card, Section, render
from probjepa.report.provenance import flatten, settings_tables
from probjepa.report.verdicts import collapse_verdict


def training_report(run_dir: str | Path, sections: Sequence[Section] = ()) -> str:
    """Write ``run_dir/report.html`` from its metrics.csv and config.yaml, and return the page.

    What was not logged is not shown, and a missing config.yaml only costs the settings table. ``sections``
    are put before the settings. Raises ArtifactError where metrics.csv is missing or empty, or a file cannot
    be read or written.
    """
    run = Path(run_dir)
    metrics = read_metrics(run / "metrics.csv")
    config = _read_config(run / "config.yaml")
    latest = {c: float(points[1][-1]) for c in metrics if len((points := series(metrics, c))[0])}
    epochs = int(latest.get("epoch", len(next(iter(metrics.values())))))
    found = {name: latest[column] for name, column in diagnostic_columns(metrics).items()}
    tone, verdict = collapse_verdict(found)

    cards = [Card("Epochs", f"{epochs:,}", _steps(latest, metrics.get("seconds", [])))]
    if "train/loss" in latest:
        first = float(series(metrics, "train/loss")[1][0])
        cards.append(Card("Training loss", f"{latest['train/loss']:.4g}", f"first epoch {first:.4g}"))
    if "knn" in found:
        cards.append(Card("kNN accuracy", f"{100 * found['knn']:.1f} %", "held-out images, last epoch"))
    if "effective_rank" in found:
        cards.append(Card("Effective rank", f"{found['effective_rank']:.3g}", "directions in use", tone))
    if "mean_variance" in found:
        cards.append(Card("Mean σ²", f"{found['mean_variance']:.3g}", "prior: 1"))

    body = [
        Section("Training", _training_sentence(metrics), training_curves(metrics)),
        Section("Collapse", verdict, collapse_curves(metrics)),
        *sections,
    ]
    if config:
        body.append(
            Section(
                "Settings",
                "What this run was started with, as written in config.yaml.",
                settings_tables(config, "Settings of this run"),
            )
        )
    method = config.get("method")
    name = method.get("name", "") if isinstance(method, dict) else str(method or "")
    html = render(
        f"Training of {name}" if name else "Training run",
        cards,
        body,
        subtitle=f"{epochs} epoch{'s' if epochs != 1 else ''}, in the folder {run.resolve().name}",
        footer=dict(flatten({k: config[k] for k in ("hardware", "versions") if k in config})),
    )
    write_text(run / "report.html", html)
    return html


def read_metrics(path: str | Path) -> dict[str, list[float]]:
    """Return the columns of a metrics.csv; an empty cell or one that is no number becomes NaN.

    Raises ArtifactError where the file is missing, unreadable or has no rows.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"cannot read {path}: {error}; give the directory of a training run") from None
    if not rows:
        raise ArtifactError(f"{path} has no rows: train for at least one epoch first")
    return {column: [_float(row[column]) for row in rows] for column in rows[0] if column}


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"cannot read {path}: {reason}; restore it, or remove it to go without") from None
    return config if isinstance(config, dict) else {}


def _training_sentence(metrics: dict[str, list[float]]) -> str:
    if "train/loss" not in metrics:
        return "No training loss was logged."
    x, y = series(metrics, "train/loss")
    if not len(x):
        return "The loss was never finite: lower the learning rate and look at the data for NaN."
    if len(x) == 1:
        return f"One epoch was logged, with a loss of {y[0]:.4g}; a trend needs more."
    way = "fell" if y[-1] < y[0] else "rose" if y[-1] > y[0] else "stayed"
    text = f"The loss {way} from {y[0]:.4g} to {y[-1]:.4g} over {len(x)} epochs."
    tail = y[-max(2, len(y) // 5) :]
    moved = float(np.ptp(tail)) / max(float(np.ptp(y)), 1e-12)
    if way == "fell" and len(y) >= 10:
        text += (
            " It was still moving at the end, so more epochs may help."
            if moved > 0.1
            else " It had levelled off by the end."
        )
    if way == "rose":
        text += " A rising loss calls for a lower learning rate."
    return text


def _steps(latest: dict[str, float], seconds: Sequence[float]) -> str:
    parts = [f"{int(latest['step']):,} steps"] if "step" in latest else []
    total = float(np.nansum(seconds))
    if math.isfinite(total) and total > 0:
        parts.append(f"in {total:.3g} s" if total < 1000 else f"in {total / 3600:.2g} hours")
    return " ".join(parts)


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
