"""The tables of the Var-T-JEPA study by name, split and with known ambiguity where they have one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError
from probjepa.tabular.files import read_table
from probjepa.tabular.overlap import table_sha256
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.splits import split_rows
from probjepa_experiments.simulated_tables import LABEL, blended_digits, simulate
from probjepa_experiments.study import Data, Source

_Ambiguity = npt.NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class TableSet(Data):
    """A table split 70/10/20 %: DataFrames with the target; the test rows' ambiguity where it is known."""

    train: Any
    validation: Any
    test: Any
    target: str
    column_types: Mapping[str, ColumnType] = field(default_factory=dict)
    ambiguity: _Ambiguity = None


@dataclass(frozen=True)
class TableSource(Source):
    """A table under the data root, or one that is drawn or that scikit-learn ships (without ``files``).

    Attributes
    ----------
    preset
        of the published settings
    target, drop
        the column of the classes, and those that are left out
    missing_text
        what stands where a cell is missing
    categorical
        columns whose type their values do not say
    text
        how a text file is written; see ``read_table``
    blended
        whether they are pixels of digits, of which each row blends two; without ``files``, scikit-learn's
    """

    preset: str = "small"
    target: str = LABEL
    drop: tuple[str, ...] = ()
    missing_text: str = ""
    categorical: tuple[str, ...] = ()
    text: Mapping[str, Any] = field(default_factory=dict)
    blended: bool = False

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Types that the columns' values do not say."""
        kind: Literal["categorical"] = "categorical"
        return dict.fromkeys(self.categorical, kind)

    def read(self, data_root: Path, rows: int | None, seed: int) -> TableSet:
        """Open it and split it by a seed; of the training rows, keep ``rows`` where there are more.

        The validation rows are then cut down to a seventh of that; the test rows stay, all of them.

        Raises
        ------
        DataError
            where a file cannot be read, or lacks its target
        """
        if self.blended:
            pixels = self._file(data_root) if self.files else None
            labels = None if pixels is None else pixels.pop(self.target)
            first, second, third = blended_digits(seed, pixels, labels)
            return self._cut(rows, first.table, second.table, third.table, third.ambiguity)
        frame, ambiguity = self._frame(data_root, seed)
        places = split_rows(frame[self.target].to_numpy(), seed)
        train, validation, test = (frame.iloc[place].reset_index(drop=True) for place in places)
        return self._cut(rows, train, validation, test, None if ambiguity is None else ambiguity[places[2]])

    def _frame(self, data_root: Path, seed: int) -> tuple[Any, _Ambiguity]:
        if self is SOURCES["sim"]:
            drawn = simulate(seed=seed)
            return drawn.table, drawn.ambiguity
        if not self.files:
            from sklearn import datasets

            load = {"wine": datasets.load_wine, "breast cancer": datasets.load_breast_cancer}[self.title]
            return load(as_frame=True).frame.rename(columns={"target": LABEL}), None
        return self._file(data_root), None

    def _file(self, data_root: Path) -> Any:
        path = data_root / self.files[0]
        frame = read_table(path, **self.text).drop(columns=list(self.drop), errors="ignore")
        if self.target not in frame.columns:
            raise DataError(f"{path} has no column '{self.target}': restore it")
        return frame.replace(self.missing_text, None) if self.missing_text else frame

    def _cut(
        self, rows: int | None, train: Any, validation: Any, test: Any, ambiguity: _Ambiguity
    ) -> TableSet:
        if rows is not None:  # they are in random order
            train, validation = train.iloc[:rows], validation.iloc[: math.ceil(rows / 7)]
        mark = "".join(table_sha256(part)[:8] for part in (train, validation, test))
        return TableSet(
            fingerprint=mark, train=train, validation=validation, test=test, target=self.target,
            column_types=self.column_types, ambiguity=ambiguity,
        )  # fmt: skip


def _file(name: str) -> tuple[str, ...]:
    return (f"tabular/{name}.parquet",)


SOURCES: Mapping[str, TableSource] = {
    "adult": TableSource("Adult", _file("adult"), "adult", "income", missing_text="?"),
    "electricity": TableSource("Electricity", _file("electricity"), "electricity", "class"),
    "credit": TableSource(
        "Credit", _file("credit_default"), "credit", "Y", ("ID",),
        categorical=("X2", "X3", "X4", *(f"X{i}" for i in range(6, 12))),
    ),
    # UCI's bank-full.csv as it is
    "bank": TableSource("Bank", ("tabular/bank-full.csv",), "bank", "y", text={"sep": ";"}),
    "covertype": TableSource("Covertype", _file("covertype"), "covertype", "Cover_Type"),
    "sim": TableSource("SIM"),
    # 784 pixels and "label"
    "mnist": TableSource("MNIST, blended", _file("mnist"), "mnist", blended=True),
    "digits": TableSource("digits, blended", preset="mnist", blended=True),
    "wine": TableSource("wine"),
    "breast-cancer": TableSource("breast cancer"),
}  # fmt: skip
