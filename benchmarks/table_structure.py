"""Whether VarTJEPA fills in what a row's other cells determine: a known structure, and a real table."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.impute import KNNImputer

from harness import Result, arguments, parse, write
from probjepa.errors import ProbjepaWarning
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES

#: What the default preset was before it had a predictive term.
BEFORE = {"alpha_pred": 0.0, "max_grad_norm": 1.0}
LEAST = {"lab": 0.85, "grp": 0.97, "sub": 0.45}
_HIDDEN = 0.1


def structure(n: int, seed: int, *, numbers: bool) -> pd.DataFrame:
    """Return rows: ``lab`` is a's fifth, ``sub`` is ``grp`` and a coin; with ``numbers``, three follow a."""
    rng = np.random.default_rng(seed)
    a, grp, coin = rng.normal(size=n), rng.integers(0, 4, n), rng.integers(0, 2, n)
    table = pd.DataFrame(
        {
            "a": a,
            "lab": pd.Series(np.digitize(a, [-0.8416, -0.2533, 0.2533, 0.8416])).map(lambda i: f"l{i}"),
            "grp": [f"g{i}" for i in grp],
            "sub": [f"g{i}{c}" for i, c in zip(grp, coin, strict=True)],
        }
    )
    return table.assign(double=2 * a + 1, cube=a**3, negative=-a) if numbers else table


def imputed_structure(seed: int, *, numbers: bool, rows: int, settings: dict[str, Any]) -> dict[str, float]:
    """Accuracy of each category of 1,000 other rows, hidden alone."""
    train, test = (structure(n, 100 * seed + i, numbers=numbers) for i, n in enumerate((rows, 1000)))
    start = time.perf_counter()
    model = VarTJEPA(random_state=seed, **settings).fit(train)
    seconds = time.perf_counter() - start
    found = {}
    for column in LEAST:
        hidden = np.zeros(test.shape, bool)
        hidden[:, list(test.columns).index(column)] = True
        filled = model.impute(test, hidden).table[column]
        found[column] = float((filled == test[column]).mean())
    return {**found, "seconds": seconds}


def imputed_cells(table: pd.DataFrame, filled: pd.DataFrame, hidden: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """RMSE / std of the hidden numbers, and accuracy of the hidden categories: means over columns."""
    numbers, categories = {}, {}
    for i, column in enumerate(table.columns):
        where = hidden[:, i] & table[column].notna().to_numpy()
        truth, said = table[column][where], filled[column][where]
        if pd.api.types.is_numeric_dtype(table[column].dtype):
            error = said.astype(float) - truth.astype(float)
            numbers[column] = float(np.sqrt((error**2).mean()) / table[column].astype(float).std())
        else:
            categories[column] = float((said.astype(str) == truth.astype(str)).mean())
    return {
        "rmse / std": float(np.mean([*numbers.values()])),
        "accuracy": float(np.mean([*categories.values()])),
        "columns": numbers | categories,
    }


def knn(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Fill a table by scikit-learn's KNNImputer on standardised numbers and 0/1 columns of the categories."""
    numeric = [c for c in train if pd.api.types.is_numeric_dtype(train[c].dtype)]
    mean, std = train[numeric].mean(), train[numeric].std().replace(0, 1)
    levels = {c: sorted(train[c].dropna().astype(str).unique()) for c in train if c not in numeric}

    def coded(table: pd.DataFrame) -> pd.DataFrame:
        parts = [(table[numeric].astype(float) - mean) / std]
        for column, known in levels.items():
            text = table[column].astype(object).where(table[column].notna()).map(str, na_action="ignore")
            dummies = pd.DataFrame({f"{column}={v}": (text == v).astype(float) for v in known}, table.index)
            parts.append(dummies.mask(text.isna()))
        return pd.concat(parts, axis=1)

    rows = coded(test)
    found = pd.DataFrame(KNNImputer().fit(coded(train)).transform(rows), rows.index, rows.columns)
    filled = test.copy()
    for column in numeric:
        filled[column] = test[column].astype(float).fillna(found[column] * std[column] + mean[column])
    for column, known in levels.items():
        best = found[[f"{column}={v}" for v in known]].to_numpy().argmax(1)
        guess = pd.Series([known[i] for i in best], test.index)
        filled[column] = test[column].astype(object).where(test[column].notna(), guess)
    return filled


def imputed_table(name: str, root: Path, rows: int, fits: dict[str, dict[str, Any]], seed: int) -> Any:
    """Hide a tenth of the cells of 2,000 test rows, and fill them by each fit and by KNNImputer."""
    data = SOURCES[name].open(root)
    train, test = (
        part.drop(columns=data.target).sample(min(n, len(part)), random_state=seed).reset_index(drop=True)
        for part, n in ((data.train, rows), (data.test, 2000))
    )
    hidden = np.random.default_rng(seed).random(test.shape) < _HIDDEN
    shown = test.mask(pd.DataFrame(hidden, columns=test.columns))
    figures: dict[str, Any] = {}
    for label, settings in fits.items():
        start = time.perf_counter()
        types = dict(data.column_types) or None
        model = VarTJEPA(random_state=seed, column_types=types, **settings).fit(train)
        seconds = time.perf_counter() - start
        filled = model.impute(test, hidden).table
        figures[label] = {**imputed_cells(test, filled, hidden), "seconds": seconds}
        print(name, label, figures[label], flush=True)
    figures["KNNImputer"] = imputed_cells(test, knn(train, shown), hidden)
    mode = shown.copy()
    for column in test:
        numeric = pd.api.types.is_numeric_dtype(test[column].dtype)
        fill = train[column].astype(float).mean() if numeric else train[column].mode()[0]
        mode[column] = mode[column].astype(object).where(mode[column].notna(), fill)
    figures["mean or mode"] = imputed_cells(test, mode, hidden)
    return figures


def main() -> None:
    parser = arguments(__doc__, "table_structure", repeats=3)
    parser.add_argument("--rows", type=int, default=4000, help="training rows of the known structure")
    parser.add_argument("--tables", nargs="*", default=["adult"])
    parser.add_argument("--table-rows", type=int, default=6000)
    parser.add_argument("--before", action="store_true", help="without the predictive term, too")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of all fits, as JSON")
    args = parse(parser)
    warnings.simplefilter("ignore", ProbjepaWarning)
    result = Result("table_structure")
    own = {**args.set, "device": args.device}
    fits = {"before": {**own, **BEFORE}} if args.before else {}
    fits["default"] = own
    for label, settings in fits.items():
        for numbers in (False, True):
            name = f"structure, {'with' if numbers else 'without'} number columns, {label}"
            result.figures[name] = []
            for seed in range(args.repeats):
                found = imputed_structure(seed, numbers=numbers, rows=args.rows, settings=settings)
                result.figures[name].append(found)
                print(name, found, flush=True)
            for column, least in LEAST.items() if label == "default" and args.repeats else ():
                worst = min(found[column] for found in result.figures[name])
                result.target(f"{name}: errors of {column}, worst fit", 1 - worst, 1 - least)
    for table in args.tables:
        result.figures[table] = imputed_table(table, args.data_root, args.table_rows, fits, 0)
        print(table, result.figures[table]["KNNImputer"], flush=True)
    write(result, args.out)


if __name__ == "__main__":
    main()
