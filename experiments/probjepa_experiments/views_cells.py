"""A cell of the study of views: a training, what its embeddings know, and what it took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from probjepa_experiments import curves
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.images import run_embeddings
from probjepa_experiments.study import Budget, Cell, Measured


def run(cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train a cell, or go on with what ``folder`` holds of it; what it knows, and what it took."""
    found = run_embeddings(cell, data, folder, budget, progress)
    if cell.task != "train":
        return found
    seconds = sum(of or 0.0 for of in curves.read(folder, {"seconds": "seconds"})["seconds"])
    batches = len(data.train) // cell.fit["batch_size"]
    passes = cell.fit["views"] * cell.fit["epochs"] * batches * cell.fit["batch_size"]
    return replace(
        found, figures={**found.figures, "encoder passes": float(passes), "training seconds": seconds}
    )
