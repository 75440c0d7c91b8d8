"""How often VarTJEPA's intervals of 95 % hold the truth, by how much of a row is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness import Result, arguments, parse, write
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES
from table_alarms import by_rows, models
from table_imputation import covered

SHARES = (0.125, 0.5, 0.875)  # of the cells, hidden at random


def coverage(model: VarTJEPA, rows: pd.DataFrame, seed: int) -> dict[str, dict[str, float]]:
    """Return, by the share of cells that are hidden, that of each column's numbers inside their interval."""
    rng = np.random.default_rng(seed)
    found = {}
    for share in SHARES:
        hidden = rng.random(rows.shape) < share
        found[f"{share:g}"] = covered(model.impute(rows, hidden).cells, rows, hidden)
    return found


def by_one_reach(model: VarTJEPA, rows: pd.DataFrame, seed: int) -> dict[str, dict[str, float]]:
    """Return the same of intervals that are as wide, in standard deviations, whatever is hidden."""
    reach = model.network_.calibration.reach
    kept = reach.clone()
    reach.copy_(kept[:1])
    found = coverage(model, rows, seed)
    reach.copy_(kept)
    return found


def summary(fits: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by the share hidden, the mean coverage of all columns of fits, and the least of any."""
    found = {}
    for share in fits[0]:
        columns = [of for fit in fits for of in fit[share].values()]
        found[share] = {"columns": len(columns), "mean": float(np.mean(columns)), "least": min(columns)}
    return found


def both(fits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ``summary`` of fits of the model's intervals, and of those by one reach."""
    return {kind: summary([of[kind] for of in fits]) for kind in ("coverage", "by one reach")}


def main() -> None:
    parser = arguments(__doc__, "table_intervals", repeats=3)
    default = ["adult", "credit", "covertype", "electricity"]
    parser.add_argument("--tables", nargs="+", default=default, choices=SOURCES)
    parser.add_argument("--rows", type=int, nargs="+", default=[400, 4000], help="of each fit")
    parser.add_argument("--test-rows", type=int, default=1000, help="whose cells are hidden, at most")
    args = parse(parser)
    result = Result.resumed("table_intervals", args.out)  # goes on, fit by fit
    fits = result.figures.setdefault("fits", {})
    for name, _, rows, seed, model, test in models(args, fits):
        fits[name] = {
            "rows": rows,
            "coverage": coverage(model, test, seed),
            "by one reach": by_one_reach(model, test, seed),
        }
        print(name, both([fits[name]]), flush=True)
        result.figures["mean"] = by_rows([*fits.values()], both)
        write(result, args.out)
    write(result, args.out)


if __name__ == "__main__":
    main()
