"""Var-T-JEPA at the published size on a whole table: accuracy, and what its uncertainty is worth."""

from __future__ import annotations

import time
from pathlib import Path

from harness import Result, arguments, parse, write
from probjepa.evaluation.tables import evaluate_once
from probjepa.tabular import VarTJEPA
from probjepa_experiments.runner import figure
from probjepa_experiments.table_cells import flat_figures
from probjepa_experiments.table_sets import SOURCES


def main() -> None:
    parser = arguments(__doc__, "table_published", repeats=1)
    parser.add_argument("--table", default="adult", choices=["adult", "electricity", "credit"])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--run", type=Path, help="folder that the fit is kept in, and gone on with")
    args = parse(parser)
    data = SOURCES[args.table].open(args.data_root)
    features = data.train.drop(columns=data.target)
    result = Result("table_published", figures={"table": args.table, "rows": len(features)})
    if args.run is not None and (args.run / "model" / "config.json").is_file():
        model = VarTJEPA.load(args.run / "model")
    else:
        started = time.process_time()
        checkpoint = None if args.run is None else args.run / "fit.ckpt"
        model = VarTJEPA(
            SOURCES[args.table].preset, max_epochs=args.epochs, random_state=0, device=args.device,
            column_types=dict(data.column_types) or None,
        ).fit(features, checkpoint=checkpoint)  # fmt: skip
        result.figures["seconds of all cores, of this fit or the rest of it"] = time.process_time() - started
        if args.run is not None:
            model.save(args.run / "model")
    outcome = evaluate_once(model, data.train, data.validation, data.test, data.target, seed=0)
    result.figures |= {
        "settings": model.settings_,
        "epochs": model.n_iter_,
        "best epoch": model.best_epoch_,
        "validation loss": [losses["validation_loss"] for losses in model.history_],
        "figures": {name: figure(of)["value"] for name, of in flat_figures(outcome.metrics).items()},
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
