"""What is measured of a table encoder: classifiers on its features, and its uncertainty beside ambiguity."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probjepa.evaluation import Evaluation
from probjepa.evaluation.selective import PROBABILITY
from probjepa.evaluation.tables import evaluate_once
from probjepa.metrics.collapse import collapse_advice
from probjepa.tabular import PRESETS, TABLE_METHODS
from probjepa_experiments.images import module_of
from probjepa_experiments.simulated_tables import ambiguity_figures
from probjepa_experiments.study import Base, Budget, Cell, Data, Measured, Row
from probjepa_experiments.table_sets import SOURCES, TableSet

PREDICTORS = ("logistic regression", "MLP", "XGBoost")
RAW = "raw"  # features as they are, without an encoder
# of random initialisation: one epoch whose steps are too small to change a weight
UNTRAINED = {"max_epochs": 1, "learning_rate": 1e-12}
# VarTJEPA without training, which its predicted cells stand beside
UNTRAINED_PARTS: dict[str, dict[str, Any]] = {
    "copula alone": {"copula": "alone", **UNTRAINED},
    "untrained network": {"copula": "none", **UNTRAINED},
}
Figures = dict[str, Mapping[str, float | None] | float | None]


def table_base(row: Row, budget: Budget, dataset: str, data: Data) -> Base:
    """Return the preset's settings of a row's method, or the published ones."""
    # a cell that was run without XGBoost is run again once it is there
    fit = {"predictors": list(PREDICTORS), "xgboost": find_spec("xgboost") is not None}
    if row.method == RAW:
        return Base({}, fit)
    preset = SOURCES[dataset].preset if budget.name == "full" else "small"
    known = set(inspect.signature(TABLE_METHODS[row.method]).parameters)
    own = {key: value for key, value in PRESETS[preset].items() if key in known}
    untrained = UNTRAINED if row.task == "random-init" else {}
    return Base({**own, **budget.settings, **untrained}, fit, (module_of(TABLE_METHODS, row.method),))


def run(cell: Cell, data: TableSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Fit a cell's encoder on the training rows, and evaluate it.

    A figure is called after the features that it is of: "raw", "embedding" or "raw + embedding", a bar, and
    its own name.
    """
    outcome = evaluate_once(
        _factory(cell, data), data.train, data.validation, data.test, data.target, seed=cell.seed,
        predictors=tuple(cell.fit["predictors"]), column_types=data.column_types,
    )  # fmt: skip
    figures = flat_figures(outcome.metrics)
    if data.ambiguity is not None:
        figures |= dict(_ambiguity(outcome, data))
    return Measured(figures, list(_notes(outcome.metrics, cell.label)))


def _factory(cell: Cell, data: TableSet) -> Callable[[int], Any] | None:
    if cell.method == RAW:
        return None
    kind = TABLE_METHODS[cell.method]
    types = dict(data.column_types) or None
    return lambda seed: kind(column_types=types, random_state=seed, **cell.settings)


def flat_figures(figures: Mapping[str, Any]) -> Figures:
    """Return ``evaluate_once``'s figures by name."""
    flat: Figures = {}
    for space, row in figures["accuracy"].items():
        known = {name: of for name, of in row.items() if "accuracy" in of}
        if space == "majority class" or not known:
            continue
        flat[f"{space}|best"] = max((of["accuracy"] for of in known.values()), key=lambda of: of["value"])
        for name, of in known.items():
            flat |= {f"{space}|{score}/{name}": value for score, value in of.items()}
            for source, selected in figures["selective"][space][name].items():
                flat[f"{space}|aurc/{name}/{source}"] = selected["aurc"]
                flat[f"{space}|half/{name}/{source}"] = selected["accuracy_at"]["0.5"]
            for source, judged in figures["calibration"][space][name].items():
                flat[f"{space}|error/{name}/{source}"] = judged["spearman"]
    for space, row in figures["mcnemar"].items():
        flat |= {f"{space}|mcnemar {key}/{name}": of[key] for name, of in row.items() for key in of}
    collapse = figures.get("collapse") or {}
    for key, name in (("effective_rank", "effective rank"), ("std_mean", "std")):
        if key in collapse:
            flat[f"embedding|{name}"] = collapse[key]
    return flat


def _ambiguity(outcome: Evaluation, data: TableSet) -> Iterator[tuple[str, float]]:
    """How each source of uncertainty tells the ambiguity."""
    assert data.ambiguity is not None
    for space, by_predictor in outcome.arrays["answers"].items():
        sources = dict(outcome.arrays["sources"])
        if "MLP" in by_predictor:
            sources[PROBABILITY] = by_predictor["MLP"]
        for source, values in sources.items():
            if values.min() < values.max():
                for name, value in ambiguity_figures(values, data.ambiguity).items():
                    yield f"{space}|{name}/{source}", value


def _notes(figures: Mapping[str, Any], label: str) -> Iterator[str]:
    for name, of in figures["accuracy"]["raw"].items():
        if "not run" in of:
            yield f"{name}: not run: {of['not run']}"
    if "collapse" in figures:
        advice = collapse_advice({key: of["value"] for key, of in figures["collapse"].items()})
        if advice:
            yield f"{label}: {advice}"
