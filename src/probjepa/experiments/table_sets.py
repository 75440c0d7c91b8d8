"""The tables of the Var-T-JEPA study by name, split and with known ambiguity where they have one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError, unknown_name
from probjepa.tabular.downstream import split_rows
from probjepa.tabular.files import read_table, table_sha256
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.simulated import LABEL, blended_digits, simulate


@dataclass(frozen=True)
class Source:
    """A table under the data root, or one that is drawn or that scikit-learn ships (``file`` is "").

    ``preset`` is that of the published settings.
    """

    title: str
    preset: str
    file: str = ""
    target: str = LABEL
    drop: tuple[str, ...] = ()
    missing: str = ""
    categorical: tuple[str, ...] = ()

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Types that the columns' values do not say."""
        kind: Literal["categorical"] = "categorical"
        return dict.fromkeys(self.categorical, kind)


SOURCES: Mapping[str, Source] = {
    "adult": Source("Adult", "adult", "adult.parquet", "income", missing="?"),
    "electricity": Source("Electricity", "electricity", "electricity.parquet", "class"),
    "credit": Source(
        "Credit", "credit", "credit_default.parquet", "Y", ("ID",),
        categorical=("X2", "X3", "X4", *(f"X{i}" for i in range(6, 12))),
    ),
    "sim": Source("SIM", "small"),
    "digits": Source("digits, blended", "mnist"),
    "wine": Source("wine", "small"),
    "breast-cancer": Source("breast cancer", "small"),
}  # fmt: skip


@dataclass(frozen=True)
class TableSet:
    """A table split 70/10/20 %: DataFrames with the target; the test rows' ambiguity where it is known."""

    train: Any
    validation: Any
    test: Any
    target: str
    column_types: Mapping[str, ColumnType] = field(default_factory=dict)
    ambiguity: npt.NDArray[np.float64] | None = None

    @property
    def fingerprint(self) -> str:
        """Of all cells of the three parts."""
        return "".join(table_sha256(part)[:8] for part in (self.train, self.validation, self.test))


def missing(name: str, data_root: Path | None) -> str | None:
    """Return why a table cannot be opened, or None; ConfigError for an unknown name."""
    if name not in SOURCES:
        raise unknown_name("table", name, SOURCES)
    file = SOURCES[name].file
    if not file:
        return None
    if data_root is None:
        return f"no --data-root, which holds tabular/{file}"
    path = data_root / "tabular" / file
    return None if path.is_file() else f"no {path}"


def open_table_set(name: str, data_root: Path | None, seed: int, train_rows: int | None = None) -> TableSet:
    """Open a table and split it by a seed; of the training rows, keep ``train_rows`` where there are more.

    The validation rows are then cut down to a seventh of that; the test rows stay, all of them.

    Raises
    ------
    DataError
        where a file is not there, or lacks its target
    """
    reason = missing(name, data_root)
    source = SOURCES[name]
    if reason:
        raise DataError(f"{source.title}: {reason}: put it there, or pass another --data-root")
    if name == "digits":
        first, second, third = blended_digits(seed)
        train, validation = _cut(train_rows, first.table, second.table)
        return TableSet(train, validation, third.table, LABEL, {}, third.ambiguity)
    ambiguity = None
    if name == "sim":
        drawn = simulate(seed=seed)
        frame, ambiguity = drawn.table, drawn.ambiguity
    elif source.file:
        assert data_root is not None
        frame = read_table(data_root / "tabular" / source.file).drop(
            columns=list(source.drop), errors="ignore"
        )
        if source.target not in frame.columns:
            raise DataError(
                f"{data_root / 'tabular' / source.file} has no column '{source.target}': restore it"
            )
        if source.missing:
            frame = frame.replace(source.missing, None)
    else:
        from sklearn import datasets

        load = {"wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}[name]
        frame = load(as_frame=True).frame.rename(columns={"target": LABEL})
    parts = split_rows(frame[source.target].to_numpy(), seed)
    train, validation, test = (frame.iloc[part].reset_index(drop=True) for part in parts)
    train, validation = _cut(train_rows, train, validation)
    known = None if ambiguity is None else ambiguity[parts[2]]
    return TableSet(train, validation, test, source.target, source.column_types, known)


def _cut(train_rows: int | None, train: Any, validation: Any) -> tuple[Any, Any]:
    if train_rows is None:
        return train, validation
    return train.iloc[:train_rows], validation.iloc[: math.ceil(train_rows / 7)]  # they are in random order
