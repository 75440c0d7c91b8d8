"""The commands on tables: ``train``, ``embed``, ``score`` and ``evaluate`` of Var-T-JEPA and T-JEPA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probjepa.errors import ConfigError
from probjepa.tabular import TABLE_METHODS

_RECORDED = ("data", "data_rows", "data_sha256", "target", "row_names", "fitted_with", "best_epoch", "seed")
_DIAGNOSED = 2_000  # rows whose embeddings tell a collapse


def is_table_model(source: str) -> bool:
    """Return whether a run or model folder holds a model of tables."""
    return _folder(source) is not None


def _folder(source: str) -> Path | None:
    """The model folder, if it is of a table model."""
    for folder in (Path(source) / "model", Path(source)):
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and "estimator" in config:
            return folder
    return None


def _load(source: str, device: str) -> tuple[Any, str | None]:
    """A fitted estimator on a device, and the target that its run left out."""
    import yaml

    from probjepa.loading import load
    from probjepa.training.device import resolve_device

    target_device = resolve_device(device)
    folder = _folder(source)
    assert folder is not None
    model = load(folder)
    model.network_.to(target_device)
    try:
        run = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        run = None
    target = run.get("target") if isinstance(run, dict) else None
    return model, target


def refuse_image_options(given: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option that only images have is set; ``given``: option → whether it is."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigError(f"{', '.join(named)}: not for tables, leave it out")


def train_table(
    method: str,
    data: str,
    out: Path,
    *,
    target: str | None,
    epochs: int | None,
    config: Path | None,
    settings: Sequence[str],
    seed: int | None,
    device: str | None,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> None:
    """Fit a table method, leaving the target and a column of row names out, and write the run folder.

    The folder is begun when the first epoch is over: from then on it has config.yaml and a checkpoint, which
    ``resume`` goes on with. The other files come once the fit is done, when the checkpoint goes; after Ctrl-C
    they come with the best weights so far, and the checkpoint stays.

    Raises
    ------
    ConfigError, DataError, ArtifactError
        for an unknown setting, a table that cannot be used, or a folder that is in the way
    Interrupted
        after Ctrl-C
    """
    from probjepa.cli.settings import check_settings, parse_assignments, read_config
    from probjepa.errors import ArtifactError, DataError
    from probjepa.tabular.files import read_table, table_sha256
    from probjepa.tabular.frames import named
    from probjepa.training.checkpoint import FitCheckpoint
    from probjepa.training.device import resolve_device
    from probjepa.training.folder import RunFolder
    from probjepa.training.interrupt import Interrupted
    from probjepa.typed import types_of

    folder = RunFolder(out)
    folder.check(resume=resume, overwrite=overwrite)
    kind = TABLE_METHODS[method]
    if resume and not folder.checkpoint.is_file():
        raise ArtifactError(
            f"{out} has no checkpoint: it is finished, or stopped before its first epoch ended"
        )
    if resume and config is None:
        config = folder.config
    given = read_config(config, method) if config else {}
    target = target if target is not None else given.get("target")
    given = {"random_state": given.get("seed", 0)} | {k: v for k, v in given.items() if k not in _RECORDED}
    given |= parse_assignments(settings)
    given |= {k: v for k, v in {"max_epochs": epochs, "random_state": seed, "device": device}.items()
              if v is not None}  # fmt: skip
    given = check_settings(given, {k: v for k, v in types_of(kind).items() if k != "verbose"})
    frame = read_table(data)
    if target is not None and target not in frame.columns:
        raise DataError(
            f"'{data}' has no column '{target}' to leave out (columns: {named(list(frame.columns))})"
        )
    features = frame if target is None else frame.drop(columns=target)
    names = _row_names(features, ())
    features = features if names is None else features.drop(columns=names)
    model = kind(**given, verbose=progress)
    used = resolve_device(model.device)
    about = {
        "data": data,
        "data_rows": len(features),
        "target": target,
        "row_names": names,
        "data_sha256": table_sha256(features)[:16],
    }

    def begin() -> None:
        folder.start(_record(method, model, about), used, {})

    checkpoint = FitCheckpoint(folder.checkpoint, resume=resume, before=None if resume else begin)
    stopped = None
    try:
        model.fit(features, checkpoint=checkpoint)
    except Interrupted as error:
        if not hasattr(model, "network_"):
            raise
        stopped = error
    model.set_params(device="auto")  # the model is not bound to where it was fitted
    _write_run(method, model, features, out, about, used)
    left_out = [name for name in (target, names) if name is not None]
    said = f", without {' and '.join(left_out)}" if left_out else ""
    if stopped is not None:
        raise Interrupted(
            f"stopped after {model.n_iter_} epochs: {out} has the weights of epoch {model.best_epoch_} and "
            "can be used; go on with --resume"
        )
    shutil.rmtree(folder.checkpoint.parent)
    print(
        f"trained {method} on {len(features):,} rows{said}: {out}/model, {out}/metrics.csv, {out}/report.html"
    )


def _record(method: str, model: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    params = {k: v for k, v in model.get_params().items() if k not in ("verbose", "device")}
    return {"method": method, **{f"method.{key}": value for key, value in params.items()}, **about}


def _write_run(
    method: str, model: Any, features: Any, out: Path, about: Mapping[str, Any], device: Any
) -> None:
    from probjepa.files import staged_directory, write_text
    from probjepa.report.training import training_report
    from probjepa.training.folder import RunFolder

    fitted = {"best_epoch": model.best_epoch_, "fitted_with": model.settings_}
    with staged_directory(out) as stage:
        RunFolder(stage).start(_record(method, model, about) | fitted, device, {})
        model.save(stage / "model")
        write_text(stage / "metrics.csv", _history(model, features))
        if (out / "model").is_dir():  # of the weights so far, after Ctrl-C
            shutil.rmtree(out / "model")
    training_report(out)


def _history(model: Any, features: Any) -> str:
    """metrics.csv: losses by epoch; in the last row the collapse diagnostics of the weights that are kept."""
    from probjepa.metrics import collapse_summary
    from probjepa.training.folder import metrics_csv

    some = features.iloc[:: -(-len(features) // _DIAGNOSED)]
    rows: list[dict[str, Any]] = []
    for epoch, losses in enumerate(model.history_, 1):
        named = {("val/loss" if k == "validation_loss" else f"train/{k}"): v for k, v in losses.items()}
        rows.append({"epoch": epoch, **named})
    rows[-1] |= collapse_summary(model.transform(some))
    return metrics_csv(rows)


def _row_names(frame: Any, columns: Sequence[str]) -> str | None:
    """The column called id, if the model does not read it."""
    return next((name for name in frame.columns if name.lower() == "id" and name not in columns), None)


def _opened(data: str, model: Any, target: str | None) -> tuple[Any, dict[str, Any]]:
    """A table's features, and the columns that name its rows: "id", and "label" where the target is there."""
    from probjepa.tabular.files import read_table

    frame = read_table(data)
    columns = model.schema_.columns
    names = _row_names(frame, columns)
    identity: dict[str, Any] = {
        "id": [str(x) for x in (range(len(frame)) if names is None else frame[names])]
    }
    if target is not None and target in frame.columns and target not in columns:
        identity["label"] = frame[target].to_numpy()
    spare = [name for name in (names, target) if name in frame.columns and name not in columns]
    return frame.drop(columns=spare), identity


def embed_table(source: str, data: str, out: Path, *, device: str, overwrite: bool) -> None:
    """Write id, label where the run's target is there, embedding, and uncertainty where the model has one."""
    from probjepa.data.rows import open_table
    from probjepa.files import refuse_existing

    refuse_existing(out, overwrite)
    model, target = _load(source, device)
    features, columns = _opened(data, model, target)
    columns["embedding"] = model.transform(features)
    if hasattr(model, "uncertainty"):
        columns["uncertainty"] = model.uncertainty(features)
    with open_table(out, overwrite) as table:
        table.write(columns)
    print(f"embedded {len(features):,} rows: {out}")


def score_table(
    source: str, data: str, out: Path, *, score: str, reference: str | None, seed: int, device: str,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write id, label, score (higher = more typical); of the likelihood, also each cell's surprise."""
    from probjepa.data.rows import open_table
    from probjepa.files import refuse_existing
    from probjepa.scores import score_set

    refuse_existing(out, overwrite)
    model, target = _load(source, device)
    features, columns = _opened(data, model, target)
    known = None if reference is None else _opened(reference, model, target)[0]
    columns["score"], parts = score_set(model, features, score, reference=known, seed=seed)
    columns |= parts
    with open_table(out, overwrite) as table:
        table.write(columns)
    print(f"scored {len(features):,} rows by {score} (higher = more typical): {out}")


def evaluate_tables(
    source: str, train: str, test: str, out: Path, *, target: str | None, seed: int, device: str,
    progress: bool,
) -> None:  # fmt: skip
    """Write metrics.json and report.html of ``evaluation.evaluate_table``, and print a summary."""
    from probjepa.evaluation.tables import evaluate_table
    from probjepa.files import write_text
    from probjepa.report.evaluation import table_report
    from probjepa.tabular.files import read_table

    model, recorded = _load(source, device)
    target = target if target is not None else recorded
    if target is None:
        raise ConfigError("an evaluation on tables needs --target, the column of classes to predict")
    if target in model.schema_.columns:
        raise ConfigError(
            f"the model was fitted with the column '{target}': train it without, probjepa train … "
            f"--target {target}"
        )

    def opened(path: str) -> Any:
        frame = read_table(path)
        names = _row_names(frame, [*model.schema_.columns, target])
        return frame if names is None else frame.drop(columns=names)

    result = evaluate_table(
        model, opened(train), opened(test), target, seeds=(seed,), progress=progress,
        names=(Path(train).name, Path(test).name),
    )  # fmt: skip
    write_text(out / "metrics.json", json.dumps(result.metrics, indent=2, allow_nan=False) + "\n")
    write_text(out / "report.html", table_report(result.metrics, result.arrays))
    _print_summary(result.metrics)
    print(f"wrote {out}/metrics.json and {out}/report.html")


def _print_summary(metrics: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="accuracy, % (95 % interval)", title_justify="left")
    for column in ("features", *metrics["settings"]["predictors"]):
        table.add_column(column)
    for space, row in metrics["accuracy"].items():
        table.add_row(space, *(_text(of) for of in row.values()))
    console.print(table)
    predictor, found = next(reversed(metrics["selective"]["embedding"].items()))
    table = Table(title=f"{predictor} on the embedding: error by doubt", title_justify="left")
    for column in ("doubt", "AURC", "accuracy, surest half, %"):
        table.add_column(column)
    for source, of in found.items():
        half = of["accuracy_at"]["0.5"]["value"]
        table.add_row(source, f"{of['aurc']['value']:.4f}", f"{100 * half:.1f}")
    console.print(table)
    if metrics["left_out_as_in_train"]:
        console.print(
            f"{metrics['left_out_as_in_train']:,} test rows also stand in the training table: left out"
        )


def _text(of: Mapping[str, Any]) -> str:
    if "not run" in of:
        return f"not run: {of['not run']}".replace("[", "\\[")
    value, low, high = (100 * of["accuracy"][key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"
