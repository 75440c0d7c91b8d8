"""What a table's embeddings and uncertainty are worth to a classifier, beside raw features.

Nothing is fitted on a row that is scored: the encoder and the predictors see the training rows alone, and a
test row whose features also stand in the training table is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import probjepa
from probjepa import metrics
from probjepa.errors import ConfigError, DataError, MissingExtraError, unknown_name
from probjepa.provenance import hardware
from probjepa.tabular.files import row_hashes, table_sha256
from probjepa.tabular.frames import as_frame, named
from probjepa.tabular.predictors import PREDICTORS, Codes, Features, RawFeatures
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.selection import LIKELIHOOD, PROBABILITY, UNCERTAINTY, doubts, selection_figures

SHARES = (0.7, 0.1, 0.2)
_CONTINUOUS = 100  # more distinct numbers than this are no classes


@dataclass(frozen=True)
class TableEvaluation:
    """What ``evaluate_table`` returns.

    Attributes
    ----------
    metrics
        JSON-able: settings, sets, accuracy, selective, calibration, collapse; a figure is {value, low, high,
        seeds}
    arrays
        what the report draws, of the last seed: ``frame`` (the test rows' features), ``labels``, and where
        the model has them ``uncertainty`` (N,), ``score`` (N,) and ``surprise``, a DataFrame of cells
    """

    metrics: dict[str, Any]
    arrays: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One seed.

    Attributes
    ----------
    figures
        nested by name
    doubt
        source → (N,), higher = less sure
    unsure
        features → classifier → 1 − its maximum class probability, (N,)
    model
        the fitted encoder, or None
    """

    figures: dict[str, Any]
    doubt: dict[str, npt.NDArray[np.float64]]
    unsure: dict[str, dict[str, npt.NDArray[np.float64]]]
    model: Any


def split_rows(
    labels: npt.ArrayLike, seed: int, shares: Sequence[float] = SHARES
) -> tuple[npt.NDArray[np.int64], ...]:
    """Return disjoint row numbers, one array a share (training first), stratified by label, in random order.

    Of each class the later parts get their share rounded to whole rows, and training the rest, so that every
    class has a training row.

    Examples
    --------
    >>> [len(part) for part in split_rows([0] * 50 + [1] * 50, seed=0)]
    [70, 10, 20]
    """
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    random = np.random.default_rng(seed)
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in shares]
    for code in range(int(codes.max()) + 1):
        rows = random.permutation(np.flatnonzero(codes == code))
        sizes = [math.floor(share * len(rows) + 0.5) for share in shares[1:]]
        while sum(sizes) >= len(rows):
            sizes[int(np.argmax(sizes))] -= 1
        ends = np.cumsum([len(rows) - sum(sizes), *sizes])
        for part, piece in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.append(piece)
    return tuple(random.permutation(np.concatenate(part)) for part in parts)


def check_labels(frame: Any, target: str, name: str) -> npt.NDArray[np.str_]:
    """Return a table's classes (N,) as text, or raise DataError: no such column, missing or continuous."""
    if target not in frame.columns:
        raise DataError(
            f"{name} has no column '{target}' to predict (columns: {named(list(frame.columns))}): "
            "name one of them with --target"
        )
    column = frame[target]
    if missing := int(column.isna().sum()):
        raise DataError(
            f"the target column '{target}' of {name} is missing in {missing} of {len(frame)} rows: drop those"
        )
    if column.dtype.kind == "f":
        if (column.to_numpy() % 1 != 0).any() or column.nunique() > _CONTINUOUS:
            raise DataError(
                f"the target column '{target}' of {name} holds continuous numbers: this evaluation is of "
                "classes, so bin it first"
            )
        column = column.astype(np.int64)
    labels: npt.NDArray[np.str_] = column.astype(str).to_numpy(dtype=np.str_)
    return labels


def evaluate_table(
    model: Any,
    train: Any,
    test: Any,
    target: str,
    *,
    seeds: Sequence[int] = (0,),
    validation: Any = None,
    predictors: Sequence[str] | None = None,
    column_types: Mapping[str, ColumnType] | None = None,
    names: tuple[str, str] = ("train", "test"),
    progress: bool = False,
) -> TableEvaluation:
    """Evaluate a table encoder by the classifiers that its embeddings feed, beside raw features.

    Parameters
    ----------
    model
        a fitted ``VarTJEPA`` or ``TJEPA``, or seed → an unfitted one, which is fitted on the training rows
        without their target; None: raw features alone
    train, test
        DataFrames with the column ``target``; test rows whose features also stand in ``train`` are left out,
        and counted
    target
        the column of classes
    seeds
        of the encoder (a factory's), the predictors, and the eighth of ``train`` that is held out to stop
        the network early
    validation
        that eighth, if given: ``train`` is then used whole
    predictors
        of ``PREDICTORS``; None: all. One whose library is not installed is "not run"
    column_types
        of the raw features, as of ``TableSchema.infer``; None: the model's
    names
        what messages and reports call the two tables

    Raises
    ------
    DataError
        for a target that is not there, missing in some rows, continuous or with one class in ``train``; for
        tables with other columns than the model's; or if no test row is held out
    ConfigError
        for an unknown predictor, or no seed
    """
    chosen = list(PREDICTORS if predictors is None else predictors)
    for name in chosen:
        if name not in PREDICTORS:
            raise unknown_name("predictor", name, PREDICTORS)
    if not seeds:
        raise ConfigError("seeds is empty: give at least one")
    train, test = as_frame(train), as_frame(test)
    labels = check_labels(train, target, names[0])
    check_labels(test, target, names[1])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"the target column '{target}' of {names[0]} has one class, '{classes[0]}': give rows of two"
        )
    expected = list(getattr(getattr(model, "schema_", None), "columns", train.columns.drop(target)))
    for name, frame in zip(names, (train, test), strict=True):
        _check_columns(frame.columns.drop(target), expected, name)
    seen = np.isin(row_hashes(test[expected]), row_hashes(train[expected]))
    if seen.all():
        raise DataError(f"every row of {names[1]} also stands in {names[0]}: give held-out rows")
    test = test[~seen].reset_index(drop=True)
    outcomes: list[Outcome] = []
    for seed in _tracked(seeds, progress):
        fit, held = train, validation
        if held is None:
            first, second = split_rows(labels, seed, (0.875, 0.125))
            fit, held = train.iloc[first], train.iloc[second]
        outcomes.append(
            evaluate_once(
                model,
                fit,
                as_frame(held),
                test,
                target,
                seed=seed,
                predictors=chosen,
                column_types=column_types,
            )
        )
    last = outcomes[-1]
    estimator = last.model
    result: dict[str, Any] = {
        "version": probjepa.__version__,
        "hardware": hardware(),
        "settings": {**describe_model(estimator), "seeds": list(seeds), "predictors": chosen},
        "train": names[0],
        "test": names[1],
        "target": target,
        "classes": dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        "sets": {
            role: {"name": name, "rows": len(frame), "columns": len(expected), "sha256": table_sha256(frame)}
            for role, name, frame in zip(("train", "test"), names, (train, test), strict=True)
        },
        "left_out_as_in_train": int(seen.sum()),
        **over_seeds([outcome.figures for outcome in outcomes]),
    }
    features = test[expected]
    arrays: dict[str, Any] = {"frame": features, "labels": test[target].astype(str).to_numpy()}
    if UNCERTAINTY in last.doubt:
        arrays["uncertainty"] = last.doubt[UNCERTAINTY]
    if LIKELIHOOD in last.doubt:
        arrays |= {"score": -last.doubt[LIKELIHOOD], "surprise": estimator.score_features(features)}
    return TableEvaluation(result, arrays)


def evaluate_once(
    model: Any,
    fit: Any,
    validation: Any,
    test: Any,
    target: str,
    *,
    seed: int,
    predictors: Sequence[str] = tuple(PREDICTORS),
    column_types: Mapping[str, ColumnType] | None = None,
) -> Outcome:
    """Evaluate on one split, with checked tables; see ``evaluate_table``.

    Figures: ``accuracy`` features → predictor → {"accuracy", "macro F1", "weighted F1"} (or {"not run":
    why}); ``selective`` and ``calibration``: see ``selection_figures``; ``collapse`` of the test embeddings.
    """
    labels = check_labels(fit, target, "train")
    classes = np.unique(labels)
    y, y_val, y_test = (
        _codes(check_labels(frame, target, name), classes)
        for frame, name in ((fit, "train"), (validation, "validation"), (test, "test"))
    )
    tables = [frame.drop(columns=target) for frame in (fit, validation, test)]
    if callable(model):
        model = model(seed).fit(tables[0])
    if column_types is None and model is not None:
        column_types = {feature.column: feature.type for feature in model.schema_.features}
    raw = RawFeatures(column_types).fit(tables[0])
    empty = np.zeros((0, 0), np.float32)
    spaces: dict[str, list[Features]] = {
        "raw": [raw.transform(table) if len(table) else empty for table in tables]
    }
    if model is not None:
        spaces["embedding"] = [model.transform(table) if len(table) else empty for table in tables]
        spaces["raw + embedding"] = [
            np.concatenate(pair, 1) for pair in zip(spaces["raw"], spaces["embedding"], strict=True)
        ]
    doubt = doubts(model, tables[2], {name: (of[0], of[2]) for name, of in spaces.items()}, seed)
    accuracy: dict[str, dict[str, Any]] = {"majority class": {}}
    selective: dict[str, dict[str, Any]] = {}
    calibration: dict[str, dict[str, Any]] = {}
    unsure: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    majority = int(np.bincount(y).argmax())
    for name in predictors:
        accuracy["majority class"][name] = class_figures(y_test, np.full(len(y_test), majority))
    for space, (x, x_val, x_test) in spaces.items():
        for of in (accuracy, selective, calibration, unsure):
            of[space] = {}
        for name in predictors:
            try:
                probabilities = PREDICTORS[name](x, y, x_val, y_val, seed)(x_test)
            except MissingExtraError:
                accuracy[space][name] = {"not run": f"install probjepa[{name.lower()}]"}
                continue
            answers = probabilities.argmax(1)
            accuracy[space][name] = class_figures(y_test, answers)
            unsure[space][name] = 1 - probabilities.max(1)
            selective[space][name], calibration[space][name] = selection_figures(
                answers == y_test, {PROBABILITY: unsure[space][name], **doubt}
            )
    figures: dict[str, Any] = {"accuracy": accuracy, "selective": selective, "calibration": calibration}
    if model is not None:
        collapse = metrics.collapse_summary(spaces["embedding"][2])
        figures["collapse"] = {key: measured(value) for key, value in collapse.items()}
    return Outcome(figures, doubt, unsure, model)


def class_figures(truth: Codes, answers: Codes) -> dict[str, dict[str, float | None]]:
    """Return accuracy (with its Wilson interval), macro F1 and weighted F1 of answers (N,).

    The mean of the classes' F1 is macro F1; weighted F1 weights it by their sizes. Classes are those of truth
    and answers.
    """
    from sklearn.metrics import f1_score

    interval = metrics.accuracy_interval(truth == answers)
    return {
        "accuracy": measured(interval.value, interval.low, interval.high),
        "macro F1": measured(f1_score(truth, answers, average="macro", zero_division=0)),
        "weighted F1": measured(f1_score(truth, answers, average="weighted", zero_division=0)),
    }


def measured(value: float, low: float = math.nan, high: float = math.nan) -> dict[str, float | None]:
    """Return a figure as JSON has it; what is not finite is None."""
    return {
        key: float(x) if math.isfinite(x) else None
        for key, x in (("value", value), ("low", low), ("high", high))
    }


def over_seeds(each: Sequence[Any]) -> Any:
    """Bring nested figures of several seeds together: {value, low, high, seeds}, and means of lists.

    The interval is Student's t over three seeds or more, the seed's own where there is one, none for two.
    """
    first = each[0]
    if isinstance(first, list):
        return np.mean(np.asarray(each, dtype=np.float64), 0).tolist()
    if not isinstance(first, Mapping):
        return first
    if "value" not in first:
        return {key: over_seeds([one[key] for one in each]) for key in first}
    own = (first["low"], first["high"]) if len(each) == 1 else None
    return metrics.seed_interval([one["value"] for one in each], own)


def describe_model(model: Any) -> dict[str, Any]:
    """Return an encoder's name and settings, as JSON has them."""
    if model is None:
        return {"model": "none: raw features"}
    return {
        "model": type(model).__name__,
        "preset": model.preset,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in model.settings_.items()},
        "embedding": model.embedding,
        "epochs run": model.n_iter_,
        "best epoch": model.best_epoch_,
    }


def _codes(labels: npt.NDArray[np.str_], classes: npt.NDArray[np.str_]) -> Codes:
    """Codes of labels; one that the training rows lack is K, which no predictor answers."""
    where = np.searchsorted(classes, labels)
    known = classes[np.minimum(where, len(classes) - 1)] == labels
    return np.where(known, where, len(classes)).astype(np.int64)


def _check_columns(found: Any, expected: Sequence[str], name: str) -> None:
    missing = [column for column in expected if column not in found]
    unexpected = [column for column in found if column not in expected]
    if missing or unexpected:
        said = [f"missing: {named(missing)}"] if missing else []
        said += [f"unexpected: {named(unexpected)}"] if unexpected else []
        raise DataError(f"{name} has other columns than the model was fitted on or the training table has "
                        f"({'; '.join(said)}): give the same")  # fmt: skip


def _tracked(seeds: Sequence[int], progress: bool) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(seeds, "evaluating", transient=True, disable=not progress, console=Console(stderr=True))
