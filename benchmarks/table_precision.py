"""VarTJEPA on Adult in bf16 beside float32: what a fit takes, and what its model knows afterwards."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import Any

from harness import Result, Spread, arguments, parse, write
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES, TableSet
from table_speed import embedding_accuracy, tables_and_codes

#: preset → the epochs of a fit; None: the preset's own
FITS = {"small": None, "adult": 15}
WAYS = ("float32", "bf16")


def fit(data: TableSet, preset: str, precision: Any, rows: int, seed: int) -> dict[str, float]:
    """Fit to so many rows; the process's own seconds, and what the model knows of test rows."""
    parts, codes = tables_and_codes(data, rows, n_test=4_000)
    began = time.process_time()
    model = VarTJEPA(
        preset, max_epochs=FITS[preset], precision=precision, random_state=seed, device="cpu"
    ).fit(parts[0])
    seconds = time.process_time() - began
    return {
        "seconds": seconds,
        "epochs": model.n_iter_,
        "validation loss": min(epoch["validation_loss"] for epoch in model.history_),
        "mean log p of a hidden cell": float(model.score_samples(parts[2]).mean()),
        "accuracy of the embedding": embedding_accuracy(model, parts, codes),
    }


def main() -> None:
    parser = arguments(__doc__, "table_precision", repeats=3)
    parser.add_argument("--rows", type=int, default=4_200, help="training rows")
    args = parse(parser)
    data = SOURCES["adult"].open(args.data_root)
    result = Result("table_precision", reference="small, float32")
    figures: dict[str, Any] = {"rows": args.rows, "seeds": args.repeats}
    for preset in FITS:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for seed in range(args.repeats):
            for way in WAYS:  # in turns: a drift of the machine falls on both
                found[way].append(fit(data, preset, way, args.rows, seed))
                print(preset, way, found[way][-1], flush=True)
        for way, fits in found.items():
            result.seconds[f"{preset}, {way}"] = [each["seconds"] for each in fits]
            figures[f"{preset}, {way}"] = {
                name: {
                    "mean": statistics.fmean(each[name] for each in fits),
                    "spread": statistics.stdev(each[name] for each in fits) if len(fits) > 1 else 0.0,
                }
                for name in fits[0]
            }
        pairs = zip(found["bf16"], found["float32"], strict=True)
        a_step = Spread.of([a["seconds"] / a["epochs"] / (b["seconds"] / b["epochs"]) for a, b in pairs])
        figures[f"{preset}, a fit's time an epoch in bf16 / float32"] = asdict(a_step)
        result.target(f"{preset}: a fit's time an epoch in bf16 / float32", a_step.median, 1.0)
    result.figures = figures
    write(result, args.out)


if __name__ == "__main__":
    main()
