"""A cell of the study of views: a training, what its embeddings know, and what it took."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from probjepa_experiments.datasets import DataSet
from probjepa_experiments.images import run_embeddings
from probjepa_experiments.study import Budget, Cell, Measured


def run(cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train a cell, or go on with what ``folder`` holds of it; what it knows, and what it took."""
    found = run_embeddings(cell, data, folder, budget, progress)
    with open(folder / "metrics.csv", newline="") as file:
        seconds = sum(float(line["seconds"] or 0) for line in csv.DictReader(file))
    batches = len(data.train) // cell.fit["batch_size"]
    passes = cell.fit["views"] * cell.fit["epochs"] * batches * cell.fit["batch_size"]
    return replace(
        found, figures={**found.figures, "encoder passes": float(passes), "training seconds": seconds}
    )
