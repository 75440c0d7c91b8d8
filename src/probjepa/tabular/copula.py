"""The joint Gaussian of a table's cells, in closed form: what a table of few rows can teach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

from probjepa.tabular.tokens import CellDistribution, Layout, Rows, by_bins, normal_edges

_WIDEST = 512  # columns of its covariance
_LEVELS = 64  # categories of a feature that takes part
_BINS = ((3000, 16), (1000, 8), (0, 0))  # from so many rows: parts of a number
_MOST_ROWS = 20_000
_EXPECTATIONS, _SETTLED = 20, 1e-3  # at most so many; until the covariance moves by less, of its norm
_LEAST = 1e-3  # of a category's probability
_LEAST_SHRUNK = 1e-4  # towards the identity, so that no column is another exactly
_AT_ONCE = 2_000_000  # numbers
_PARTS = 10  # of the rows, out of which each is predicted in turn


class Copula(nn.Module):
    """Gaussian copula of a table: numbers after their transform, and a 0/1 column for each category.

    One covariance, shrunk (Ledoit and Wolf 2004), with missing cells by expectation-maximisation, 20 steps at
    most. The cells that are hidden have their conditional distribution given the others. With ``n_bins``,
    numbers stand there with their parts in so many bins too (``by_bins``), so that a cell is predicted by a
    sum of bent lines of the others, an additive model. Features of more than 64 categories take no part, and
    are predicted as uniform.
    """

    def __init__(self, layout: Layout, n_bins: int = 0) -> None:
        super().__init__()
        self.layout = layout
        self.levels = [n if n <= _LEVELS else 0 for n in layout.cardinalities]
        self.n_bins = n_bins
        self.register_buffer("edges", normal_edges(self.n_bins).double(), persistent=False)
        self.edges: Tensor
        width = _width(layout, n_bins)
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(width, dtype=torch.float64))
        self.mean: Tensor
        self.precision: Tensor

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        sound = self.mean.isfinite().all() and not torch.linalg.cholesky_ex(self.precision).info
        if not (sound and self.precision.isfinite().all()):
            errors: list[str] = args[-1]
            errors.append("precision of the copula is not positive definite")

    def fit(self, rows: Rows) -> None:
        """Fit to rows, of which the first 20,000 are read."""
        rows = rows.at(slice(_MOST_ROWS))
        if len(rows) < 2 or not len(self.mean):  # of one row there is no variance
            self.mean.zero_()
            self.precision.copy_(torch.eye(len(self.mean)))
            return
        x, seen = self._columns(rows, self._known(rows))
        count = seen.sum(0).clamp(min=1)
        mean = (x * seen).sum(0) / count
        scale = ((x - mean).square() * seen).sum(0).div(count).sqrt().clamp(min=1e-3)
        x = torch.where(seen, (x - mean) / scale, 0.0)
        extra = torch.zeros_like(self.precision)
        filled, centre = x, torch.zeros_like(mean)
        before, step = extra, math.inf
        for turn in range(_EXPECTATIONS + 1):
            centre = filled.mean(0)
            centred = filled - centre
            second = centred.T @ centred / len(x)
            weight = max(ledoit_wolf_shrinkage(centred.cpu().numpy()), _LEAST_SHRUNK)
            second = second + extra
            covariance = (1 - weight) * second
            covariance.diagonal().add_(weight * second.diagonal().mean().clamp(min=1e-3))
            moved = float((covariance - before).norm() / covariance.norm())
            # where columns all but determine each other, the steps of rare categories grow again
            if bool(seen.all()) or moved < _SETTLED or moved > step or turn == _EXPECTATIONS:
                break
            before, step = covariance, moved if turn else math.inf
            filled, extra = x.clone(), torch.zeros_like(covariance)
            for of in _given(x, seen, centre, _inverse(covariance)):
                filled[of.at] = of.mean
                each = of.left * (of.pattern.bincount(minlength=len(of.left)) / len(x))[:, None, None]
                flat = of.columns.unsqueeze(2) * len(extra) + of.columns.unsqueeze(1)
                extra.view(-1).index_add_(0, flat.flatten(), each.flatten())
        self.mean.copy_(mean + scale * centre)
        self.precision.copy_(_inverse(covariance * scale * scale[:, None]))

    def predict(self, rows: Rows, hidden: Tensor) -> CellDistribution:
        """p(cells | the cells that are not hidden), read at the hidden cells (B, D)."""
        x, seen = self._columns(rows, self._known(rows) & ~hidden)
        mean, variance = self._conditional(x, seen)
        n = len(self.layout.numeric)
        logits = []
        parts = torch.split(mean[:, n * (1 + self.n_bins) :], self.levels, 1)
        for size, part in zip(self.layout.cardinalities, parts, strict=True):
            p = part.clamp(min=_LEAST) if part.shape[1] else part.new_ones(len(part), size)
            p = torch.cat([p.new_full((len(p), 1), _LEAST), p], 1)
            logits.append((p / p.sum(1, keepdim=True)).log().float())
        return CellDistribution(mean[:, :n].float(), variance[:, :n].clamp(min=1e-6).float(), logits)

    def out_of_fold(
        self, rows: Rows, look: Callable[[Tensor], Sequence[CellDistribution]]
    ) -> list[CellDistribution]:
        """Return what ``look`` sees of rows by their index, each seen by a fit to nine tenths of the others.

        The fit that is left is that to all rows.
        """
        part = torch.arange(len(rows), device=rows.numeric.device) % min(_PARTS, len(rows))
        found = []
        for k in range(int(part.max()) + 1):
            self.fit(rows.at(part != k))
            found.append(look((part == k).nonzero()[:, 0]))
        self.fit(rows)
        order = part.argsort(stable=True).argsort()
        return [CellDistribution.joined(of).at(order) for of in zip(*found, strict=True)]

    def _conditional(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, P) of the columns that are not ``seen``, given those that are."""
        mean, variance = torch.where(seen, x, self.mean), torch.zeros_like(x)
        for of in _given(x, seen, self.mean, self.precision):
            mean[of.at] = of.mean
            variance[of.at] = of.left.diagonal(dim1=1, dim2=2)[of.pattern]
        return mean, variance

    def _columns(self, rows: Rows, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, P), and which of them are there; ``observed`` (B, D) in the table's order."""
        numeric = observed[:, list(self.layout.numeric)]
        values, there = [torch.where(numeric, rows.numeric, 0.0).double()], [numeric]
        if self.n_bins:
            values.append(by_bins(values[0], self.edges).flatten(1))
            there.append(numeric.repeat_interleave(self.n_bins, 1))
        for k, (i, size) in enumerate(zip(self.layout.categorical, self.levels, strict=True)):
            code = (rows.codes[:, k] - 2).clamp(0, max(size, 1) - 1)  # size 0: takes no part
            values.append(F.one_hot(code, max(size, 1))[:, :size].double())
            there.append(observed[:, i : i + 1].expand(-1, size))
        seen = torch.cat(there, 1)
        return torch.cat(values, 1).masked_fill(~seen, 0.0), seen

    def _known(self, rows: Rows) -> Tensor:
        """Which cells (B, D) have a value that the fit knows."""
        order = self.layout.order().to(rows.codes.device)
        small = [n > 0 for n in self.levels]
        known = (rows.codes > 1) & torch.tensor(small, dtype=torch.bool, device=rows.codes.device)
        return torch.cat([~rows.missing, known], 1)[:, order]


def _width(layout: Layout, n_bins: int) -> int:
    return len(layout.numeric) * (1 + n_bins) + sum(n for n in layout.cardinalities if n <= _LEVELS)


def bins_for(layout: Layout, n_rows: int) -> int | None:
    """Return how many bins suit a table; None if it is too wide for any copula."""
    fit = [bins for least, bins in _BINS if n_rows >= least and _width(layout, bins) <= _WIDEST]
    return fit[0] if fit else None


def _distinct(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (U, P) of a mask (B, P), and which of them each row is, (B,)."""
    packed = np.packbits(seen.cpu().numpy(), axis=1)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return seen[torch.from_numpy(first)], torch.from_numpy(group.reshape(-1)).to(seen.device)


class _Hidden(NamedTuple):
    """R rows of which h columns are hidden, in U patterns.

    ``at``: their rows (R, 1) and columns (R, h); ``mean`` (R, h) of these, given the others; ``pattern`` (R,)
    of each row; ``columns`` (U, h) and the covariance that is ``left``, (U, h, h), of each pattern.
    """

    at: tuple[Tensor, Tensor]
    mean: Tensor
    pattern: Tensor
    columns: Tensor
    left: Tensor


def _given(x: Tensor, seen: Tensor, mean: Tensor, precision: Tensor) -> Iterator[_Hidden]:
    """Yield the distribution of the columns of x (B, P) that are not ``seen``, given those that are.

    Of hidden columns h with precision Λ they are μ − Λₕₕ⁻¹ Λₕₛ (xₛ − μₛ) and Λₕₕ⁻¹: few columns are hidden at
    a time, and there may be as many patterns of them as rows, so that many patterns are solved together.
    """
    pull = torch.where(seen, x - mean, 0.0) @ precision
    patterns, group = _distinct(seen)
    counts = (~patterns).sum(1)
    for h in sorted({*counts.tolist()} - {0}):
        for of in torch.split((counts == h).nonzero()[:, 0], max(1, _AT_ONCE // h**2)):
            columns = (~patterns[of]).nonzero()[:, 1].reshape(len(of), h)
            left = _inverse(precision[columns.unsqueeze(2), columns.unsqueeze(1)])
            place = torch.full((len(patterns),), -1, device=x.device)
            place[of] = torch.arange(len(of), device=x.device)
            for rows in torch.split((place[group] >= 0).nonzero()[:, 0], max(1, _AT_ONCE // h**2)):
                own = place[group[rows]]
                at = rows.unsqueeze(1), columns[own]
                said = mean[at[1]] - (left[own] @ pull[at].unsqueeze(2)).squeeze(2)
                yield _Hidden(at, said, own, columns, left)


def _inverse(positive: Tensor) -> Tensor:
    """The inverse of positive definite matrices (…, P, P)."""
    return torch.cholesky_inverse(torch.linalg.cholesky(positive))
