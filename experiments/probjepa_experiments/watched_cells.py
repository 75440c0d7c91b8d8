"""A cell that is watched while it trains: what its embeddings and its posterior do from epoch to epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from probjepa_experiments import curves
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.images import run_embeddings
from probjepa_experiments.study import Budget, Cell, Measured

_CURVES = {
    "epoch": "epoch",
    "knn": "knn",
    "mean_variance": "mean variance",
    "kl_per_dim": "KL a feature",
    "effective_rank": "effective rank",
}


def run(cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train a cell, or go on with what ``folder`` holds of it; its embeddings, and σ² after one epoch.

    Its pictures are the curves over the epochs; one that is not trained has none.
    """
    if cell.task != "train":
        return run_embeddings(cell, data, folder, budget, progress)
    watched = {"val": data.test, "monitor_every": 1, "knn_every": 1}
    found = run_embeddings(cell, data, folder, budget, progress, **watched)
    seen = curves.read(folder, _CURVES)
    first = seen["mean variance"][0]
    early = {} if first is None else {"mean variance, epoch 1": first}
    return replace(found, figures={**found.figures, **early}, pictures={"curves": seen})
