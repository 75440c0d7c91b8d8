"""The distance to the k-th nearest row of a fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from probjepa._arrays import as_float_tensor, directions, power_of_two
from probjepa.detectors.base import Detector, Matrix, counted, in_blocks, in_unit, row_blocks, unit_of
from probjepa.errors import ConfigError
from probjepa.registry import importing

with importing():
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors
    from sklearn.utils import gen_batches


class KNN(Detector):
    """Score = −(Euclidean distance to the k-th nearest row of the fit).

    Reference: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, on
    L2-normalised embeddings, whose distance √(2 − 2·cosine) has the order of the cosine distance. The search
    is scikit-learn's, by products: rows whose distances differ by less than some 10⁻⁷ of the spread of the
    fit are found in any order. The distance to the row that it finds is exact.

    Parameters
    ----------
    k
        which neighbour; at most the number of rows of the fit
    normalize
        whether embeddings are L2-normalised first
    chunk_size
        rows to score at a time: chunk_size × k neighbours are held, and as many of one block of the fit
    contamination
        share of the fit that ``predict`` calls outliers, in (0, 0.5]. A row of the fit is its own nearest
        neighbour, so that with a small ``k`` a larger share of new rows is, and with ``k=1`` every new row

    Examples
    --------
    >>> KNN(k=1, normalize=False).fit([[0.0, 0.0], [4.0, 0.0]]).score_samples([[0.0, 3.0]])
    array([-3.])
    """

    def __init__(
        self, k: int = 50, *, normalize: bool = True, chunk_size: int = 4096, contamination: float = 0.1
    ) -> None:
        self.k = k
        self.normalize = normalize
        self.chunk_size = chunk_size
        self.contamination = contamination

    def _fit(self, rows: Matrix, codes: npt.NDArray[np.int64], labels: npt.NDArray[Any]) -> None:
        self._check_k(len(rows))
        if self.chunk_size < 1:
            raise ConfigError(f"KNN: chunk_size is {self.chunk_size}: use at least 1")
        self._mapped = isinstance(rows, np.memmap)
        unit = 1.0 if self.normalize else unit_of(rows)
        # the difference of two of the largest numbers is none
        self._shrink = 0.25 if unit > 2.0**1000 else 1.0
        self._unit = unit = unit * self._shrink
        # distances do not depend on the origin, and their rounding does
        sums = sum(in_unit(self._directions(block), unit).sum(0) for _, block in in_blocks(rows))
        self._centre = sums / len(rows) * unit
        self._bank = rows if self._mapped else self._directions(rows) - self._centre

    def _of_bank(self, of: slice | npt.NDArray[np.intp]) -> Matrix:
        """Return some rows of the fit about their mean; mapped ones are read and prepared again."""
        if not self._mapped:
            held: Matrix = self._bank[of]
            return held
        rows: Matrix = self._directions(np.asarray(self._bank[of], dtype=np.float64)) - self._centre
        return rows

    def leave_one_out(self) -> npt.NDArray[np.float64]:
        """Return the score (N,) of each row of the fit among the others.

        Raises
        ------
        NotFittedError
            before ``fit``
        ConfigError
            for k above the number of the others
        """
        self._check_is_fitted()
        if self.k >= len(self._bank):
            others = len(self._bank) - 1
            raise ConfigError(f"KNN: k is {self.k}, and a row of the fit has {others} others: fit more rows")
        scores = np.empty(len(self._bank))
        for of in gen_batches(len(scores), self.chunk_size):
            rows = self._of_bank(of)
            last = self._nearest(rows, self.k + 1)[:, -2:]
            # a row is among its own neighbours, but for more copies of it than that
            own = last[:, 1] == np.arange(of.start, of.stop)
            scores[of] = self._distances(rows, np.where(own, last[:, 0], last[:, 1]))
        return scores

    def _check_k(self, rows: int) -> None:
        if not 1 <= self.k <= rows:
            raise ConfigError(f"KNN: k is {self.k} with {counted(rows)} to fit: use 1 to {rows}")

    def _score(self, rows: Matrix) -> npt.NDArray[np.float64]:
        self._check_k(len(self._bank))  # it may have been set since
        queries = self._directions(rows) - self._centre
        scores = np.empty(len(queries))
        for of in gen_batches(len(queries), self.chunk_size):
            scores[of] = self._distances(queries[of], self._nearest(queries[of], self.k)[:, -1])
        return scores

    def _nearest(self, queries: Matrix, k: int) -> npt.NDArray[np.intp]:
        """Return the k nearest rows of the fit (n, k), the nearest first."""
        best, which = np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.intp)
        with np.errstate(over="ignore"):  # to a query that overflows all rows are equally far
            queries = in_unit(queries, self._unit)
        for of in row_blocks(self._bank):
            search = NearestNeighbors(n_neighbors=min(k, of.stop - of.start), algorithm="brute")
            # both are checked
            with config_context(assume_finite=True), np.errstate(over="ignore", invalid="ignore"):
                distances, rows = search.fit(in_unit(self._of_bank(of), self._unit)).kneighbors(queries)
            best, which = np.hstack([best, distances]), np.hstack([which, rows + of.start])
            if best.shape[1] > distances.shape[1]:
                order = np.argsort(best, axis=1, kind="stable")[:, :k]
                best, which = np.take_along_axis(best, order, 1), np.take_along_axis(which, order, 1)
        return which

    def _distances(self, queries: Matrix, rows: npt.NDArray[np.intp]) -> Matrix:
        # from the difference itself: the search's own distance loses small ones to cancellation
        apart = queries - self._of_bank(rows)
        unit = power_of_two(torch.from_numpy(np.abs(apart).max(1))).numpy()
        with np.errstate(over="ignore"):
            distances: Matrix = -np.linalg.norm(apart / unit[:, None], axis=1) * unit / self._shrink
        return np.maximum(distances, np.finfo(np.float64).min)  # what is farther away than any number

    def _directions(self, rows: Matrix) -> Matrix:
        if not self.normalize:
            return in_unit(rows, 1 / self._shrink)
        unit: Matrix = directions(as_float_tensor(rows, "the embeddings")).numpy()
        return unit
