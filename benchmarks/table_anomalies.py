"""Whether VarTJEPA finds rows of which cells were redrawn, and which cells, beside detectors and trees."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import QuantileTransformer

from harness import Result, arguments, parse, write
from probjepa.errors import ProbjepaWarning
from probjepa.tabular import VarTJEPA
from probjepa.tabular.anomalies import Reduction
from probjepa_experiments.anomaly_detectors import detect
from probjepa_experiments.table_cells import UNTRAINED_PARTS
from probjepa_experiments.table_sets import SOURCES

_Array = npt.NDArray[np.float64]
DETECTORS = ("kNN", "Isolation Forest", "ECOD")
OURS, TREES = "VarTJEPA", "trees a column"
METHODS = (*DETECTORS, TREES, OURS, *UNTRAINED_PARTS)
DAMAGES = ("one cell", "three cells", "all cells")
# of ``score_features``, by the reduction beside which its cell is judged
SCALES: dict[str, dict[str, Any]] = {
    "mean": {},
    "max": {"standardized": True},
    "explained": {"explained": True},
}


def redrawn(table: pd.DataFrame, pool: pd.DataFrame, cells: int, seed: int) -> tuple[pd.DataFrame, Any]:
    """Redraw so many cells of each row from the pool's column, other than what stood there.

    Returns the table, and which columns (N, cells) were drawn.
    """
    rng = np.random.default_rng(seed)
    which = rng.random(table.shape).argsort(1)[:, :cells]
    out = {}
    for i, column in enumerate(table):
        codes, values = pd.factorize(pd.concat([pool[column], table[column]]), use_na_sentinel=False)
        known, own = codes[: len(pool)], codes[len(pool) :].copy()
        for row in np.flatnonzero((which == i).any(1)):
            others = known[known != own[row]]
            if len(others):
                own[row] = rng.choice(others)
        out[column] = pd.Series(values.take(own), dtype=table[column].dtype)
    return pd.DataFrame(out), which


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the table with each column in an order of its own."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({column: table[column].array.take(rng.permutation(len(table))) for column in table})


def coded(train: pd.DataFrame) -> Callable[[pd.DataFrame], _Array]:
    """Return what turns a table into standardised numbers and 0/1 columns, missing cells at the mean."""
    numeric = [c for c in train if _is_number(train[c])]
    mean, std = train[numeric].mean(), train[numeric].std().replace(0, 1).fillna(1)
    levels = {c: sorted(set(_text(train[c]))) for c in train if c not in numeric}

    def code(table: pd.DataFrame) -> _Array:
        parts = [((table[numeric].astype(float) - mean) / std).fillna(0).to_numpy()]
        parts += [
            (np.array(_text(table[c]))[:, None] == np.array(of)).astype(float) for c, of in levels.items()
        ]
        return np.concatenate(parts, 1)

    return code


def trees(train: pd.DataFrame, tables: dict[str, pd.DataFrame], seed: int) -> dict[str, _Array]:
    """Surprise of each cell (N, D), by one gradient-boosted model a column on the others.

    A number is Gaussian in its normal quantiles, with the deviation of a held-out fifth's errors; a category
    has the classifier's probabilities, none below 1e-4.
    """
    held = np.random.default_rng(seed).random(len(train)) < 0.2
    names = {c: sorted(train[c].dropna().astype(str).unique()) for c in train if not _is_number(train[c])}
    kept = {c: train[c].value_counts().index[:254].astype(str) for c in names}

    def typed(table: pd.DataFrame) -> pd.DataFrame:
        parts = {
            c: pd.Categorical(table[c].astype(str).where(table[c].notna()), kept[c])
            if c in names
            else table[c].astype(float).to_numpy()
            for c in table
        }
        return pd.DataFrame(parts)

    inputs, found = typed(train), {name: np.zeros(table.shape) for name, table in tables.items()}
    asked = {name: typed(table) for name, table in tables.items()}
    for i, column in enumerate(train):
        others = [c for c in train if c != column]
        fit = train[column].notna().to_numpy() & ~held
        if column in names:
            code = {name: k for k, name in enumerate(names[column])}
            target = train[column].astype(str).map(code)
            model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
            model.fit(inputs.loc[fit, others], target[fit].astype(int))
            for name, table in tables.items():
                p = np.full((len(table), len(code) + 1), 1e-4)
                p[:, model.classes_] = np.maximum(model.predict_proba(asked[name][others]), 1e-4)
                at = table[column].astype(str).map(code).fillna(len(code)).astype(int)
                nll = -np.log(p[np.arange(len(table)), at])
                found[name][:, i] = np.where(table[column].notna(), nll, 0.0)
        else:
            values = train[column].astype(float).to_numpy()[:, None]
            to_normal = QuantileTransformer(output_distribution="normal", random_state=seed).fit(values)
            regressor = HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=seed)
            regressor.fit(inputs.loc[fit, others], to_normal.transform(values[fit])[:, 0])
            check = train[column].notna().to_numpy() & held
            error = (
                to_normal.transform(values[check])[:, 0] - regressor.predict(inputs.loc[check, others])
            ).std()
            for name, table in tables.items():
                x = to_normal.transform(table[[column]].astype(float).to_numpy())[:, 0]
                nll = -norm.logpdf(x, regressor.predict(asked[name][others]), max(error, 0.1))
                found[name][:, i] = np.where(np.isnan(x), 0.0, nll)
    return found


def _text(column: pd.Series[Any]) -> list[str]:
    return [str(value) for value in column]


def _is_number(column: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


def damaged(table: str, root: Path, rows: int, test_rows: int, seed: int) -> tuple[Any, dict[str, Any], Any]:
    """Return training rows, test rows by what was done to them ("": nothing), and which cell was redrawn.

    The rows that were damaged are others than the undamaged ones. "all cells": each column in another order.
    """
    data = SOURCES[table].open(root, seed=seed)
    train, test = (
        part.drop(columns=data.target).sample(min(n, len(part)), random_state=seed).reset_index(drop=True)
        for part, n in ((data.train, rows), (data.test, 2 * test_rows))
    )
    for column in data.column_types:  # all of them categories
        train[column], test[column] = (part[column].map(str) for part in (train, test))
    half = len(test) // 2
    whole, other = (part.reset_index(drop=True) for part in (test[:half], test[half:]))
    one, which = redrawn(other, train, 1, seed)
    three, _ = redrawn(other, train, 3, seed)
    return train, dict(zip(("", *DAMAGES), (whole, one, three, shuffled(other, seed)), strict=True)), which


def measured(
    method: str, train: Any, tests: dict[str, Any], which: Any, seed: int, own: dict[str, Any]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield a name, and AUROC of each damage and hit@1 of the one cell, of a method's ways to score."""
    if method in DETECTORS:
        code = coded(train)
        oddness = detect(method, code(train), np.concatenate([code(table) for table in tests.values()]), seed)
        ends = np.cumsum([len(table) for table in tests.values()])[:-1]
        yield method, _areas(dict(zip(tests, np.split(oddness, ends), strict=True)))
    elif method == TREES:
        cells = trees(train, tests, seed)
        hit = float((cells["one cell"].argmax(1) == which[:, 0]).mean())
        yield method, _areas({name: of.mean(1) for name, of in cells.items()}) | {"hit@1": hit}
    else:
        model = VarTJEPA(random_state=seed, **own, **UNTRAINED_PARTS.get(method, {})).fit(train)
        for reduction in get_args(Reduction):
            scores = {name: -model.score_samples(table, reduction=reduction) for name, table in tests.items()}
            figures = _areas(scores)
            if (scale := SCALES.get(reduction)) is not None:
                cells = model.score_features(tests["one cell"], **scale).fillna(-np.inf)
                figures["hit@1"] = float((cells.to_numpy().argmax(1) == which[:, 0]).mean())
            yield f"{method}, {reduction}", figures


def _areas(oddness: dict[str, _Array]) -> dict[str, float]:
    whole = oddness[""]
    return {
        name: float(roc_auc_score(np.r_[np.zeros(len(whole)), np.ones(len(of))], np.r_[whole, of]))
        for name, of in oddness.items()
        if name
    }


def judge(result: Result, table: str, seeds: list[dict[str, Any]]) -> None:
    """Record what was promised of a table, on the mean over seeds."""

    def mean(method: str, damage: str) -> float:
        return float(np.mean([of[method][damage] for of in seeds]))

    for damage in DAMAGES[:2]:
        ours, best = mean(f"{OURS}, mean", damage), max(mean(name, damage) for name in DETECTORS)
        result.target(f"{table}, {damage}: the best detector's AUROC + .05 − ours", best + 0.05 - ours, 0)
        short = mean(TREES, damage) - 0.01 - ours
        result.target(f"{table}, {damage}: AUROC of trees a column − .01 − ours", short, 0)


def main() -> None:
    parser = arguments(__doc__, "table_anomalies", repeats=3)
    parser.add_argument("--tables", nargs="*", default=["adult", "credit", "covertype"])
    parser.add_argument("--rows", type=int, default=10_000, help="training rows at most")
    parser.add_argument("--test-rows", type=int, default=2_000, help="undamaged, and of each damage, at most")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of VarTJEPA, as JSON")
    args = parse(parser)
    warnings.simplefilter("ignore", ProbjepaWarning)
    result = Result.resumed("table_anomalies", args.out)  # goes on, method by method
    for table in args.tables:
        seeds = []
        for seed in range(args.repeats):
            name = f"{table}, {args.rows} rows, seed {seed}"
            found = result.figures.setdefault(name, {})
            seeds.append(found)
            left = [method for method in METHODS if not any(of.split(",")[0] == method for of in found)]
            if not left:
                continue
            parts = damaged(table, args.data_root, args.rows, args.test_rows, seed)
            for method in left:
                start = time.perf_counter()
                of = dict(measured(method, *parts, seed, {**args.set, "device": args.device}))
                seconds = time.perf_counter() - start
                found |= {label: {**figures, "seconds": seconds} for label, figures in of.items()}
                print(name, of, flush=True)
                write(result, args.out)
        judge(result, table, seeds)
    write(result, args.out)


if __name__ == "__main__":
    main()
