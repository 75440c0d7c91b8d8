"""Which share of new rows ``VarTJEPA(alpha=…)`` calls outliers: the threshold among its held-out rows."""

from __future__ import annotations

import math
import statistics
import warnings
from itertools import product
from typing import Any

import numpy as np

from harness import Result, arguments, parse, write
from probjepa.errors import ProbjepaWarning
from probjepa.metrics.conformal import threshold, threshold_rank
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES

ALPHAS = (0.05, 0.1)


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


def main() -> None:
    parser = arguments(__doc__, "table_alarms", repeats=3)
    parser.add_argument("--tables", nargs="+", default=["adult", "credit", "covertype"], choices=SOURCES)
    parser.add_argument("--rows", type=int, nargs="+", default=[400, 800, 4000], help="of each fit")
    parser.add_argument("--test-rows", type=int, default=4_000, help="new rows, at most")
    args = parse(parser)
    warnings.simplefilter("ignore", ProbjepaWarning)
    result = Result.resumed("table_alarms", args.out)  # goes on, fit by fit
    fits = result.figures.setdefault("fits", {})
    for rows, table, seed in product(args.rows, args.tables, range(args.repeats)):
        name = f"{table}, {rows} rows, seed {seed}"
        if name in fits:
            continue
        data = SOURCES[table].open(args.data_root, seed=seed)
        drawn = np.random.default_rng(seed)
        train, test = (
            part.drop(columns=data.target).take(drawn.permutation(len(part))[:n])
            for part, n in ((data.train, rows), (data.test, args.test_rows))
        )
        model = VarTJEPA(random_state=seed, device=args.device, column_types=data.column_types).fit(train)
        fits[name] = {"rows": rows, "held out": len(model.held_out_scores_), "alarms": alarms(model, test)}
        print(name, fits[name], flush=True)
        result.figures["mean"] = {
            str(n): summary([of for of in fits.values() if of["rows"] == n])
            for n in sorted({of["rows"] for of in fits.values()})
        }
        write(result, args.out)
    write(result, args.out)


if __name__ == "__main__":
    main()
