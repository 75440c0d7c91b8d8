"""Near-duplicates among embeddings: groups within a set, and twins in another, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from probjepa._arrays import ArrayInput, as_features, directions
from probjepa.distributions.base import full_precision
from probjepa.errors import ConfigError, DataError
from probjepa.typed import settings_checked

ROUNDING = 1e-6  # of a cosine in float32: copies reach a threshold of 1
_SLACK = 1e-5  # of a bound of a cosine, in float32
_FEW = 4096  # rows whose every product is taken: a bound would not pay
_SAMPLE = 1024  # rows that say how many axes a bound takes
_PAIR = 50  # what a number of a product costs pair by pair, in those of matrices
_HELD = 4_000_000  # numbers of the pairs that are looked at one by one

Rows = npt.NDArray[np.intp]


def check_cosine(threshold: float) -> None:
    """Raise ConfigError unless a cosine that makes two rows duplicates is in (0, 1]."""
    if not 0 < threshold <= 1:
        raise ConfigError(f"a cosine for duplicates is in (0, 1], got {threshold:g}: 0.96 is a usual one")


@settings_checked
def duplicate_groups(
    embeddings: ArrayInput,
    threshold: float = 0.96,
    *,
    copies: npt.ArrayLike | None = None,
    chunk_size: int = 1024,
) -> Rows:
    """Group rows that are near-duplicates: connected by pairs of cosine similarity ≥ ``threshold``.

    Exact: every pair is compared, in float32, chunk_size² at a time, and each block's pairs are merged into
    the groups at once. So memory is that of the embeddings, a normalised copy in float32, at most half as
    much again for bounds, and one block, however many duplicates there are. Of many rows, most pairs are
    told by few numbers: with x₁ a row's part along the axes that hold most of the rows' length, and x₂ the
    rest, cos(x, y) ≤ x₁ᵀy₁ + ‖x₂‖‖y₂‖.

    Parameters
    ----------
    embeddings
        (N, D), normalised here; computed on their device
    threshold
        cosine similarity in (0, 1]
    copies
        a value a row (N,), such as a hash of the input: rows of equal values are one group, too
    chunk_size
        rows of a block

    Returns
    -------
    numpy.ndarray
        the first row of each row's group (N,): a row that stands alone has its own number

    Raises
    ------
    ConfigError
        for a threshold that is not in (0, 1], or a chunk_size below 1
    DataError
        for NaN or Inf, no rows, or another number of copies' values

    Examples
    --------
    >>> duplicate_groups([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]])
    array([0, 1, 0])
    """
    check_cosine(threshold)
    rows = _directions(embeddings, "the embeddings")
    forest = _Forest(len(rows))
    if copies is not None:
        values = np.asarray(copies)
        if values.shape != (len(rows),):
            raise DataError(f"copies has shape {values.shape} for {len(rows)} rows: give one value a row")
        _, first, group = np.unique(values, return_index=True, return_inverse=True)
        forest.join(np.arange(len(rows)), first[group])
    blocks = [
        np.arange(start, min(start + chunk_size, len(rows))) for start in _starts(len(rows), chunk_size)
    ]
    with full_precision(rows):
        bounds = _bounding(rows, threshold)
        for number, block in enumerate(blocks):
            for other in blocks[number:]:
                mine, theirs = forest.roots(block), forest.roots(other)
                if mine[0] == theirs[0] and np.ptp(mine) == np.ptp(theirs) == 0:
                    continue  # they are one group already
                forest.join(*_joined(rows, bounds, threshold, (block, other), (mine, theirs)))
    return forest.roots(np.arange(len(rows)))


@settings_checked
def nearest_twins(
    embeddings: ArrayInput, others: ArrayInput, *, chunk_size: int = 2048
) -> tuple[npt.NDArray[np.float32], Rows]:
    """Find each row's most similar row in another set: the cosine similarity (N,), and its number (N,).

    A similarity near 1 says that a row leaks from one set into the other. Of equally similar rows it is the
    first.

    Parameters
    ----------
    embeddings, others
        (N, D) and (M, D), normalised here
    chunk_size
        rows of a block: at most chunk_size² similarities are held

    Raises
    ------
    ConfigError
        for a chunk_size below 1
    DataError
        for NaN or Inf, no rows, or rows of two widths
    """
    rows, bank = _directions(embeddings, "the embeddings"), _directions(others, "the other embeddings")
    if rows.shape[1] != bank.shape[1]:
        raise DataError(
            f"the embeddings have {rows.shape[1]} columns and the others {bank.shape[1]}: encode both alike"
        )
    best = torch.full((len(rows),), -math.inf, device=rows.device)
    which = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for start in _starts(len(rows), chunk_size):
        of = slice(start, start + chunk_size)
        for other in _starts(len(bank), chunk_size):
            with full_precision(rows):
                found, where = (rows[of] @ bank[other : other + chunk_size].T.to(rows)).max(1)
            better = found > best[of]
            best[of] = torch.where(better, found, best[of])
            which[of] = torch.where(better, where + other, which[of])
    return best.cpu().numpy(), which.cpu().numpy()


def _directions(embeddings: ArrayInput, what: str) -> Tensor:
    return directions(as_features(embeddings, what)).float()


def _bounding(rows: Tensor, threshold: float) -> Tensor | None:
    """Return (x₁, ‖x₂‖) of each row (N, d + 1), whose products bound cosines; None where they do not pay."""
    count, dim = rows.shape
    if count < _FEW:
        return None
    sample = rows[torch.linspace(0, count - 1, _SAMPLE).long().to(rows.device)].double()
    axes = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)
    cost, width = float(dim), dim
    for d in (dim // 8, dim // 4, dim // 2):
        of = _parts(sample, axes[:, :d])
        likely = (of @ of.T >= threshold - _SLACK).double().mean()
        if (here := d + 1 + _PAIR * dim * float(likely)) < cost:
            cost, width = here, d
    if width == dim:
        return None
    return torch.cat([_parts(of.double(), axes[:, :width]) for of in torch.split(rows, _SAMPLE)])


def _parts(rows: Tensor, axes: Tensor) -> Tensor:
    first = rows @ axes
    rest = (rows.square().sum(1) - first.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat([first, rest[:, None]], 1).float()


def _joined(
    rows: Tensor, bounds: Tensor | None, threshold: float, blocks: tuple[Rows, Rows], roots: tuple[Rows, Rows]
) -> tuple[Rows, Rows]:
    """Return the roots of the similar pairs of two blocks of rows, of those that have two."""
    mine, theirs = roots
    here, there = (slice(of[0], of[-1] + 1) for of in blocks)
    if bounds is not None:
        ones, others = _apart(bounds[here] @ bounds[there].T >= threshold - _SLACK, mine, theirs)
        if len(ones) * rows.shape[1] <= _HELD:
            pairs = rows[here][ones] * rows[there][others]
            near = (pairs.sum(1) >= threshold - ROUNDING).cpu().numpy()
            return mine[ones[near]], theirs[others[near]]
    ones, others = _apart(rows[here] @ rows[there].T >= threshold - ROUNDING, mine, theirs)
    return mine[ones], theirs[others]


def _apart(chosen: Tensor, mine: Rows, theirs: Rows) -> tuple[Rows, Rows]:
    """Return the places of the chosen pairs (n, m) whose roots differ."""
    ones, others = np.divmod(np.flatnonzero(chosen.cpu().numpy()), len(theirs))
    differ = mine[ones] != theirs[others]
    return ones[differ], others[differ]


def _starts(count: int, chunk_size: int) -> Iterable[int]:
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}: use at least 1")
    return range(0, count, chunk_size)


class _Forest:
    """Groups of rows that are joined again and again; a group's root is its first row."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count)

    def roots(self, rows: Rows) -> Rows:
        """Return the first row of each row's group."""
        found = self.parent[rows]
        while (above := self.parent[found]).tobytes() != found.tobytes():
            found = above
        self.parent[rows] = found
        return found

    def join(self, ones: Rows, others: Rows) -> None:
        """Make one group of the two roots of each pair."""
        if not len(ones):
            return
        nodes, ends = np.unique(np.stack([ones, others]), return_inverse=True)
        ends = ends.reshape(2, -1)
        graph = coo_array((np.ones(ends.shape[1], dtype=bool), (ends[0], ends[1])), shape=(len(nodes),) * 2)
        _, group = connected_components(graph, directed=False)
        first = np.full(group.max() + 1, len(self.parent))
        np.minimum.at(first, group, nodes)
        self.parent[nodes] = first[group]
