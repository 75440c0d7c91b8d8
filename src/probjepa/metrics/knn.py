"""k-nearest-neighbour classification of frozen embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import ThreadpoolController

from probjepa._arrays import ArrayInput, as_feature_sets, as_features, as_labels, check_classes, directions
from probjepa.distributions.base import full_precision
from probjepa.errors import ConfigError, DataError
from probjepa.typed import settings_checked

_ROWS = 1024  # of a matrix product on the CPU: what OpenBLAS and oneDNN are fastest with
_COLUMNS = 512  # that are looked through together for better neighbours
_ONE_AT_A_TIME = Lock()  # the number of BLAS's threads is the process's, and has to be put back in order


@settings_checked
def knn_vote(
    train: ArrayInput,
    train_labels: ArrayInput,
    test: ArrayInput,
    *,
    k: int = 20,
    temperature: float | None = None,
    chunk_size: int = 4096,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Predict each test row's label from its ``k`` nearest training rows by cosine similarity.

    The second result is the winning class's share of the vote: how sure the prediction is.

    Parameters
    ----------
    train, test
        embeddings (N, D) and (M, D), normalised here; computed on the device of ``train``. A
        ``numpy.memmap`` (``probjepa.data.bank.open_bank`` of shards) is read a block at a time
    train_labels
        (N,); rows labelled −1, None or NaN are left out
    k
        neighbours; of rows equally similar at the k-th place any may be taken
    temperature
        None: majority vote, an equal count decided by the larger summed similarity, then by the smaller
        label. Otherwise each neighbour votes with weight exp(similarity / temperature): 0.1 with k=200 is the
        reading of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        CVPR 2018
    chunk_size
        rows of a block: at most chunk_size² similarities are held at a time

    Returns
    -------
    tuple of numpy.ndarray
        labels (M,), of the type of ``train_labels``, and shares (M,) in (0, 1]

    Raises
    ------
    DataError
        for NaN or Inf (counted), another width, lengths that do not match, or no labelled row
    ConfigError
        for k above the bank's labelled rows, or another setting out of its range
    """
    bank, queries = as_feature_sets(train, test)
    labels, labelled = as_labels(train_labels, "the training labels", rows=len(bank))
    classes, codes = np.unique(labels, return_inverse=True)
    count = len(labelled)
    if count < len(bank) and len(classes) < 2:
        raise DataError(
            f"the training labels are all {classes[0]} or missing, and −1 is a missing one: number the "
            "classes from 0"
        )
    if not 1 <= k <= count:
        raise ConfigError(f"kNN: k is {k} with {count} labelled training rows: use 1 to {count}")
    if temperature is not None and not temperature > 0:
        raise ConfigError(
            f"kNN: temperature is {temperature}: use a positive one, or None for a majority vote"
        )
    if chunk_size < 1:
        raise ConfigError(f"kNN: chunk_size is {chunk_size}: use at least 1")
    class_of = torch.from_numpy(codes).to(bank.device)
    queries = queries.to(bank.device)

    space = _Products(min(chunk_size, len(queries)), min(chunk_size, count))
    kept = None if count == len(bank) else torch.from_numpy(labelled).to(bank.device)

    def cosine(rows: slice, columns: slice) -> torch.Tensor:
        block = bank[columns] if kept is None else bank[kept[columns]]
        return space.product(directions(queries[rows]).to(bank.dtype), directions(block))

    winner = np.empty(len(queries), dtype=np.int64)
    share = np.empty(len(queries))
    for rows, similarity, neighbours in iter_top_k(cosine, len(queries), count, k, chunk_size):
        similarity, voted = similarity.double(), class_of[neighbours]
        empty = similarity.new_zeros(len(similarity), len(classes))
        if temperature is None:
            weights = torch.ones_like(similarity)
        else:
            # relative to the nearest: the winner is the same and a small temperature cannot overflow
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = empty.scatter_add(1, voted, weights)
        ranked = votes
        if temperature is None:  # equal counts are common
            sums = empty.scatter_add(1, voted, similarity)
            ranked = sums.masked_fill(votes < votes.amax(1, keepdim=True), -torch.inf)
        winner[rows] = ranked.cpu().numpy().argmax(1)
        share[rows] = votes.cpu().numpy()[np.arange(len(votes)), winner[rows]] / votes.sum(1).cpu().numpy()
    return classes[winner], share


@settings_checked
def knn_predict(
    train: ArrayInput,
    train_labels: ArrayInput,
    test: ArrayInput,
    *,
    k: int = 20,
    temperature: float | None = None,
    chunk_size: int = 4096,
) -> npt.NDArray[Any]:
    """Return the labels (M,) that ``knn_vote`` finds; its parameters and errors."""
    return knn_vote(train, train_labels, test, k=k, temperature=temperature, chunk_size=chunk_size)[0]


@settings_checked
def knn_accuracy(
    train: ArrayInput,
    train_labels: ArrayInput,
    test: ArrayInput,
    test_labels: ArrayInput,
    *,
    k: int = 20,
    temperature: float | None = None,
    chunk_size: int = 4096,
) -> float:
    """Return the share of labelled test rows whose label ``knn_predict`` finds; its parameters and errors.

    A ProbjepaWarning names test classes that no training row has; if none has any, it is a DataError.

    Examples
    --------
    >>> knn_accuracy([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[2.0, 0.1], [0.1, 3.0]], [0, 0], k=1)
    0.5
    """
    queries = as_features(test, "the test embeddings")
    targets, asked = as_labels(test_labels, "the test labels", rows=len(queries))
    known = as_labels(train_labels, "the training labels")[0]
    check_classes(np.unique(targets).tolist(), np.unique(known).tolist())
    predicted = knn_predict(train, train_labels, queries, k=k, temperature=temperature, chunk_size=chunk_size)
    return float(np.mean(predicted[asked] == targets))


def iter_top_k(
    similarity: Callable[[slice, slice], torch.Tensor], n_queries: int, n_bank: int, k: int, chunk_size: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Find each query's ``k`` most similar bank rows, block by block.

    At most ``chunk_size`` × ``chunk_size`` similarities are held at a time, however large both sets are.

    Parameters
    ----------
    similarity
        (slice of the queries, slice of the bank) → their similarities (n, m)
    n_queries, n_bank, k
        sizes; k ≤ n_bank
    chunk_size
        rows of a block on both sides

    Yields
    ------
    tuple[slice, Tensor, Tensor]
        a slice of the queries, their ``k`` similarities in falling order (n, k), and the bank rows (n, k)
    """
    for start in range(0, n_queries, chunk_size):
        queries = slice(start, min(start + chunk_size, n_queries))
        best: torch.Tensor | None = None
        where: torch.Tensor | None = None
        for first in range(0, n_bank, chunk_size):
            block = similarity(queries, slice(first, min(first + chunk_size, n_bank)))
            if best is None or where is None or best.shape[1] < k or block.is_cuda:
                best, where = _merged(best, where, block, first, k)
                continue
            # late in a large bank hardly a row meets a better neighbour, and a look costs less than a sort
            for part in torch.split(block, _COLUMNS, dim=1):
                rows = (part.amax(1) > best[:, -1]).nonzero()[:, 0]
                if len(rows):
                    best[rows], where[rows] = _merged(best[rows], where[rows], part[rows], first, k)
                first += part.shape[1]
        assert best is not None
        assert where is not None
        yield queries, best, where


def _merged(
    best: torch.Tensor | None, where: torch.Tensor | None, block: torch.Tensor, first: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k most similar of those so far and of a block whose columns start at ``first``."""
    if best is None or where is None:
        values, rows = block.topk(min(k, block.shape[1]), dim=1)
        return values, rows + first
    known = best.shape[1]
    values, rows = torch.cat([best, block], 1).topk(min(k, known + block.shape[1]), dim=1)
    return values, torch.where(
        rows < known, where.gather(1, rows.clamp_max(known - 1)), rows + (first - known)
    )


class _Products:
    """Products of matrices, at most (rows, columns), each in the place of the one before it."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = rows, columns
        self.blas = ThreadpoolController()
        self.place: torch.Tensor | None = None  # new memory for each product would cost a tenth of it

    def product(self, queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        """Return queries · bankᵀ, on a CPU by the fastest library that does not round more.

        On an EPYC with AVX-512, MKL and OpenBLAS leave half of it unused in float32; oneDNN does not. Without
        it NumPy's OpenBLAS beats MKL by a fifth there.
        """
        if queries.device.type != "cpu":
            with full_precision(queries):
                return queries @ bank.T
        if self.place is None:
            self.place = torch.empty(self.shape, dtype=queries.dtype)
        found = self.place[: len(queries), : len(bank)]
        parts = list(zip(torch.split(found, _ROWS), torch.split(queries, _ROWS), strict=True))
        if queries.dtype == torch.float32 and (one_dnn := _one_dnn()) is not None:
            for place, asked in parts:
                place.copy_(one_dnn(asked, bank, None, "none", [], ""))
            return found
        with _ONE_AT_A_TIME, self.blas.limit(limits=torch.get_num_threads(), user_api="blas"):
            for place, asked in parts:
                np.matmul(asked.numpy(), bank.numpy().T, out=place.numpy())
        return found


@cache
def _one_dnn() -> Callable[..., torch.Tensor] | None:
    """Return oneDNN's x · wᵀ of float32, where it has AVX-512 and this torch has it; else None."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    found: Callable[..., torch.Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found
