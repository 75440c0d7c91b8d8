"""What a table's embeddings and uncertainty are worth to a classifier, beside raw features.

Nothing is fitted on a row that is scored: the encoder and the predictors see the training rows alone, and
``evaluate_table`` leaves out a test row whose features also stand in the training table. ``evaluate_once``
takes a split as it is, as published tables do: see ``tabular.overlap.stands_in`` for such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import f1_score

from probjepa import metrics
from probjepa._arrays import check_classes
from probjepa.data.overlap import unlike
from probjepa.errors import ConfigError, DataError, MissingExtraError, unknown_name, warn
from probjepa.evaluation.decisions import CALIBRATION, TEST, flagged_rates
from probjepa.evaluation.figures import Evaluation, balanced_accuracy, figure, over_seeds, provenance
from probjepa.evaluation.label_free import label_free_scores
from probjepa.evaluation.predictors import PREDICTORS, Codes, Features, RawFeatures
from probjepa.evaluation.selective import (
    LIKELIHOOD,
    PROBABILITY,
    UNCERTAINTY,
    Correct,
    lead,
    selection_figures,
    table_uncertainty,
)
from probjepa.scores.sets import TableSubject
from probjepa.tabular.frames import as_frame, named, other_columns, pandas
from probjepa.tabular.overlap import shared_by_chance, stands_in, table_sha256
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.splits import split_rows
from probjepa.terminal import tracked

_CONTINUOUS = 100  # more distinct numbers than this are hardly classes


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
    many = column.nunique() > _CONTINUOUS
    if column.dtype.kind == "f":
        if many or (column.to_numpy() % 1 != 0).any():
            raise DataError(
                f"the target column '{target}' of {name} holds continuous numbers: this evaluation is of "
                "classes, so bin it first"
            )
        column = column.astype(np.int64)
    elif many and column.dtype.kind in "iu":  # a code of many classes, or a count
        warn(
            f"the target column '{target}' of {name} has {column.nunique()} different whole numbers, each of "
            "them taken for a class: bin it first if it is a quantity"
        )
    labels: npt.NDArray[np.str_] = column.astype(str).to_numpy(dtype=np.str_)
    return labels


def _labelled(frame: Any, target: str, name: str) -> tuple[Any, int]:
    """The rows of a table that have a class, and how many have none."""
    if target not in frame.columns or not frame[target].isna().any():
        return frame, 0
    known = frame[target].notna()
    if not known.any():
        raise DataError(f"the target column '{target}' of {name} is missing in every row: give labelled rows")
    return frame[known], int((~known).sum())


def _dates_as(model: Any) -> Callable[[Any], Any]:
    """What reads the dates of a table as a fitted model does; nothing, where there is none."""
    read: Callable[[Any], Any] = getattr(getattr(model, "schema_", None), "dated", lambda frame: frame)
    return read


def _not_in_train(calibration: Any, seen: npt.NDArray[np.bool_], name: str) -> Any:
    """The calibration rows that were not seen in the training table; warn of the others."""
    if seen.all():
        raise DataError(f"every calibration row also stands in {name}: give held-out rows")
    if seen.any():
        warn(f"calibration rows that also stand in {name}: {seen.sum()} of {len(seen)}. They are left out")
    return calibration[~seen]


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
    calibration: Any = None,
    names: tuple[str, str] = ("train", "test"),
    progress: bool = False,
) -> Evaluation:
    """Evaluate a table encoder by the classifiers that its embeddings feed, beside raw features.

    Parameters
    ----------
    model
        a fitted ``VarTJEPA`` or ``TJEPA``, or seed → an unfitted one, which is fitted on the training rows
        without their target; None: raw features alone
    train, test
        DataFrames with the column ``target``; test rows whose features also stand in ``train`` are left out,
        and counted, as rows without a class are
    target
        the column of classes, compared as text: 1 and 1.0 are one class
    seeds
        of the encoder (a factory's), the predictors, and the eighth of ``train`` that is held out to stop
        the network early. Intervals over several leave out what other test rows would change
    validation
        that eighth, if given, without test rows: ``train`` is then used whole
    predictors
        of ``PREDICTORS``; None: all. One whose library is not installed is "not run"
    column_types
        of the raw features, as of ``TableSchema.infer``; None: the model's
    calibration
        held-out typical rows, none of them in ``test``, that thresholds are read off, without those that
        also stand in ``train``; None: a half of ``test``, of which the other half is then counted. See
        ``flagged_rates``
    names
        what messages and reports call the two tables

    Raises
    ------
    DataError
        for a target that is not there, missing in all rows, continuous or with one class in ``train``; for
        tables with other columns than the model's or no class in common; if no test row, or none for
        calibration, is held out; or if more test rows are in ``validation`` or ``calibration`` than chance
        puts there, see ``shared_by_chance``
    ConfigError
        for an unknown predictor, or no seed
    """
    chosen = list(PREDICTORS if predictors is None else predictors)
    for name in chosen:
        if name not in PREDICTORS:
            raise unknown_name("predictor", name, PREDICTORS)
    if not seeds:
        raise ConfigError("seeds is empty: give at least one")
    train, unlabelled = _labelled(as_frame(train), target, names[0])
    test, unlabelled_test = _labelled(as_frame(test), target, names[1])
    labels = check_labels(train, target, names[0])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"the target column '{target}' of {names[0]} has one class, '{classes[0]}': give rows of two"
        )
    expected = list(getattr(getattr(model, "schema_", None), "columns", train.columns.drop(target)))
    asked = np.unique(check_labels(test, target, names[1])).tolist()
    absent = check_classes(asked, classes.tolist(), f"the column '{target}' of {names[1]}")
    for name, frame in zip(names, (train, test), strict=True):
        _check_columns(frame.columns.drop(target), expected, name)
    dated = _dates_as(model)

    def known(frame: Any) -> Any:
        return dated(frame[expected])

    seen = stands_in(known(test), known(train))
    if seen.all():
        raise DataError(f"every row of {names[1]} also stands in {names[0]}: give held-out rows")
    test = test[~seen]
    left_out, chance = 0, {}
    if calibration is not None:
        calibration = as_frame(calibration).drop(columns=target, errors="ignore")
        _check_columns(calibration.columns, expected, "the calibration table")
        chance[CALIBRATION] = shared_by_chance(known(test), known(calibration), CALIBRATION, "test rows")
        given = len(calibration)
        calibration = _not_in_train(calibration, stands_in(known(calibration), known(train)), names[0])
        left_out = given - len(calibration)
    if validation is not None:
        validation = _labelled(as_frame(validation), target, "validation")[0]
        _check_columns(validation.columns.drop(target, errors="ignore"), expected, "the validation table")
        chance["validation"] = shared_by_chance(known(test), known(validation), "validation", "test rows")
    outcomes: list[Evaluation] = []
    for seed in tracked(seeds, "evaluating", len(seeds), shown=progress):
        fit, held = train, validation
        if held is None:
            first, second = split_rows(labels, seed, (0.875, 0.125))
            fit, held = train.iloc[first], train.iloc[second]
        outcomes.append(
            evaluate_once(
                model,
                fit,
                held,
                test,
                target,
                seed=seed,
                predictors=chosen,
                column_types=column_types,
            )
        )
    last = outcomes[-1].arrays
    described = [("train", names[0], train), (TEST, names[1], test)]
    described += [] if calibration is None else [(CALIBRATION, CALIBRATION, calibration)]
    sets = {TEST: test[expected]} | ({} if calibration is None else {CALIBRATION: calibration})
    scores = _scores(last["model"], fit[expected], sets, seeds[-1])
    result: dict[str, Any] = {
        **provenance(),
        "settings": {**describe_model(last["model"]), "seeds": list(seeds), "predictors": chosen},
        "train": names[0],
        "test": names[1],
        "target": target,
        "classes": dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        "sets": {
            role: {"name": name, "rows": len(frame), "columns": len(expected), "sha256": table_sha256(frame)}
            for role, name, frame in described
        },
        "left_out_as_in_train": int(seen.sum()),
        "calibration_left_out_as_in_train": left_out,
        "test_rows_also_in": chance,
        "labels": {
            "unlabelled": {"train": unlabelled, "test": unlabelled_test},
            "classes_not_in_train": absent,
        },
        **over_seeds([outcome.metrics for outcome in outcomes]),
        "decisions": flagged_rates(scores, seed=seeds[-1]) if scores else {},
    }
    if skill := getattr(last["model"], "skill_", None):
        result["skill"] = [of._asdict() for of in skill]
    features, sources = test[expected], last["sources"]
    truth = check_labels(test, target, names[1])
    arrays: dict[str, Any] = {"frame": features, "labels": truth}
    rows = {"id": test.index.astype(str), "set": [TEST] * len(test), "label": truth}
    space = "raw" if last["model"] is None else "embedding"
    if last["predicted"][space]:
        predictor = lead(result["selective"][space])
        result["prediction"] = {"features": space, "predictor": predictor}
        rows["prediction"] = last["predicted"][space][predictor]
    if UNCERTAINTY in sources:
        rows["uncertainty"] = sources[UNCERTAINTY]
    arrays["rows"] = pa.table(rows | {name: of[TEST] for name, of in scores.items()})
    if UNCERTAINTY in sources:
        arrays["uncertainty"] = sources[UNCERTAINTY]
    if LIKELIHOOD in sources and hasattr(last["model"], "score_features"):
        arrays |= {"score": -sources[LIKELIHOOD], "surprise": last["model"].score_features(features)}
    return Evaluation(result, arrays)


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
) -> Evaluation:
    """Evaluate on one split, with checked tables; see ``evaluate_table``.

    Test rows whose features also stand in ``fit`` or ``validation`` are scored, too: leave them out before.

    Metrics: ``accuracy`` features → predictor → what ``class_figures`` returns (or {"not run": why});
    ``selective`` and ``calibration``: see ``selection_figures``; ``collapse`` of the test embeddings;
    ``mcnemar``, features → predictor → the test (``metrics.mcnemar``) of its answers beside those of the same
    predictor on the raw features: rows "gained" and "lost", and "p".

    Arrays: ``sources``, the uncertainty of each source (N,), higher = less sure; ``answers``, features →
    classifier → 1 − its maximum class probability, (N,); ``predicted``, the same → its classes (N,);
    ``model``, the fitted encoder, or None.
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
    dated = _dates_as(model)
    plain = [dated(table) if len(table) else table for table in tables]  # dates as the model reads them
    raw = RawFeatures(column_types).fit(plain[0])
    empty = np.zeros((0, 0), np.float32)
    # a frame where ``set_output`` asks for one
    spaces: dict[str, list[Features]] = {
        name: [np.asarray(of.transform(table)) if len(table) else empty for table in of_kind]
        for name, of, of_kind in (("raw", raw, plain), ("embedding", model, tables))
        if of is not None
    }
    if model is not None:
        spaces["raw + embedding"] = [
            np.concatenate(pair, 1) for pair in zip(spaces["raw"], spaces["embedding"], strict=True)
        ]
    ends = {name: (of[0], of[2]) for name, of in spaces.items()}
    sources = table_uncertainty(model, tables[2], ends, seed)
    accuracy: dict[str, dict[str, Any]] = {"majority class": {}}
    selective: dict[str, dict[str, Any]] = {}
    calibration: dict[str, dict[str, Any]] = {}
    uncertain: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    predicted: dict[str, dict[str, npt.NDArray[np.str_]]] = {}
    tests: dict[str, dict[str, Any]] = {}
    right: dict[str, Correct] = {}  # by predictor, on the raw features, which come first
    majority = int(np.bincount(y).argmax())
    for name in predictors:
        accuracy["majority class"][name] = class_figures(y_test, np.full(len(y_test), majority))
    for space, (x, x_val, x_test) in spaces.items():
        for of in (accuracy, selective, calibration, uncertain, predicted, tests):
            of[space] = {}
        for name in predictors:
            try:
                probabilities = PREDICTORS[name](x, y, x_val, y_val, seed)(x_test)
            except MissingExtraError:
                accuracy[space][name] = {"not run": f"install probjepa[{name.lower()}]"}
                continue
            answers = probabilities.argmax(1)
            accuracy[space][name] = class_figures(y_test, answers)
            uncertain[space][name] = 1 - probabilities.max(1)
            predicted[space][name] = classes[answers]
            found = metrics.mcnemar(right.setdefault(name, answers == y_test), answers == y_test)
            tests[space][name] = {key: figure(value) for key, value in asdict(found).items()}
            selective[space][name], calibration[space][name] = selection_figures(
                answers == y_test, {PROBABILITY: uncertain[space][name], **sources}
            )
    tests.pop("raw")
    outcome: dict[str, Any] = {
        "accuracy": accuracy, "selective": selective, "calibration": calibration, "mcnemar": tests
    }  # fmt: skip
    if model is not None:
        collapse = metrics.collapse_summary(spaces["embedding"][2])
        outcome["collapse"] = {key: figure(value) for key, value in collapse.items()}
    return Evaluation(
        outcome, {"sources": sources, "answers": uncertain, "predicted": predicted, "model": model}
    )


def _scores(
    model: Any, reference: Any, sets: Mapping[str, Any], seed: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Every label-free score of a model, by set; without the reference rows that look like theirs."""
    if model is None:
        return {}
    subject = TableSubject(model)
    read = {name: {**subject.features(of), "inputs": of} for name, of in sets.items()}
    known = subject.features(reference, scored=False)["h"]
    kept = unlike(known, (of["h"] for of in read.values()))
    if alike := int((~kept).sum()):
        without = "Scores are fitted without them" if kept.any() else "There is no other: no score is fitted"
        warn(f"training rows that have the embedding of a held-out one: {alike}. {without}")
    if not kept.any():
        return {}
    return label_free_scores(subject, {"h": known[kept], "inputs": reference[kept]}, read, seed=seed)


def class_figures(truth: Codes, answers: Codes) -> dict[str, dict[str, float | None]]:
    """Return accuracy (with its Wilson interval), balanced accuracy, macro and weighted F1 of answers (N,).

    The mean of the classes' F1 is macro F1; weighted F1 weights it by their sizes. Classes are those of truth
    and answers.
    """
    return {
        "accuracy": asdict(metrics.accuracy_interval(truth == answers)),
        "balanced accuracy": figure(balanced_accuracy(truth, answers)),
        "macro F1": figure(f1_score(truth, answers, average="macro", zero_division=0)),
        "weighted F1": figure(f1_score(truth, answers, average="weighted", zero_division=0)),
    }


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
    codes = pandas().Index(classes).get_indexer(labels).astype(np.int64)
    return np.where(codes < 0, len(classes), codes)


def _check_columns(found: Any, expected: Sequence[str], name: str) -> None:
    if said := other_columns(found, expected):
        raise DataError(
            f"{name} has other columns than the model was fitted on or the training table has ({said}): give "
            "the same"
        )
