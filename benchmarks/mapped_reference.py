"""Detectors fitted to a reference that is mapped from a file: memory of their own beside its size, and time.

Embeddings are drawn: the arithmetic is that of real ones. What counts is anonymous memory, which a process
must keep; pages of the mapped file are the system's to drop.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Peak, Result, arguments, parse, write

KEPT, BLOCK, SMALL = 0.1, 50_000, 50_000


def draw(file: Path, rows: int, dim: int) -> None:
    """Write rows of a few clusters as .npy, block by block."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(10, dim)).astype(np.float32)
    bank = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = random.normal(size=(count, dim), scale=0.5).astype(np.float32)
        bank[start : start + count] = centers[random.integers(0, 10, count)] + noise
    bank.flush()


def knn(bank: Any, queries: Any) -> Any:
    """The distance to the 20th neighbour."""
    from probjepa.detectors import KNN

    return KNN(20).fit(bank).score_samples(queries)


def mahalanobis(bank: Any, queries: Any) -> Any:
    """By one covariance of all rows."""
    from probjepa.detectors import Mahalanobis

    return Mahalanobis("ledoit-wolf").fit(bank).score_samples(queries)


def mixture(bank: Any, queries: Any) -> Any:
    """By EM, with diagonal covariances."""
    from probjepa.detectors import GaussianMixture

    return GaussianMixture(10, covariance_type="diag").fit(bank).score_samples(queries)


def predictive(bank: Any, queries: Any) -> Any:
    """A component a row, of one variance."""
    from probjepa.distributions import PolarStudentTMixture

    centers = torch.from_numpy(bank)
    variance = torch.full((1, 1), 0.1).expand(centers.shape)
    return PolarStudentTMixture(centers, variance).log_prob(torch.from_numpy(queries)).numpy()


KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "kNN": knn, "Mahalanobis": mahalanobis, "mixture of 10 Gaussians": mixture, "predictive": predictive,
}  # fmt: skip


def anonymous() -> int:
    """Return the KiB of this process's anonymous memory."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) if found else 0


def child(kind: str, file: str, queries: int) -> None:
    """Fit and score in a process of its own; print seconds, and the peak beyond what the start held."""
    torch.set_num_threads(1)
    bank = np.load(file, mmap_mode="r")
    asked = np.random.default_rng(1).normal(size=(queries, bank.shape[1])).astype(np.float32)
    KINDS[kind](np.array(bank[:2_000]), asked)  # loads all
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    memory, before = Peak(anonymous, 0.01), anonymous()
    memory.start()
    start = time.perf_counter()
    scores = KINDS[kind](bank, asked)
    seconds = time.perf_counter() - start
    peak = (memory.value - before) / 1024
    same = None
    if len(bank) == SMALL:
        same = bool(np.array_equal(scores, KINDS[kind](np.array(bank), asked)))
    print(json.dumps({"seconds": seconds, "peak MB": peak, "as of an array": same}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = arguments(__doc__, "mapped_reference")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1_000)
    args = parse(parser)
    result = Result("mapped_reference")
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as home:
        for rows in (SMALL, args.rows):
            file = Path(home) / f"{rows}.npy"
            draw(file, rows, args.dim)
            for kind in KINDS:
                command = [sys.executable, __file__, "--child", kind, str(file), str(args.queries)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[kind][f"{rows:,} rows"] = json.loads(said)
            file.unlink()
    size, small_size = (4 * rows * args.dim / 2**20 for rows in (args.rows, SMALL))
    result.figures = {"dim": args.dim, "queries": args.queries, "reference MB": size, **found}
    for kind, of in found.items():
        small, large = of.values()
        result.target(
            f"{kind}: more memory at {args.rows:,} rows than at {SMALL:,} / the file's size more",
            (large["peak MB"] - small["peak MB"]) / (size - small_size),
            KEPT,
        )
        if kind != "mixture of 10 Gaussians":  # which starts from fewer rows of a file
            result.target(f"{kind}: scores of a mapped reference that differ", 1 - small["as of an array"], 0)
    write(result, args.out)


if __name__ == "__main__":
    main()
