"""Rows of a table in parts, each with its share of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SHARES = (0.7, 0.1, 0.2)


def split_rows(
    labels: npt.ArrayLike, seed: int, shares: Sequence[float] = SHARES
) -> tuple[npt.NDArray[np.int64], ...]:
    """Return disjoint row numbers, one array a share (training first), stratified by label, in random order.

    Of each class the later parts get their share rounded to whole rows, and training the rest, so that every
    class has a training row.

    Examples
    --------
    >>> [len(part) for part in split_rows([0] * 50 + [1] * 50, seed=0)]
    [70, 10, 20]
    """
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    random = np.random.default_rng(seed)
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in shares]
    for code in range(int(codes.max()) + 1):
        rows = random.permutation(np.flatnonzero(codes == code))
        sizes = [math.floor(share * len(rows) + 0.5) for share in shares[1:]]
        while sum(sizes) >= len(rows):
            sizes[int(np.argmax(sizes))] -= 1
        ends = np.cumsum([len(rows) - sum(sizes), *sizes])
        for part, piece in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.append(piece)
    return tuple(random.permutation(np.concatenate(part)) for part in parts)
