"""Tables of numbers with known anomalies: ADBench's, and two that are drawn; and how they are split."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError
from probjepa.files import array_reason
from probjepa_experiments.study import Data, Source

_Array = npt.NDArray[np.float64]
Setting = Literal["normal", "contaminated"]
TEST_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class AnomalyTable(Data):
    """Numbers (N, D), which rows are anomalies (N,), and how many rows a fit may have (None: all)."""

    numbers: _Array
    anomalies: npt.NDArray[np.bool_]
    rows: int | None = None

    def split(self, setting: Setting, seed: int) -> tuple[_Array, _Array, npt.NDArray[np.bool_]]:
        """Return rows of the fit, test rows, and which of those are anomalies.

        "normal": a random half of the normal rows is fitted; the rest and all anomalies are the test.
        "contaminated": 70 % of the rows, each class its share, are fitted without labels; 30 % are the test.
        Where there are too many, rows of the fit are taken at random; of more than 10,000 test rows, all
        anomalies (half of those rows at most) and normal ones at random.
        """
        random = np.random.default_rng([seed, setting == "normal"])
        normal, odd = (random.permutation(np.flatnonzero(of)) for of in (~self.anomalies, self.anomalies))
        if setting == "normal":
            fitted = normal[: len(normal) // 2]
            normal = normal[len(fitted) :]
        else:
            ends = round(0.7 * len(normal)), round(0.7 * len(odd))
            fitted = random.permutation(np.concatenate([normal[: ends[0]], odd[: ends[1]]]))
            normal, odd = normal[ends[0] :], odd[ends[1] :]
        odd = odd[: max(TEST_ROWS // 2, TEST_ROWS - len(normal))]
        test = np.concatenate([normal[: TEST_ROWS - len(odd)], odd])
        return self.numbers[fitted[: self.rows]], self.numbers[test], self.anomalies[test]


@dataclass(frozen=True)
class AnomalySource(Source):
    """A table of ADBench's, an npz of X (N, D) and y (N,), 1 of anomalies; or one that is drawn."""

    def read(self, data_root: Path, rows: int | None, seed: int) -> AnomalyTable:
        """Open it.

        Raises
        ------
        DataError
            where a file cannot be read, or is not of that form
        """
        if not self.files:
            return _table(*DRAWN[self.title], rows)
        path = data_root / self.files[0]
        try:
            with np.load(path) as saved:
                numbers, labels = saved["X"].astype(np.float64), saved["y"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({array_reason(error)}): restore it") from error
        if numbers.ndim != 2 or labels.shape != numbers.shape[:1] or not set(np.unique(labels)) == {0, 1}:
            raise DataError(f"{path} is no table: expected X (N, D), and y (N,) of 0 and 1")
        return _table(numbers, labels == 1, rows)


def _table(numbers: _Array, anomalies: npt.NDArray[np.bool_], rows: int | None) -> AnomalyTable:
    mark = hashlib.sha256(numbers.tobytes() + anomalies.tobytes()).hexdigest()[:16]
    return AnomalyTable(fingerprint=mark, numbers=numbers, anomalies=anomalies, rows=rows)


def _drawn(*, related: bool) -> tuple[_Array, npt.NDArray[np.bool_]]:
    """Return 600 rows of six columns, two of which follow from others, and 60 anomalies.

    ``related``: of anomalies the relation is broken, and each cell is usual; else one cell is far out.
    """
    random = np.random.default_rng(0)
    free = random.normal(size=(660, 4))
    follow = np.stack([free[:, 0] + free[:, 1], free[:, 2] * 1.5], 1) + 0.1 * random.normal(size=(660, 2))
    odd = np.arange(660) >= 600
    if related:
        follow[odd] = random.permutation(follow[~odd])[:60]
    else:
        free[odd, 3] += 6
    return np.concatenate([free, follow], 1), odd


DRAWN = {
    "drawn, a relation broken": _drawn(related=True),
    "drawn, a cell far out": _drawn(related=False),
}
_NAMES = (
    "2_annthyroid", "4_breastw", "6_cardio", "8_celeba", "10_cover", "12_fault", "14_glass", "16_http",
    "18_Ionosphere", "20_letter", "22_magic.gamma", "24_mnist", "26_optdigits", "28_pendigits",
    "30_satellite", "32_shuttle", "34_smtp", "38_thyroid", "40_vowels", "42_WBC", "44_Wilt", "46_WPBC",
)  # fmt: skip
ADBENCH = tuple(name.partition("_")[2] for name in _NAMES)
SOURCES: Mapping[str, AnomalySource] = {
    **{title: AnomalySource(title) for title in DRAWN},
    **{
        name: AnomalySource(name, (f"adbench/{file}.npz",))
        for name, file in zip(ADBENCH, _NAMES, strict=True)
    },
}
