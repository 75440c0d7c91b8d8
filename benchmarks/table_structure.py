"""Whether VarTJEPA fills in what a row's other cells determine, in a table of known structure."""

from __future__ import annotations

import json
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd

from harness import Result, arguments, parse, write
from probjepa.errors import ProbjepaWarning
from probjepa.tabular import VarTJEPA

LEAST = {"lab": 0.85, "grp": 0.97, "sub": 0.45}


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


def main() -> None:
    parser = arguments(__doc__, "table_structure", repeats=3)
    parser.add_argument("--rows", type=int, default=4000, help="training rows")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of all fits, as JSON")
    args = parse(parser)
    warnings.simplefilter("ignore", ProbjepaWarning)
    result = Result("table_structure")
    settings = {**args.set, "device": args.device}
    for numbers in (False, True):
        name = f"{'with' if numbers else 'without'} number columns"
        result.figures[name] = []
        for seed in range(args.repeats):
            found = imputed_structure(seed, numbers=numbers, rows=args.rows, settings=settings)
            result.figures[name].append(found)
            print(name, found, flush=True)
        for column, least in LEAST.items():
            worst = min(found[column] for found in result.figures[name])
            result.target(f"{name}: errors of {column}, worst fit", 1 - worst, 1 - least)
    write(result, args.out)


if __name__ == "__main__":
    main()
