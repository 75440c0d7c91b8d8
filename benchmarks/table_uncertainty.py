"""Whether VarTJEPA's uncertainty means the same in every fit, and whether it finds a classifier's errors."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from harness import Result, arguments, parse, write
from probjepa import metrics
from probjepa.evaluation.predictors import PREDICTORS
from probjepa.evaluation.selective import PROBABILITY, UNCERTAINTY, table_uncertainty
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES, TableSet


def main() -> None:
    parser = arguments(__doc__, "table_uncertainty", repeats=3)
    parser.add_argument("--tables", nargs="+", default=["adult", "credit", "electricity", "sim"])
    args = parse(parser)
    result = Result("table_uncertainty")
    for name in args.tables:
        data = SOURCES[name].open(args.data_root)
        result.figures[name] = study(data, args.repeats, args.device)
        print(name, result.figures[name], flush=True)
    write(result, args.out)


def study(data: TableSet, fits: int, device: str) -> dict[str, Any]:
    """Fit the default preset with several seeds to the same rows; what each source says of test rows.

    ``gain at half``: the MLP's accuracy on the half that the source is most certain of, less that on all
    rows. ``agreement``: Spearman's ρ of the source between two fits, row by row. ``rho with u``: with the
    rows' ambiguity, where that is known.
    """
    splits = (data.train, data.validation, data.test)
    classes = np.unique(data.train[data.target])
    y, y_val, truth = (np.searchsorted(classes, part[data.target]) for part in splits)
    tables = [part.drop(columns=data.target) for part in splits]
    accuracy, said = [], []
    for seed in range(fits):
        model = VarTJEPA(random_state=seed, column_types=dict(data.column_types) or None, device=device)
        model.fit(tables[0])
        spaces = [model.transform(table) for table in tables]
        probabilities = PREDICTORS["MLP"](spaces[0], y, spaces[1], y_val, seed)(spaces[2])
        right = probabilities.argmax(1) == truth
        accuracy.append(float(right.mean()))
        features = (spaces[0], spaces[2])
        sources = table_uncertainty(model, tables[2], {"raw": features, "embedding": features}, seed)
        sources = {name: values for name, values in sources.items() if "raw" not in name and name != "random"}
        sources[f"{UNCERTAINTY}, 90th percentile"] = model.uncertainty(tables[2], "p90")
        sources[PROBABILITY] = 1 - probabilities.max(1)
        said.append((right, sources))
        print(f"fit {seed}: MLP {accuracy[-1]:.4f}", flush=True)
    return {
        "training rows": len(tables[0]),
        "MLP accuracy": accuracy,
        "sources": {source: _of(source, said, data.ambiguity) for source in said[0][1]},
    }


def _of(source: str, said: list[Any], ambiguity: npt.NDArray[np.float64] | None) -> dict[str, Any]:
    curves = [metrics.risk_coverage(-sources[source], right) for right, sources in said]
    values = [sources[source] for _, sources in said]
    figures: dict[str, Any] = {
        "gain at half": [
            curve.accuracy_at[0.5] - float(right.mean())
            for curve, (right, _) in zip(curves, said, strict=True)
        ],
        "aurc": [float(curve.aurc) for curve in curves],
        "agreement": [float(spearmanr(a, b)[0]) for a, b in combinations(values, 2)],
    }
    if ambiguity is not None:
        figures["rho with u"] = [float(spearmanr(value, ambiguity)[0]) for value in values]
    return figures


if __name__ == "__main__":
    main()
