"""Whether VarTJEPA's uncertainty means the same in every fit, and finds ambiguous rows and errors.

Beside it stand its copula alone, and its network untrained. With ``--keep`` the fits and what they say are
kept in a folder, and the same command goes on from there; tables that ``--out`` has are not measured again.
"""

from __future__ import annotations

import json
import warnings
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from harness import Result, arguments, parse, write
from probjepa import metrics
from probjepa.errors import ProbjepaWarning
from probjepa.evaluation.predictors import PREDICTORS
from probjepa.evaluation.selective import PREDICTIVE, PROBABILITY, UNCERTAINTY, table_uncertainty
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_cells import UNTRAINED_PARTS
from probjepa_experiments.table_sets import SOURCES, TableSet

RIGHT = "right"  # beside the sources: which of the MLP's answers are
LEAST = {"rho with u": 0.4, "agreement": 0.8}  # of ``PREDICTIVE``, on SIM
_CONTEXTS = 16  # of half a row each
Column = npt.NDArray[np.float64]


def main() -> None:
    parser = arguments(__doc__, "table_uncertainty", repeats=3)
    parser.add_argument(
        "--tables", nargs="+", default=["sim", "digits", "adult", "credit", "electricity"], choices=SOURCES
    )
    parser.add_argument("--rows", type=int, help="training rows; all without it")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of all fits, as JSON")
    parser.add_argument("--keep", type=Path, help="a folder; what is in it is not made again")
    args = parse(parser)
    warnings.simplefilter("ignore", ProbjepaWarning)
    result = Result.resumed("table_uncertainty", args.out)
    for name, part in product(args.tables, ("", *UNTRAINED_PARTS)):
        label = f"{name}, {part}" if part else name
        if label in result.figures:
            continue
        data = SOURCES[name].open(args.data_root, args.rows)
        settings = {"device": args.device, **args.set, **UNTRAINED_PARTS.get(part, {})}
        said = []
        for seed in range(args.repeats):
            place = None if args.keep is None else args.keep / f"{label}-{args.rows or 'all'}-{seed}"
            said.append(one_fit(data, seed, place, settings))
            print(f"{label}, fit {seed}: MLP {said[-1][RIGHT].mean():.4f}", flush=True)
        result.figures[label] = {
            "training rows": len(data.train),
            "MLP accuracy": [float(of[RIGHT].mean()) for of in said],
            "sources": {source: _of(source, said, data.ambiguity) for source in said[0] if source != RIGHT},
        }
    of_sim = result.figures.get("sim", {}).get("sources", {}).get(PREDICTIVE, {})
    for key, least in LEAST.items():
        if of_sim.get(key):
            worst = 1 - min(rho or 0.0 for rho in of_sim[key])
            result.target(f"sim: 1 − {key} of {PREDICTIVE}, the worst of the fits", worst, 1 - least)
    write(result, args.out)
    for name, figures in result.figures.items():
        print(f"\n{name}\n{markdown(figures['sources'])}")


def one_fit(data: TableSet, seed: int, place: Path | None, settings: dict[str, Any]) -> dict[str, Column]:
    """Fit the default preset, and return what each source says of the test rows, and the MLP's ``RIGHT``."""
    if place is not None and (place / "said.npz").exists():
        with np.load(place / "said.npz") as kept:
            return dict(kept)
    splits = (data.train, data.validation, data.test)
    classes = np.unique(data.train[data.target])
    y, y_val, truth = (np.searchsorted(classes, part[data.target]) for part in splits)
    tables = [part.drop(columns=data.target) for part in splits]
    if place is not None and (place / "model").exists():
        model = VarTJEPA.load(place / "model")
    else:
        model = VarTJEPA(random_state=seed, column_types=dict(data.column_types) or None, **settings)
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        model.fit(tables[0], checkpoint=None if place is None else place / "fit.ckpt")
        if place is not None:
            model.save(place / "model")
    spaces = [model.transform(table) for table in tables]
    probabilities = PREDICTORS["MLP"](spaces[0], y, spaces[1], y_val, seed)(spaces[2])
    features = (spaces[0], spaces[2])
    sources = table_uncertainty(model, tables[2], {"raw": features, "embedding": features}, seed)
    said = {name: values for name, values in sources.items() if "raw" not in name and name != "random"}
    said[f"{UNCERTAINTY}, 90th percentile"] = model.uncertainty(tables[2], "p90")
    said[PROBABILITY] = 1 - probabilities.max(1)
    said |= constructions(model, tables[2])
    said[RIGHT] = (probabilities.argmax(1) == truth).astype(float)
    if place is not None:
        np.savez(place / "said.npz", **said)
    return said


@torch.no_grad()
def constructions(model: VarTJEPA, table: Any) -> dict[str, Column]:
    """Other measures of the predicted cells that ``PREDICTIVE``, their mean entropy, was chosen from.

    "entropy, k groups": with 1/k of a row hidden at a time (``PREDICTIVE``: 8). "largest", "numbers",
    "categories": of its cells. "share left": a number's variance, in that of its column, and a category's
    1 − Σp². "disagreement": the mean over cells of the mutual information of a cell and the context, over
    contexts of half a row (numbers: ½ log of 1 + the variance of the means over the mean variance).
    """
    network, layout = model.network_, model.schema_.layout
    entropy = model.uncertainty_features(table).to_numpy()
    found = {
        **{f"entropy, {k} groups": model.uncertainty_features(table, k).to_numpy().mean(1) for k in (2, 3)},
        "entropy, largest": entropy.max(1),
    }
    if layout.numeric and layout.categorical:
        found["entropy, numbers"] = entropy[:, list(layout.numeric)].mean(1)
        found["entropy, categories"] = entropy[:, list(layout.categorical)].mean(1)
    left, apart = [], []
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(layout.n_features, generator=generator) for _ in range(_CONTEXTS // 2)]
    for rows in model._batches(table):
        cells = network.predict_each(rows, 8)
        left.append(torch.cat([cells.variance, *(_gini(of) for of in cells.logits)], 1).mean(1))
        contexts = []
        for order in orders:
            hidden = torch.zeros(layout.n_features, dtype=torch.bool)
            hidden[order[: layout.n_features // 2]] = True
            contexts += [(of, network.predict(rows, of.expand(len(rows), -1))) for of in (hidden, ~hidden)]
        parts = []
        for k, i in enumerate(layout.numeric):
            asked = [cells for hidden, cells in contexts if hidden[i]]
            mean = torch.stack([of.mean[:, k] for of in asked])
            variance = torch.stack([of.variance[:, k] for of in asked])
            parts.append(0.5 * (mean.var(0, correction=0) / variance.mean(0)).log1p())
        for k, i in enumerate(layout.categorical):
            p = torch.stack([cells.logits[k].softmax(1) for hidden, cells in contexts if hidden[i]])
            parts.append(_entropy(p.mean(0)) - _entropy(p).mean(0))
        apart.append(torch.stack(parts, 1).mean(1))
    for name, values in (("share left", left), ("disagreement", apart)):
        found[name] = torch.cat(values).double().numpy()
    return found


def _gini(logits: torch.Tensor) -> torch.Tensor:
    return 1 - logits.softmax(1).square().sum(1, keepdim=True)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.clamp(min=1e-30).log()).sum(-1)


def _of(source: str, said: list[dict[str, Column]], ambiguity: Column | None) -> dict[str, Any]:
    """Return what a source of uncertainty is worth, a figure a fit, or a pair of fits.

    ``gain at half``: the MLP's accuracy on the half that the source is most certain of, less that on all
    rows. ``agreement``: Spearman's ρ of the source between two fits, row by row. ``rho with u``: with the
    rows' ambiguity, where that is known. None where a source does not vary.
    """
    values = [sources[source] for sources in said]
    curves = [
        metrics.risk_coverage(-value, sources[RIGHT]) for value, sources in zip(values, said, strict=True)
    ]
    figures: dict[str, Any] = {
        "gain at half": [
            curve.accuracy_at[0.5] - float(sources[RIGHT].mean())
            for curve, sources in zip(curves, said, strict=True)
        ],
        "aurc": [float(curve.aurc) for curve in curves],
        "agreement": [_rho(a, b) for a, b in combinations(values, 2)],
    }
    if ambiguity is not None:
        figures["rho with u"] = [_rho(value, ambiguity) for value in values]
    return figures


def _rho(a: Column, b: Column) -> float | None:
    """Spearman's ρ; None where one of them does not vary."""
    if a.min() == a.max() or b.min() == b.max():
        return None
    return float(spearmanr(a, b)[0])


def markdown(sources: dict[str, Any]) -> str:
    """Return the figures as lines of a table: the range over fits of each."""
    forms = {"rho with u": "{:.2f}", "agreement": "{:.2f}", "gain at half": "{:+.1%}", "aurc": "{:.3f}"}
    lines = [f"| source | {' | '.join(forms)} |", "|---" * 5 + "|"]
    for name, figures in sources.items():
        known = {key: [x for x in of if x is not None] for key, of in figures.items()}
        ranges = {key: (min(of), max(of)) for key, of in known.items() if of}
        shown = [
            " to ".join(form.format(x) for x in ranges[key]).replace("-", "−") if key in ranges else "–"
            for key, form in forms.items()
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
