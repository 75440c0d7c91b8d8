"""The report of one training run, from what the run left in its directory."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from probjepa import plots
from probjepa.errors import ArtifactError, ConfigError
from probjepa.files import regular, write_text
from probjepa.plots.style import Array, three_digits
from probjepa.report.figures import picture
from probjepa.report.page import Card, Figure, Section, render
from probjepa.report.provenance import flatten, settings_tables, skipped_table
from probjepa.report.sections import diagnosis
from probjepa.yaml_files import read_mapping

Metrics = Mapping[str, Sequence[float]]

# column, with or without a prefix such as "monitor/" → (title, what to look for)
_DIAGNOSTICS = {
    "effective_rank": ("Effective rank", "Directions in use; near 1, collapsed."),
    "std_mean": ("Mean feature std", "Of normalised embeddings; 0, collapsed."),
    "std_min": ("Least feature std", "Near 0, a feature is dead."),
    "mean_variance": ("Mean σ²", "At 1, the posterior is the prior; at 0, a point."),
    "kl_per_dim": ("KL per dimension", "At 0, the posterior is the prior."),
    "knn": ("kNN accuracy", "On held-out images."),
}


def training_report(run_dir: str | Path, sections: Sequence[Section] = ()) -> str:
    """Write ``run_dir/report.html`` from its metrics.csv and config.yaml, and return the page.

    What was not logged is not shown, and a missing config.yaml only costs the settings table. ``sections``
    are put before the settings. Raises ArtifactError where metrics.csv is missing or empty, or a file cannot
    be read or written.
    """
    run = Path(run_dir)
    metrics = read_metrics(run / "metrics.csv")
    config = _read_config(run / "config.yaml")
    latest = {c: float(values[-1]) for c in metrics if len(values := series(metrics, c)[1])}
    epochs = int(latest.get("epoch", len(next(iter(metrics.values())))))
    found = {name: latest[column] for name, column in diagnostic_columns(metrics).items()}
    method = config.get("method")
    settings = method if isinstance(method, dict) else {}
    text, tone = diagnosis(
        found, epochs=epochs, settings=settings, rows=config.get("data_images", config.get("data_rows"))
    )

    cards = [Card("Epochs", f"{epochs:,}", _steps(latest, metrics.get("seconds", [])))]
    if "train/loss" in latest:
        first = float(series(metrics, "train/loss")[1][0])
        cards.append(Card("Training loss", f"{latest['train/loss']:.4g}", f"first epoch {first:.4g}"))
    elif "train/loss" in metrics:
        note = "lower the learning rate, and look at the data for NaN"
        cards.append(Card("Training loss", "never finite", note, "warn"))
    if "knn" in found:
        cards.append(Card("kNN accuracy", f"{100 * found['knn']:.1f} %", "held-out images, last epoch"))
    if "effective_rank" in found:
        cards.append(Card("Effective rank", three_digits(found["effective_rank"]), "directions in use", tone))
    if "mean_variance" in found:
        cards.append(Card("Mean σ²", f"{found['mean_variance']:.3g}", "prior: 1"))

    body = [
        Section(
            "Training",
            "Means over each epoch, with the last one at the end of its curve.",
            training_curves(metrics),
        ),
        Section("Collapse", text, collapse_curves(metrics)),
        *sections,
    ]
    skipped = {
        name: lines
        for name in ("data", "val")
        if isinstance(lines := config.pop(f"{name}_skipped", None), list)
    }
    if config:
        text = "What this run was started with, as written in config.yaml."
        body.append(Section("Settings", text, settings_tables(config, "Settings of this run")))
    if skipped:
        body.append(
            Section("Skipped", "What could not be read was not trained on.", [skipped_table(skipped)])
        )
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


def series(metrics: Metrics, column: str) -> tuple[Array, Array]:
    """Return (epochs, values) of a column, averaged within an epoch, without what is missing or not finite.

    Where there is no column ``epoch``, rows are counted instead.
    """
    y = np.asarray(metrics[column], np.float64)
    x = np.asarray(metrics.get("epoch", np.arange(len(y))), np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    epochs, where, counts = np.unique(x[keep], return_inverse=True, return_counts=True)
    return epochs, np.bincount(where, weights=y[keep], minlength=len(epochs)) / counts


def diagnostic_columns(metrics: Metrics) -> dict[str, str]:
    """Return diagnostic → column for every collapse diagnostic in ``metrics``, in the order of reading."""
    logged = {column.rsplit("/", 1)[-1]: column for column in metrics if len(series(metrics, column)[0])}
    return {name: logged[name] for name in _DIAGNOSTICS if name in logged}


def training_curves(metrics: Metrics) -> list[Figure]:
    """Return the loss, each of its terms, the validation loss and the learning rate, a figure each."""
    columns = [c for c in metrics if c.startswith(("train/", "val/"))]
    columns.sort(key=lambda c: (not c.startswith("train/"), not c.endswith("/loss")))
    columns += [c for c in metrics if c == "learning_rate"]
    return [figure for c in columns for figure in _curve(_name(c), "", *series(metrics, c))]


def collapse_curves(metrics: Metrics) -> list[Figure]:
    """Return effective rank, feature spread, mean σ², KL per dimension and kNN accuracy, where logged."""
    columns = diagnostic_columns(metrics).items()
    return [figure for key, c in columns for figure in _curve(*_DIAGNOSTICS[key], *series(metrics, c))]


def _name(column: str) -> str:
    kind, _, rest = column.partition("/")
    name = "KL" if rest == "kl" else (rest or kind).replace("_", " ")
    return f"{name} (validation)" if kind == "val" else name


def _curve(name: str, caption: str, epochs: Array, values: Array) -> list[Figure]:
    """The picture of one quantity, unless nothing of it is known."""
    if not len(values):
        return []
    draw = partial(plots.training_curve, epochs=epochs, values=values)
    return [picture(name, draw, caption, width="third")]


def read_metrics(path: str | Path) -> dict[str, list[float]]:
    """Return the columns of a metrics.csv; an empty cell or one that is no number becomes NaN.

    Raises ArtifactError where the file is missing, unreadable or has no rows.
    """
    try:
        with open(regular(path), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"cannot read {path}: {error}; give the directory of a training run") from None
    if not rows:
        raise ArtifactError(f"{path} has no rows: train for at least one epoch first")
    return {column: [_float(row[column]) for row in rows] for column in rows[0] if column}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_mapping(path)
    except ConfigError as error:
        raise ArtifactError(f"{error}; restore it, or remove it to go without") from None


def _steps(latest: dict[str, float], seconds: Sequence[float]) -> str:
    parts = [f"{int(latest['step']):,} steps"] if "step" in latest else []
    total = float(np.nansum(seconds))
    if math.isfinite(total) and total > 0:
        hours = total / 3600
        whole = f"{hours:.2g}" if hours < 9.95 else f"{hours:,.0f}"
        parts.append(f"in {total:.3g} s" if total < 999.5 else f"in {whole} hours")
    return " ".join(parts)


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
