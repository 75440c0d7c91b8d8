"""Which share of new rows ``VarTJEPA(alpha=…)`` calls outliers: the threshold among its held-out rows."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from harness import Result, arguments, parse, write
from probjepa.errors import ProbjepaWarning
from probjepa.metrics.conformal import threshold, threshold_rank
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES

ALPHAS = (0.05, 0.1)


def rare_categories(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Draw n rows of three columns of words by Zipf's law (exponent 1.5), and a normal number."""
    words = {f"word{i}": [f"w{k}" for k in rng.zipf(1.5, n)] for i in range(3)}
    return pd.DataFrame(words | {"number": rng.normal(size=n)})


def long_tails(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Draw n rows of eight log-normal numbers (σ = 1.5)."""
    return pd.DataFrame({f"number{i}": np.exp(1.5 * rng.normal(size=n)) for i in range(8)})


DRAWN: dict[str, Callable[[np.random.Generator, int], pd.DataFrame]] = {
    "rare categories": rare_categories,
    "long tails": long_tails,
}


def tables(name: str, rows: int, test_rows: int, seed: int, data_root: Any) -> tuple[Any, Any, Any]:
    """Return rows to fit to, new ones, and the types of their columns."""
    drawn = np.random.default_rng(seed)
    if name in DRAWN:
        return DRAWN[name](drawn, rows), DRAWN[name](drawn, test_rows), None
    data = SOURCES[name].open(data_root, seed=seed)
    train, test = (
        part.drop(columns=data.target).take(drawn.permutation(len(part))[:n])
        for part, n in ((data.train, rows), (data.test, test_rows))
    )
    return train, test, data.column_types


def alarms(model: VarTJEPA, rows: Any) -> dict[str, dict[str, float]]:
    """Return, by alpha, the share of rows below the threshold, and that of an exact one: k/(n + 1)."""
    scores, held_out = model.score_samples(rows), model.held_out_scores_
    return {
        f"{alpha:g}": {
            "flagged": float((scores < threshold(held_out, alpha)).mean()),
            "exact": threshold_rank(len(held_out), alpha) / (len(held_out) + 1),
        }
        for alpha in ALPHAS
    }


def summary(fits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of fits by alpha, and its standard error."""
    found = {}
    for alpha in fits[0]["alarms"]:
        flagged = [of["alarms"][alpha]["flagged"] for of in fits]
        found[alpha] = {
            "flagged": statistics.fmean(flagged),
            "error": statistics.stdev(flagged) / math.sqrt(len(fits)) if len(fits) > 1 else None,
            "exact": statistics.fmean(of["alarms"][alpha]["exact"] for of in fits),
        }
    return found


def by_rows(fits: list[dict[str, Any]], summary: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
    """Return the ``summary`` of fits by how many rows they are of."""
    return {
        str(n): summary([of for of in fits if of["rows"] == n]) for n in sorted({of["rows"] for of in fits})
    }


def models(args: Any, done: Mapping[str, Any]) -> Iterator[tuple[str, str, int, int, VarTJEPA, Any]]:
    """Yield, of each fit that is not done, its name, table, rows and seed, the model and new rows."""
    warnings.simplefilter("ignore", ProbjepaWarning)
    for rows, table, seed in product(args.rows, args.tables, range(args.repeats)):
        name = f"{table}, {rows} rows, seed {seed}"
        if name not in done:
            train, test, types = tables(table, rows, args.test_rows, seed, args.data_root)
            model = VarTJEPA(random_state=seed, device=args.device, column_types=types).fit(train)
            yield name, table, rows, seed, model, test


def main() -> None:
    parser = arguments(__doc__, "table_alarms", repeats=3)
    default = ["adult", "credit", "covertype", *DRAWN]
    parser.add_argument("--tables", nargs="+", default=default, choices=[*SOURCES, *DRAWN])
    parser.add_argument("--rows", type=int, nargs="+", default=[400, 800, 4000], help="of each fit")
    parser.add_argument("--test-rows", type=int, default=4_000, help="new rows, at most")
    args = parse(parser)
    result = Result.resumed("table_alarms", args.out)  # goes on, fit by fit
    fits = result.figures.setdefault("fits", {})
    for name, table, rows, _, model, test in models(args, fits):
        fits[name] = {
            "table": table,
            "rows": rows,
            "held out": len(model.held_out_scores_),
            "alarms": alarms(model, test),
        }
        print(name, fits[name], flush=True)
        result.figures["mean"] = by_rows([of for of in fits.values() if of["table"] not in DRAWN], summary)
        for drawn in DRAWN:
            result.figures[drawn] = by_rows([of for of in fits.values() if of["table"] == drawn], summary)
        write(result, args.out)
    write(result, args.out)


if __name__ == "__main__":
    main()
