"""Surprise of cells on one scale for all columns, and a row's score from it: which are odd, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa.errors import warn
from probjepa.tabular.frames import named
from probjepa.tabular.tokens import CellDistribution, Rows
from probjepa.tabular.var_network import VarTJEPANetwork
from probjepa.typed import checked

Reduction = Literal["mean", "max", "top-k", "explained"]

_FEWEST_CELLS = 50  # held out, of a column
_TOP = 3  # cells of a row
_LEAST = 0.1  # nats: no column's deviation is taken to be less

_Array = npt.NDArray[np.float64]


class Cells(NamedTuple):
    """Of N rows: ``surprise`` −log p (N, D), NaN where missing, and what was ``expected`` of it, (N, D)."""

    surprise: _Array
    expected: _Array

    @property
    def filled(self) -> _Array:
        """The surprise, and what was expected in the place of missing cells."""
        return np.where(np.isnan(self.surprise), self.expected, self.surprise)


def judged(network: VarTJEPANetwork, rows: Rows, folds: int, hidden: Tensor | None = None) -> Cells:
    """Return how surprising cells are, given those of the other groups that are not ``hidden`` (N, D)."""
    with torch.no_grad():
        return looked_up(network, network.predict_each(rows, folds, hidden), rows)


def looked_up(network: VarTJEPANetwork, cells: CellDistribution, rows: Rows) -> Cells:
    """Return how surprising the cells of rows (N, …) are under their predicted distributions."""
    with torch.no_grad():
        surprise = network.target_decoder.surprise(cells, rows)
        surprise = surprise.masked_fill(~network.tokenizer.observed(rows), torch.nan)
        expected = network.target_decoder.entropy(cells)
    return Cells(*(part.double().cpu().numpy() for part in (surprise, expected)))


def blame(network: VarTJEPANetwork, rows: Rows, folds: int, cells: Cells) -> _Array:
    """Return how much each cell spoils its row (N, D), in nats, NaN where it is missing.

    Its surprise beyond what was expected, and, of a row's three cells with the most, by how much the row's
    other cells surprise less once it is hidden from them: a wrong cell makes right ones look odd.
    """
    found = cells.surprise - cells.expected
    every = np.arange(len(found))
    for at in np.argsort(-np.nan_to_num(found, nan=-np.inf), 1, kind="stable")[:, :_TOP].T:
        hidden = np.zeros(found.shape, dtype=bool)
        hidden[every, at] = True
        on_device = torch.from_numpy(hidden).to(rows.codes.device)
        gain = cells.filled - judged(network, rows, folds, on_device).filled
        found[every, at] += np.where(hidden, 0.0, gain).sum(1)
    return found


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
            warn(
                f"{len(few)} of {len(features)} columns ({named(few)}) had fewer than {_FEWEST_CELLS} "
                "held-out cells: their surprise is standardised by that of the rows of the fit, which is "
                "less than a new row's; fit to more rows, or use reduction='mean'"
            )


def row_scores(cells: Cells, by: Typical | _Array | None = None, reduction: Reduction = "mean") -> _Array:
    """Return how typical rows are (N,), from their cells.

    "mean": the mean log p; a missing cell has what was expected. "max", "top-k": −the largest, or −the mean
    of the 3 largest standardised surprises, ``by`` what is typical; a missing cell's is 0, the mean.
    "explained": the mean log p, less the largest ``blame`` a cell of the row, which is ``by``.
    """
    if reduction in ("max", "top-k"):
        assert isinstance(by, Typical)
        in_order = np.sort(np.nan_to_num(by.standardized(cells), nan=0.0), 1)
        odd: _Array = in_order[:, -(1 if reduction == "max" else _TOP) :].mean(1)
        return -odd
    odd = cells.filled.mean(1)
    if reduction == "explained":
        assert isinstance(by, np.ndarray)
        odd += np.nan_to_num(by, nan=0.0).max(1) / by.shape[1]
    return -odd
