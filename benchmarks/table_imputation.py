"""How well hidden cells are filled: VarTJEPA beside scikit-learn's imputers and one tree model a column.

A tenth of the test rows' cells are hidden; every method sees the same rows and the same hidden cells. Cells
of the result are kept as they finish: the same command goes on.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import sklearn.experimental.enable_iterative_imputer  # noqa: F401
from scipy.stats import betabinom, binom
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import IterativeImputer, KNNImputer

from harness import arguments, command_line, environment, parse, runs_of
from probjepa.files import write_text
from probjepa.tabular import VarTJEPA
from probjepa.tabular.presets import PRESETS
from probjepa_experiments.table_cells import UNTRAINED_PARTS
from probjepa_experiments.table_sets import SOURCES, TableSet

TABLES = ("adult", "credit", "covertype", "electricity", "wine", "breast-cancer")
_HIDDEN, _TESTED = 0.1, 2000
_LEVEL, _BAND = 0.95, (0.92, 0.97)  # of the intervals, and what their coverage is held to
_FEWEST = 50  # held-out cells of a column whose intervals are counted

Mask = npt.NDArray[np.bool_]
Filler = Callable[[TableSet, pd.DataFrame, pd.DataFrame, Mask, int], pd.DataFrame]


def is_number(table: TableSet, column: str) -> bool:
    """Whether a column is one of numbers, and not of codes."""
    named = column in table.column_types
    return not named and pd.api.types.is_numeric_dtype(table.train[column].dtype)


class Coded:
    """A table as scikit-learn's imputers take it: standardised numbers, a 0/1 column for each category."""

    def __init__(self, table: TableSet, train: pd.DataFrame) -> None:
        self.numeric = [c for c in train if is_number(table, c)]
        self.mean, self.std = train[self.numeric].mean(), train[self.numeric].std().replace(0, 1)
        self.levels = {
            c: sorted(train[c].dropna().astype(str).unique()) for c in train if c not in self.numeric
        }

    def code(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the numbers and 0/1 columns of rows, NaN where a cell is missing."""
        parts = [(rows[self.numeric].astype(float) - self.mean) / self.std]
        for column, known in self.levels.items():
            text = rows[column].astype(object).where(rows[column].notna()).map(str, na_action="ignore")
            dummies = pd.DataFrame({f"{column}={v}": (text == v).astype(float) for v in known}, rows.index)
            parts.append(dummies.mask(text.isna()))
        return pd.concat(parts, axis=1)

    def decode(self, rows: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
        """Return rows with their missing cells filled from what ``code`` became."""
        filled = rows.copy()
        for column in self.numeric:
            said = found[column] * self.std[column] + self.mean[column]
            filled[column] = rows[column].astype(float).fillna(said)
        for column, known in self.levels.items():
            best = found[[f"{column}={v}" for v in known]].to_numpy().argmax(1)
            guess = pd.Series([known[i] for i in best], rows.index)
            filled[column] = rows[column].astype(object).where(rows[column].notna(), guess)
        return filled


def by_imputer(make: Callable[[int], Any]) -> Filler:
    """Fill by one of scikit-learn's imputers of numbers."""

    def fill(
        table: TableSet, train: pd.DataFrame, shown: pd.DataFrame, hidden: Mask, seed: int
    ) -> pd.DataFrame:
        coded = Coded(table, train)
        rows, known = coded.code(shown), coded.code(train)
        found = make(seed).set_output(transform="pandas").fit(known).transform(rows)
        return coded.decode(shown, found.set_axis(rows.columns, axis=1))

    return fill


def by_mode(
    table: TableSet, train: pd.DataFrame, shown: pd.DataFrame, hidden: Mask, seed: int
) -> pd.DataFrame:
    """Fill by each column's mean or most frequent category."""
    filled = shown.copy()
    for column in shown:
        number = is_number(table, column)
        value = train[column].astype(float).mean() if number else train[column].mode()[0]
        filled[column] = filled[column].astype(object).where(filled[column].notna(), value)
    return filled


def by_trees(
    table: TableSet, train: pd.DataFrame, shown: pd.DataFrame, hidden: Mask, seed: int
) -> pd.DataFrame:
    """Fill by one gradient-boosted model a column, fitted to rows that lack as many cells."""
    lacking = np.random.default_rng(seed + 1).random(train.shape) < _HIDDEN
    categories = {c: pd.CategoricalDtype(sorted(train[c].dropna().astype(str).unique()))
                  for c in train if not is_number(table, c)}  # fmt: skip
    frequent = {c: set(train[c].astype(str).value_counts().index[:254]) for c in categories}

    def coded(rows: pd.DataFrame) -> pd.DataFrame:
        out = rows.copy()
        for column, kind in categories.items():
            text = rows[column].astype(object).map(str, na_action="ignore")
            out[column] = text.where(text.isin(frequent[column])).astype(kind).cat.codes.replace(-1, np.nan)
        return out.astype(float)

    inputs, asked = coded(train.mask(pd.DataFrame(lacking, columns=train.columns))), coded(shown)
    filled = shown.copy()
    for i, column in enumerate(train):
        where, known = hidden[:, i], train[column].notna().to_numpy()
        if not where.any():
            continue
        kind = HistGradientBoostingRegressor if is_number(table, column) else HistGradientBoostingClassifier
        of_codes = [c for c in categories if c != column]
        target = train[column][known]
        target = target.astype(float) if is_number(table, column) else target.astype(str)
        model = kind(random_state=seed, categorical_features=of_codes)
        model.fit(inputs.drop(columns=column)[known], target)
        said = model.predict(asked.drop(columns=column)[where])
        filled[column] = filled[column].astype(object)
        filled.iloc[np.flatnonzero(where), i] = said
    return filled


FILLERS: dict[str, Filler] = {
    "KNNImputer": by_imputer(lambda seed: KNNImputer()),
    "IterativeImputer": by_imputer(lambda seed: IterativeImputer(random_state=seed)),
    "trees a column": by_trees,
    "mean or mode": by_mode,
}


def errors(table: TableSet, truth: pd.DataFrame, filled: pd.DataFrame, hidden: Mask) -> dict[str, Any]:
    """RMSE / std of the hidden numbers, and accuracy of the hidden categories: means over columns."""
    numbers, categories = {}, {}
    for i, column in enumerate(truth.columns):
        where = hidden[:, i] & truth[column].notna().to_numpy()
        if not where.any():
            continue
        real, said = truth[column][where], filled[column][where]
        if is_number(table, column):
            error = said.astype(float) - real.astype(float)
            numbers[column] = float(np.sqrt((error**2).mean()) / truth[column].astype(float).std())
        else:
            categories[column] = float((said.astype(str) == real.astype(str)).mean())
    return {
        "rmse / std": float(np.mean([*numbers.values()])) if numbers else None,
        "accuracy": float(np.mean([*categories.values()])) if categories else None,
        "columns": numbers | categories,
    }


def covered(cells: pd.DataFrame, truth: pd.DataFrame, hidden: Mask) -> dict[str, float]:
    """Share of a column's hidden numbers inside their 95 % intervals, where it has enough of them."""
    found = {}
    for column, of in cells[cells["low"].notna()].groupby("feature"):
        if column in truth.columns and len(of) >= _FEWEST:
            real = truth[column].astype(float).to_numpy()[of["row"].to_numpy()]
            there = hidden[of["row"].to_numpy(), list(truth.columns).index(column)] & ~np.isnan(real)
            inside = (of["low"].to_numpy() <= real) & (real <= of["high"].to_numpy())
            if there.sum() >= _FEWEST:
                found[str(column)] = float(inside[there].mean())
    return found


def main() -> None:
    parser = arguments(__doc__, "table_imputation", repeats=3)
    parser.add_argument("--tables", nargs="*", default=[*TABLES])
    parser.add_argument("--rows", type=int, default=10_000, help="training rows at most")
    parser.add_argument("--fillers", nargs="*", default=["VarTJEPA", *UNTRAINED_PARTS, *FILLERS])
    parser.add_argument("--set", type=json.loads, default={}, help="settings of VarTJEPA, as JSON")
    parser.add_argument("--label", default="VarTJEPA", help="its name in the result")
    args = parse(parser)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"benchmark": "table_imputation", "cells": {}}
    if Path(args.out).exists():
        found = json.loads(Path(args.out).read_text())
    before = {"earlier": runs_of(found)} if found["cells"] else {}
    for seed in range(args.repeats):
        for name in args.tables:
            for filler in args.fillers:
                label = args.label if filler == "VarTJEPA" else filler
                key = f"{name}, {args.rows} rows, seed {seed}, {label}"
                if key in found["cells"]:
                    continue
                found["cells"][key] = cell(args, name, seed, filler)
                found.update(command=command_line(sys.argv), environment=environment(), **before)
                print(key, {k: v for k, v in found["cells"][key].items() if k != "columns"}, flush=True)
                keep(args.out, found)
    if "VarTJEPA" in args.fillers:
        found["intervals"] = intervals(args, found["cells"])
        keep(args.out, found)


def keep(out: str, found: dict[str, Any]) -> None:
    """Write what there is of the result."""
    write_text(Path(out), json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def hidden_rows(args: Any, name: str, seed: int) -> tuple[TableSet, pd.DataFrame, pd.DataFrame, Mask]:
    """A table, its training and its test rows, and which cells of the latter are hidden."""
    data = SOURCES[name].open(args.data_root, seed=seed)
    train, test = (part.drop(columns=data.target) for part in (data.train, data.test))
    train, test = train.iloc[: args.rows], test.iloc[:_TESTED].reset_index(drop=True)
    return data, train, test, np.random.default_rng(seed).random(test.shape) < _HIDDEN


def intervals(args: Any, cells: dict[str, Any]) -> dict[str, Any]:
    """How many columns' intervals cover 92 to 97 % of the hidden cells, and how many would by chance.

    "exact": intervals that cover 95 % of all cells, of which so many are hidden (binomial); "read off":
    intervals that are quantiles of the errors of as many held-out cells as the fit had (beta-binomial).
    """
    covered, exact, read_off = [], 0.0, 0.0
    for name in args.tables:
        for seed in range(args.repeats):
            found = cells[f"{name}, {args.rows} rows, seed {seed}, {args.label}"].get("coverage", {})
            _, train, test, hidden = hidden_rows(args, name, seed)
            held_out = int(len(train) * PRESETS["small"]["validation_fraction"])
            for column, share in found.items():
                count = int((hidden[:, list(test.columns).index(column)] & test[column].notna()).sum())
                inside = np.arange(count + 1) / count
                inside = np.flatnonzero((inside >= _BAND[0]) & (inside <= _BAND[1]))
                known = round(held_out * float(train[column].notna().mean()))
                covered.append(share)
                exact += binom.pmf(inside, count, _LEVEL).sum()
                read_off += betabinom.pmf(
                    inside, count, _LEVEL * (known + 1), (1 - _LEVEL) * (known + 1)
                ).sum()
    return {
        "columns": len(covered),
        "mean coverage": float(np.mean(covered)),
        "92 to 97 %": int(sum(_BAND[0] <= share <= _BAND[1] for share in covered)),
        "expected of exact intervals": exact,
        "expected of intervals read off the held-out cells": read_off,
    }


def cell(args: Any, name: str, seed: int, filler: str) -> dict[str, Any]:
    """Hide a tenth of a table's test cells, and fill them."""
    data, train, test, hidden = hidden_rows(args, name, seed)
    shown = test.mask(pd.DataFrame(hidden, columns=test.columns))
    start = time.process_time()
    if filler in FILLERS:
        filled = FILLERS[filler](data, train, shown, hidden, seed)
        return {**errors(data, test, filled, hidden), "core seconds": time.process_time() - start}
    settings = {
        "column_types": dict(data.column_types) or None,
        **args.set,
        **UNTRAINED_PARTS.get(filler, {}),
    }
    model = VarTJEPA(random_state=seed, **settings).fit(train)
    seconds = time.process_time() - start
    said = model.impute(test, hidden)
    out = {**errors(data, test, said.table, hidden), "core seconds": seconds}
    if "low" in said.cells:
        out["coverage"] = covered(said.cells, test, hidden)
    return out


if __name__ == "__main__":
    main()
