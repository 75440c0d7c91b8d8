"""What a table's embeddings and uncertainty are worth to a classifier, beside raw features.

Nothing is fitted on a row that is scored: the encoder and the predictors see the training rows alone, and
``evaluate_table`` leaves out a test row whose features also stand in the training table. ``evaluate_once``
takes a split as it is, as published tables do: see ``tabular.overlap.equal_rows`` for such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import f1_score

from probjepa import metrics
from probjepa.data.overlap import unlike
from probjepa.errors import ConfigError, MissingExtraError, unknown_name, warn
from probjepa.evaluation.decisions import TEST, flagged_rates
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
from probjepa.evaluation.table_sets import TableSets, check_labels, dates_as, held_out_tables
from probjepa.scores.sets import TableSubject
from probjepa.tabular.frames import pandas
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.splits import split_rows
from probjepa.terminal import tracked


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
        and counted, as rows without a class are. In tables of few values chance puts them there, and they
        stay: see ``equal_rows``
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
    sets = held_out_tables(
        model, train, test, target, validation=validation, calibration=calibration, names=names
    )
    outcomes: list[Evaluation] = []
    for seed in tracked(seeds, "evaluating", len(seeds), shown=progress):
        fit, held = sets.train, sets.validation
        if held is None:
            first, second = split_rows(sets.labels, seed, (0.875, 0.125))
            fit, held = sets.train.iloc[first], sets.train.iloc[second]
        of_seed: dict[str, Any] = {"seed": seed, "predictors": chosen, "column_types": column_types}
        outcomes.append(evaluate_once(model, fit, held, sets.test, target, **of_seed))
    last = outcomes[-1].arrays
    scores = _scores(last["model"], fit[sets.columns], sets.held_out(), seeds[-1])
    result: dict[str, Any] = {
        **provenance(),
        "settings": {**describe_model(last["model"]), "seeds": list(seeds), "predictors": chosen},
        **sets.record,
        **over_seeds([outcome.metrics for outcome in outcomes]),
        "decisions": flagged_rates(scores, seed=seeds[-1]) if scores else {},
    }
    if skill := getattr(last["model"], "skill_", None):
        result["skill"] = [of._asdict() for of in skill]
    space = "raw" if last["model"] is None else "embedding"
    predicted = {}
    if last["predicted"][space]:
        predictor = lead(result["selective"][space])
        result["prediction"] = {"features": space, "predictor": predictor}
        predicted["prediction"] = last["predicted"][space][predictor]
    return Evaluation(result, _arrays(sets, last, predicted, scores))


def _arrays(
    sets: TableSets, last: Mapping[str, Any], predicted: Mapping[str, Any], scores: Mapping[str, Any]
) -> dict[str, Any]:
    """What a report draws of the last seed, see ``Evaluation``; "rows" has what is ``predicted``, too."""
    test, sources, model = sets.test, last["sources"], last["model"]
    truth = check_labels(test, sets.target, sets.names[1])
    of_model = {"uncertainty": sources[UNCERTAINTY]} if UNCERTAINTY in sources else {}
    rows = {"id": test.index.astype(str), "set": [TEST] * len(test), "label": truth, **predicted, **of_model}
    arrays = {
        "frame": test[sets.columns],
        "labels": truth,
        "rows": pa.table(rows | {name: of[TEST] for name, of in scores.items()}),
        **of_model,
    }
    if LIKELIHOOD in sources and hasattr(model, "score_features"):
        arrays |= {"score": -sources[LIKELIHOOD], "surprise": model.score_features(arrays["frame"])}
    return arrays


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
    dated = dates_as(model)
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
    sources = table_uncertainty(model, tables[2], {name: (of[0], of[2]) for name, of in spaces.items()}, seed)
    most = np.full(len(y_test), int(np.bincount(y).argmax()))
    answered: dict[str, dict[str, _Answers]] = {name: {} for name in spaces}
    accuracy: dict[str, dict[str, Any]] = {
        "majority class": {name: class_figures(y_test, most) for name in predictors}
    }
    for space, (x, x_val, x_test) in spaces.items():
        accuracy[space] = {}
        for name in predictors:
            try:
                probabilities = PREDICTORS[name](x, y, x_val, y_val, seed)(x_test)
            except MissingExtraError:
                accuracy[space][name] = {"not run": f"install probjepa[{name.lower()}]"}
                continue
            codes, doubt = probabilities.argmax(1), 1 - probabilities.max(1)
            accuracy[space][name] = class_figures(y_test, codes)
            figures = selection_figures(codes == y_test, {PROBABILITY: doubt, **sources})
            answered[space][name] = _Answers(classes[codes], codes == y_test, doubt, *figures)
    outcome: dict[str, Any] = {
        "accuracy": accuracy,
        "selective": _by_space(answered, lambda of: of.selective),
        "calibration": _by_space(answered, lambda of: of.calibration),
        "mcnemar": {
            space: {name: _mcnemar(answered["raw"][name].right, own.right) for name, own in of.items()}
            for space, of in answered.items()
            if space != "raw"
        },
    }
    if model is not None:
        collapse = metrics.collapse_summary(spaces["embedding"][2])
        outcome["collapse"] = {key: figure(value) for key, value in collapse.items()}
    arrays = {
        "sources": sources,
        "answers": _by_space(answered, lambda of: of.doubt),
        "predicted": _by_space(answered, lambda of: of.labels),
        "model": model,
    }
    return Evaluation(outcome, arrays)


class _Answers(NamedTuple):
    """What one classifier answered to N test rows, on one space of features."""

    labels: npt.NDArray[np.str_]
    right: Correct
    doubt: npt.NDArray[np.float64]  # 1 − the probability of the answer
    selective: dict[str, Any]
    calibration: dict[str, Any]


def _by_space(
    answered: Mapping[str, Mapping[str, _Answers]], pick: Callable[[_Answers], Any]
) -> dict[str, dict[str, Any]]:
    return {space: {name: pick(own) for name, own in of.items()} for space, of in answered.items()}


def _mcnemar(right_on_raw: Correct, right: Correct) -> dict[str, Any]:
    return {key: figure(value) for key, value in asdict(metrics.mcnemar(right_on_raw, right)).items()}


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
