"""The tables of an evaluation: checked, with the classes of both sides, and held out from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa._arrays import check_classes
from probjepa.errors import DataError, warn
from probjepa.evaluation.decisions import CALIBRATION, TEST
from probjepa.tabular.frames import as_frame, labels_of, named, other_columns, pandas
from probjepa.tabular.overlap import equal_rows, shared_by_chance, table_sha256

_CONTINUOUS = 100  # more distinct numbers than this are hardly classes


@dataclass(frozen=True)
class TableSets:
    """The tables of an evaluation.

    Attributes
    ----------
    target, columns
        of the classes, and of the features
    names
        what messages and reports call the training and the test table
    train, test
        the rows that have a class; those of ``test`` that also stand in ``train`` are left out
    labels
        classes (N,) of ``train``, as text
    validation, calibration
        None where they were not given; without their rows that also stand in ``train``, of calibration
    record
        of these, what metrics.json keeps
    """

    target: str
    columns: list[str]
    names: tuple[str, str]
    train: Any
    test: Any
    labels: npt.NDArray[np.str_]
    validation: Any = None
    calibration: Any = None
    record: dict[str, Any] = field(default_factory=dict)

    def held_out(self) -> dict[str, Any]:
        """Return the features of the sets that are scored, by role."""
        calibration = {} if self.calibration is None else {CALIBRATION: self.calibration[self.columns]}
        return {TEST: self.test[self.columns], **calibration}


def held_out_tables(
    model: Any,
    train: Any,
    test: Any,
    target: str,
    *,
    validation: Any,
    calibration: Any,
    names: tuple[str, str],
) -> TableSets:
    """Check tables, and leave out what two of them share; as ``evaluate_table`` says, with its errors."""
    train, unlabelled = _labelled(as_frame(train), target, names[0])
    test, unlabelled_test = _labelled(as_frame(test), target, names[1])
    labels = check_labels(train, target, names[0])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"the target column '{target}' of {names[0]} has one class, '{classes[0]}': give rows of two"
        )
    columns = list(getattr(getattr(model, "schema_", None), "columns", train.columns.drop(target)))
    asked = np.unique(check_labels(test, target, names[1])).tolist()
    absent = check_classes(asked, classes.tolist(), f"the column '{target}' of {names[1]}")
    for name, frame in zip(names, (train, test), strict=True):
        _check_columns(frame.columns.drop(target), columns, name)
    dated = dates_as(model)

    def read(frame: Any) -> Any:
        return dated(frame[columns])

    chance: dict[str, int] = {}
    seen, by_chance = equal_rows(read(test), read(train))
    if by_chance:
        chance["train"], seen = int(seen.sum()), np.zeros_like(seen)
    if seen.all():
        raise DataError(f"every row of {names[1]} also stands in {names[0]}: give held-out rows")
    test = test[~seen]
    left_out = 0
    if calibration is not None:
        calibration = as_frame(calibration).drop(columns=target, errors="ignore")
        _check_columns(calibration.columns, columns, "the calibration table")
        chance[CALIBRATION] = shared_by_chance(read(test), read(calibration), CALIBRATION, "test rows")
        of_train, by_chance = equal_rows(read(calibration), read(train))
        of_train &= not by_chance
        calibration, left_out = _not_in_train(calibration, of_train, names[0]), int(of_train.sum())
    if validation is not None:
        validation = _labelled(as_frame(validation), target, "validation")[0]
        _check_columns(validation.columns.drop(target, errors="ignore"), columns, "the validation table")
        chance["validation"] = shared_by_chance(read(test), read(validation), "validation", "test rows")
    described = {"train": (names[0], train), TEST: (names[1], test)}
    given = {CALIBRATION: calibration, "validation": validation}
    described |= {role: (role, frame) for role, frame in given.items() if frame is not None}
    record = {
        "train": names[0],
        "test": names[1],
        "target": target,
        "classes": dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        "sets": {
            role: {"name": name, "rows": len(frame), "columns": len(columns), "sha256": table_sha256(frame)}
            for role, (name, frame) in described.items()
        },
        "left_out_as_in_train": int(seen.sum()),
        "calibration_left_out_as_in_train": left_out,
        "test_rows_also_in": chance,
        "labels": {
            "unlabelled": {"train": unlabelled, "test": unlabelled_test},
            "classes_not_in_train": absent,
        },
    }
    return TableSets(target, columns, names, train, test, labels, validation, calibration, record)


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
    if column.dtype.kind == "O":  # categories and texts, or objects: 1 and 1.0 among them are one class
        codes, found = labels_of(target, column)
        numbers = all(isinstance(label, int | float) and not isinstance(label, bool) for label in found)
        whole = [abs(label) for label in found if isinstance(label, int)]
        large = len(whole) == len(found) and max(whole, default=0) >= 2**63  # would be rounded
        column = pandas().Series(np.array(found, dtype=None if numbers and not large else object)[codes])
    many = column.nunique() > _CONTINUOUS
    if column.dtype.kind == "f":
        values = column.to_numpy()
        if many or not np.isfinite(values).all() or (values % 1 != 0).any():
            raise DataError(
                f"the target column '{target}' of {name} holds continuous numbers: this evaluation is of "
                "classes, so bin it first"
            )
        column = pandas().Series([int(value) for value in values], dtype=object)  # of any size
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


def dates_as(model: Any) -> Callable[[Any], Any]:
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


def _check_columns(found: Any, expected: Sequence[str], name: str) -> None:
    if said := other_columns(found, expected):
        raise DataError(
            f"{name} has other columns than the model was fitted on or the training table has ({said}): give "
            "the same"
        )
