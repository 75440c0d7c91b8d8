"""Anomalies in tables: VarTJEPA beside detectors that people use, on 22 of ADBench's tables.

ADBench, arXiv 2206.09426.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from probjepa.errors import ProbjepaWarning
from probjepa.tabular import TABLE_METHODS
from probjepa.tabular.anomalies import Reduction, row_scores
from probjepa_experiments.anomaly_detectors import DETECTORS, detect
from probjepa_experiments.anomaly_sets import ADBENCH, DRAWN, SOURCES, AnomalyTable, Setting
from probjepa_experiments.figures import with_spread
from probjepa_experiments.study import (
    RANDOM,
    Base,
    Budget,
    Cell,
    Column,
    Data,
    Measured,
    Measurement,
    Row,
    Study,
)
from probjepa_experiments.table_cells import table_base

EMBEDDING = "embedding"
# of one fit; the first is the one that the others are ranked with
SCORES = {
    EMBEDDING: "kNN of embeddings",
    "mean": "likelihood",
    "max": "largest surprise",
    "top-k": "three largest",
}
_Array = npt.NDArray[np.float64]
_ON_CPU = {"device": "cpu"}
_FAR_OUT = {"numeric_transform": "standard"}  # as anomalies may be
BUDGETS = {
    "quick": Budget(
        "quick", "drawn tables, an encoder of one layer, 30 epochs, one seed",
        {"max_epochs": 30, "dim": 16, "n_layers": 1, "ff_dim": 32, **_ON_CPU}, seeds=1,
    ),
    "small": Budget(
        "small", "at most 2,000 rows of the fit, the preset “small”, three seeds", _ON_CPU, rows=2_000
    ),
    "full": Budget("full", "at most 10,000 rows of the fit, the preset “small”, three seeds", rows=10_000),
}  # fmt: skip


def base(row: Row, budget: Budget, dataset: str, data: Data) -> Base:
    """Return the default preset's settings of VarTJEPA; those of the detectors are their libraries'."""
    if row.method in DETECTORS:
        return Base({}, {})
    return replace(table_base(row, replace(budget, name="small"), "sim", data), fit={})


def run(cell: Cell, data: AnomalyTable, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Fit a cell's detector in both settings, and measure whether its scores tell the anomalies."""
    figures = {}
    for setting in get_args(Setting):
        train, test, odd = data.split(setting, cell.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbjepaWarning)  # of columns without skill, or with few rows
            scores = dict(_oddness(cell, train, test))
        for name, oddness in scores.items():
            figures[f"{setting}|{name}AUROC"] = float(roc_auc_score(odd, oddness))
            figures[f"{setting}|{name}AP"] = float(average_precision_score(odd, oddness))
    return Measured(figures)


def _oddness(cell: Cell, train: _Array, test: _Array) -> Iterator[tuple[str, _Array]]:
    if cell.method in DETECTORS:
        yield "", detect(cell.method, train, test, cell.seed)
        return
    model: Any = TABLE_METHODS[cell.method](random_state=cell.seed, **cell.settings).fit(train)
    cells = model._cells(model._batches(test))  # once, for what ``score_samples`` makes of them
    for reduction in get_args(Reduction):
        if reduction in SCORES:
            yield f"{reduction}|", -row_scores(cells, model._typical(), reduction)
    yield f"{EMBEDDING}|", detect("kNN", model.transform(train), model.transform(test), cell.seed)


def ranking(tables: Mapping[str, Any]) -> str:
    """Return who is first by mean rank of AUROC over the tables, and who follows, for each way to fit."""
    rows = tables[""]["rows"]
    said = []
    for words in ("normal rows", "all rows"):
        ranks = {row["label"]: row["values"][f"mean rank by AUROC, {words}"] for row in rows}
        known = sorted((of["value"], label) for label, of in ranks.items() if of["value"] is not None)
        first = ", ".join(f"{label} {with_spread(ranks[label], 2)}" for _, label in known[:3])
        said.append(f"fitted to {words}, {first}")
    return f"by mean rank of AUROC over the tables, {'; '.join(said)}"


STUDY = Study(
    name="adbench",
    title="Anomalies in tables, ADBench",
    paper="ADBench, arXiv 2206.09426; the model: Var-JEPA, arXiv 2603.20111",
    question="Does VarTJEPA find anomalies in tables of numbers as well as the detectors that people use?",
    measurement=Measurement(run, base, SOURCES),
    rows=(
        *(Row(name, name) for name in DETECTORS),
        *(
            Row(f"VarTJEPA, {name}", "var-t-jepa", _FAR_OUT, score=f"{score}|")
            for score, name in SCORES.items()
        ),
        Row(
            f"{RANDOM}, {SCORES[EMBEDDING]}",
            "var-t-jepa",
            _FAR_OUT,
            task="random-init",
            score=f"{EMBEDDING}|",
        ),
    ),
    columns=tuple(
        Column(f"{name}, {words}", f"{setting}|{{score}}{name}", better="max", limits=(0, 1), brief=False)
        for setting, words in (("normal", "normal rows"), ("contaminated", "all rows"))
        for name in ("AUROC", "AP")
    ),
    budgets=BUDGETS,
    data={"quick": tuple(DRAWN), "small": ADBENCH, "full": ADBENCH},
    ranked=True,
    answer=ranking,
    about="Area under the ROC curve, and average precision. “Normal rows”: a random half of the normal rows "
    "is fitted, the rest and all anomalies are the test. “All rows”: 70 % of the rows with their anomalies "
    "are fitted without labels, 30 % are the test. Rows of the fit beyond the budget's are left out at "
    "random; of more than 10,000 test rows, all anomalies (5,000 at most) and normal rows at random are "
    "kept, so that average precision is then of a larger share of anomalies. VarTJEPA has "
    "numeric_transform='standard', since anomalies may be far out; its rows read one fit: the distance to "
    "the fifth nearest standardised embedding of the fit's rows, the mean log-likelihood, and the "
    "largest standardised surprises of a row's cells. A row is ranked among the other methods; VarTJEPA's "
    "first stands for it. Random initialisation is VarTJEPA's network as it was drawn. "
    "Detectors have their libraries' defaults (kNN: the fifth neighbour) on standardised columns. "
    "pyod's ECOD and COPOD look at the test rows together.",
)
