"""What a training's metrics.csv says of every epoch, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probjepa import plots
from probjepa.report.figures import picture
from probjepa.report.page import Figure
from probjepa.report.training import read_metrics
from probjepa_experiments.study import Result

#: name → value at each epoch, None where it was not measured
Curves = Mapping[str, Sequence[float | None]]


def read(folder: Path, names: Mapping[str, str]) -> dict[str, list[float | None]]:
    """Return columns of a run's metrics.csv, each under the name that ``names`` gives it."""
    columns = read_metrics(folder / "metrics.csv")
    unknown = [math.nan] * len(columns["epoch"])
    return {
        new: [None if math.isnan(value) else value for value in columns.get(old, unknown)]
        for old, new in names.items()
    }


def of_first_seeds(results: Sequence[Result]) -> dict[str, Mapping[str, Any]]:
    """Return the pictures of the first seed of each row that has some."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        if result.get("pictures"):
            found.setdefault(result["row"], result["pictures"])
    return found


def draw(
    title: str, curves: Mapping[str, Curves], key: str, note: str, *, ylabel: str, factor: float = 1.0
) -> Figure:
    """Return the picture of ``key`` times ``factor`` over the epochs, a line for each of the curves."""
    known = {
        name: [(e, factor * v) for e, v in zip(of["epoch"], of[key], strict=True) if v is not None]
        for name, of in curves.items()
    }

    def lines(axis: Any) -> str:
        drawn = {name: tuple(np.array(points).T) for name, points in known.items() if points}
        words = plots.lines(axis, drawn, marker="o", ms=3.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10.5)
        return words

    return picture(title, lines, note, xlabel="epoch", ylabel=ylabel)
