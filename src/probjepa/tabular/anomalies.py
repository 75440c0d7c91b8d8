"""Surprise of cells on one scale for all columns, and a row's score from it: which are odd, and where."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from probjepa.errors import ConfigError, ProbjepaWarning
from probjepa.tabular.frames import named
from probjepa.typed import checked

Reduction = Literal["mean", "max", "top-k"]

_FEWEST_CELLS = 50  # held out, of a column
_TOP = 3
_LEAST = 0.1  # nats: no column's deviation is taken to be less

_Array = npt.NDArray[np.float64]


class Cells(NamedTuple):
    """Of N rows: ``surprise`` −log p (N, D), NaN where missing, and what was ``expected`` of it, (N, D)."""

    surprise: _Array
    expected: _Array


class Typical(NamedTuple):
    """What is usual of each feature's surprise, beyond what was expected: ``mean`` and ``deviation``, (D,).

    ``held_out`` says which features were measured on held-out cells. Where there are fewer than 50 of those,
    it was on cells of the fit's rows, which surprise less.
    """

    mean: list[float]
    deviation: list[float]
    held_out: list[bool]

    @classmethod
    def of(cls, held_out: Cells | None, fit: Cells) -> Self:
        """Measure it on held-out rows, or, where these are too few, on rows of the fit."""
        found: list[tuple[float, float, bool]] = []
        for i, beyond in enumerate((fit.surprise - fit.expected).T):
            seen = beyond[~np.isnan(beyond)]
            other = seen[:0] if held_out is None else (held_out.surprise - held_out.expected)[:, i]
            other = other[~np.isnan(other)]
            enough = len(other) >= _FEWEST_CELLS
            cells = other if enough else seen
            if len(cells):
                found.append((float(cells.mean()), max(float(cells.std()), _LEAST), enough))
            else:
                found.append((0.0, 1.0, enough))  # an empty column
        return cls(*([of[k] for of in found] for k in range(3)))  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, saved: Any, width: int) -> Self:
        """Return it from what ``_asdict`` gave, of so many features."""
        mean, deviation = (checked("typical", saved[name], list[float]) for name in ("mean", "deviation"))
        typical = cls(mean, deviation, checked("typical", saved["held_out"], list[bool]))
        if any(len(of) != width for of in typical):
            raise ValueError(f"typical is not of {width} features")
        return typical

    def standardized(self, cells: Cells) -> _Array:
        """Return (surprise − expected − mean)/deviation of each cell (N, D), NaN where it is missing."""
        beyond = cells.surprise - cells.expected - np.array(self.mean)
        standardized: _Array = beyond / np.array(self.deviation)
        return standardized

    def warn(self, features: Sequence[str]) -> None:
        """Say of which features there were too few held-out cells."""
        few = [name for name, enough in zip(features, self.held_out, strict=True) if not enough]
        if few:
            warnings.warn(
                f"{len(few)} of {len(features)} columns ({named(few)}) had fewer than {_FEWEST_CELLS} "
                "held-out cells: their surprise is standardised by that of the rows of the fit, which is "
                "less than a new row's; fit to more rows, or use reduction='mean'",
                ProbjepaWarning,
                stacklevel=4,
            )


def row_scores(cells: Cells, typical: Typical | None, reduction: Reduction = "mean") -> _Array:
    """Return how typical rows are (N,), from their cells; ``typical`` is needed for all but "mean".

    "mean": the mean log p; a missing cell has what was expected. "max", "top-k": −the largest, or −the mean
    of the 3 largest standardised surprises; a missing cell's is 0, the mean.
    """
    if reduction not in ("mean", "max", "top-k"):
        raise ConfigError(f"reduction is {reduction!r}: use 'mean', 'max' or 'top-k'")
    oddness: _Array
    if reduction == "mean":
        oddness = np.where(np.isnan(cells.surprise), cells.expected, cells.surprise)
    else:
        assert typical is not None
        in_order = np.sort(np.nan_to_num(typical.standardized(cells), nan=0.0), 1)
        oddness = in_order[:, -(1 if reduction == "max" else _TOP) :]
    scores: _Array = -oddness.mean(1)
    return scores
