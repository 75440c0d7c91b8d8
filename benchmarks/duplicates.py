"""Near-duplicate groups among random embeddings with planted ones: seconds, memory, and what is missed."""

from __future__ import annotations

import resource
import time

import numpy as np
import torch
from torch.nn import functional as F

from harness import Result, arguments, parse, write
from probjepa.metrics import duplicate_groups


def planted(
    count: int, dim: int, share: float, cosine: float, seed: int
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Random directions, a share of which are others turned by ``cosine``: rows, copies, originals."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    order = torch.randperm(count, generator=generator)
    number = round(share * count)
    copies, originals = order[:number], order[number : 2 * number]
    aside = torch.randn(number, dim, generator=generator)
    aside = F.normalize(aside - (aside * rows[originals]).sum(1, keepdim=True) * rows[originals], dim=1)
    rows[copies] = cosine * rows[originals] + (1 - cosine**2) ** 0.5 * aside
    return rows, copies.numpy(), originals.numpy()


def main() -> None:
    parser = arguments(__doc__, "duplicates", repeats=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--dim", type=int, default=128)
    args = parse(parser)
    result = Result("duplicates")
    for count in args.rows:
        rows, copies, originals = planted(count, args.dim, 0.05, 0.97, seed=count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        groups = duplicate_groups(rows, 0.96)
        seconds, busy = time.perf_counter() - start, time.process_time() - cpu
        found = float((groups[copies] == groups[originals]).mean())
        result.figures[f"{count} rows"] = {
            "seconds": seconds,
            "cpu_seconds": busy,
            "extra_peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
            "embeddings_mib": rows.numel() * 4 / 2**20,
            "planted_found": found,
            "groups": len(set(groups[copies])),
            "others_grouped": len(rows) - len(np.unique(groups)) - len(copies),
        }
        result.target(f"planted duplicates of {count:,} rows that are missed", 1 - found, 0.0)
    longest = result.figures[f"{args.rows[-1]} rows"]
    # pairs grow with the square
    scale = (1_000_000 / args.rows[-1]) ** 2
    result.figures["extrapolated_cpu_hours_of_1000000_rows"] = longest["cpu_seconds"] * scale / 3600
    copy = torch.ones(20_000, args.dim)
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert not duplicate_groups(copy, 0.96).any()
    result.figures["20000 rows, all one group"] = {
        "cpu_seconds": time.process_time() - cpu,
        "extra_peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
