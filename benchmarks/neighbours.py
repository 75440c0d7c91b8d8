"""kNN over a million references: ours beside faiss's flat index and scikit-learn's, all exact; predictive.

Needs `pip install faiss-cpu`. Embeddings are drawn: the arithmetic is that of real ones.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from harness import arguments, compare, parse, peak_resident, write
from probjepa.distributions import PolarStudentT, PolarStudentTMixture
from probjepa.metrics import knn_vote

K = 20
CLASSES = 10


def drawn(rows: int, dim: int, seed: int) -> torch.Tensor:
    """Unit vectors (rows, dim)."""
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return x.div_(x.norm(dim=1, keepdim=True))


def voted(bank: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The share of the vote, (N,)."""
    return torch.as_tensor(knn_vote(bank, torch.arange(len(bank)) % CLASSES, asked, k=K)[1])


def density(bank: torch.Tensor) -> PolarStudentTMixture:
    """The predictive density, with the scale that ``VJE.predictive`` has: one of all references."""
    variance = torch.linspace(0.5, 1.5, bank.shape[1], dtype=torch.float64) / bank.shape[1]
    return PolarStudentTMixture(bank, variance.expand(bank.shape))


def predicted(bank: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The log-density, (N,)."""
    return density(bank).log_prob(asked)


def alone(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    references: int,
    queries: int,
    dim: int,
    threads: int,
) -> dict[str, float]:
    """What all queries take in a process of their own, and the memory beyond the references."""
    torch.set_num_threads(threads)
    bank, asked = drawn(references, dim, 0), drawn(queries, dim, 1)
    score(bank[:100], asked[:100])  # loads all
    before = peak_resident()
    start, cpu = time.perf_counter(), time.process_time()
    score(bank, asked)
    return {
        "queries": queries,
        "seconds": time.perf_counter() - start,
        "process_seconds": time.process_time() - cpu,
        "peak_bytes_beyond_the_references": peak_resident() - before,
    }


def one_by_one(bank: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The predictive density from every pair's own ``PolarStudentT``, in blocks."""
    whole = density(bank)
    found = []
    for h in asked.double():
        parts = [
            PolarStudentT(centers.double(), whole.scale_squared[: len(centers)]).log_prob(h).logsumexp(0)
            for centers in bank.split(10_000)
        ]
        found.append(torch.stack(parts).logsumexp(0))
    return torch.stack(found) - math.log(len(bank))


def main() -> None:
    parser = arguments(__doc__, "neighbours", repeats=5)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--timed-queries", type=int, default=4_096, help="of the comparison, which repeats")
    parser.add_argument("--dim", type=int, default=512)
    args = parse(parser)
    import faiss
    from sklearn.neighbors import NearestNeighbors

    clock = time.process_time if args.threads == 1 else time.perf_counter
    whole = {}
    for name, score in {"kNN": voted, "predictive": predicted}.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes = (args.references, args.queries, args.dim, args.threads)
            whole[name] = pool.apply(alone, (score, *sizes))
        print(name, whole[name], flush=True)
    bank, asked = drawn(args.references, args.dim, 0), drawn(args.timed_queries, args.dim, 1)
    faiss.omp_set_num_threads(args.threads)
    index = faiss.IndexFlatIP(args.dim)
    index.add(bank.numpy())
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=args.threads).fit(bank.numpy())
    found: dict[str, Any] = {}
    candidates = {
        "faiss flat": lambda: found.update(faiss=index.search(asked.numpy(), K)[1]),
        "ours": lambda: found.update(ours=voted(bank, asked)),
        "scikit-learn brute": lambda: found.update(sklearn=brute.kneighbors(asked.numpy())[1]),
    }
    with threadpool_limits(args.threads):
        result = compare("neighbours", candidates, "faiss flat", args.repeats, clock=clock)
    same = [set(a) == set(b) for a, b in zip(found["faiss"], found["sklearn"], strict=True)]
    votes = np.apply_along_axis(np.bincount, 1, found["faiss"] % CLASSES, minlength=CLASSES)
    share = votes.max(1) / K
    result.figures = {
        "references": args.references,
        "dim": args.dim,
        "k": K,
        "queries of the comparison": args.timed_queries,
        "clock": clock.__name__,
        "all queries, alone": whole["kNN"],
        "all queries, alone, predictive": whole["predictive"],
        "predictive, largest difference from pairs one by one": float(
            (predicted(bank, asked[:4]) - one_by_one(bank, asked[:4])).abs().max()
        ),
        "queries whose neighbours are faiss's and scikit-learn's alike": float(np.mean(same)),
        "queries whose vote is that of faiss's neighbours": float(np.mean(np.isclose(found["ours"], share))),
    }
    result.target("ours / faiss flat", result.ratio("ours").median, 1.0)
    for name, taken in whole.items():
        beyond = taken["peak_bytes_beyond_the_references"] / 2**30
        result.target(f"{name}, memory beyond the references", beyond, 2.0, "GiB")
    write(result, args.out)


if __name__ == "__main__":
    main()
