"""kNN detection with a part of the reference: greedy k-centre rows against as many random ones."""

from __future__ import annotations

import time
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import probjepa as pj
from harness import Result, arguments, parse, write
from probjepa.scores.detectors import KNNScore

SEEDS = range(3)


SKETCH = 32  # dimensions of the random projection


def k_centre(embeddings: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Choose rows so that every row is near one: each next one is the farthest from those chosen.

    Gonzalez 1985, on unit vectors in a random projection, as PatchCore does it (arXiv 2106.08265).
    """
    rows = F.normalize(embeddings.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    if rows.shape[1] > SKETCH:
        rows = rows @ torch.randn(rows.shape[1], SKETCH, generator=generator) / SKETCH**0.5
    squares = rows.square().sum(1)
    chosen = torch.zeros(size, dtype=torch.long)
    chosen[0] = torch.randint(len(rows), (), generator=generator)
    distance = torch.full_like(squares, torch.inf)
    for step in range(1, size):
        last = int(chosen[step - 1])
        distance = torch.minimum(distance, squares + squares[last] - 2 * rows @ rows[last])
        distance[last] = -torch.inf  # never again, among equal rows neither
        chosen[step] = distance.argmax()
    return chosen


def main() -> None:
    parser = arguments(__doc__, "coreset", repeats=1)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1_000)
    args = parse(parser)
    encoder = pj.SimSiam(
        "resnet20", weights=args.data_root / "encoders" / "resnet20_cifar10.safetensors", image_size=32,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ).eval()  # fmt: skip

    def encode(name: str, count: int) -> torch.Tensor:
        images = pj.open_images(args.data_root / name, size=32)
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
        return encoder.embed(images.get(rows))

    reference = encode("cifar10/train.parquet", args.reference)
    test = encode("cifar10/test.parquet", args.images)
    odd = {
        "cifar100": encode("cifar100/test.parquet", args.images),
        "textures": encode("textures/dtd10.parquet", args.images),
    }
    odd["noise"] = encoder.embed(
        torch.randint(
            256, (args.images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
    )
    odd["unlike both"] = torch.randn(
        args.images, test.shape[1], generator=torch.Generator().manual_seed(2)
    ).abs()

    def auroc(rows: torch.Tensor) -> dict[str, Any]:
        score = KNNScore().fit({"h": rows})
        start = time.perf_counter()
        typical = score.score({"h": test})
        seconds = time.perf_counter() - start
        scores = {name: score.score({"h": h}) for name, h in odd.items()}
        return {"seconds": seconds} | {
            name: float(roc_auc_score(np.r_[np.zeros(len(typical)), np.ones(len(of))], -np.r_[typical, of]))
            for name, of in scores.items()
        }

    def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [mean(run[key] for run in runs), pstdev(run[key] for run in runs)] for key in runs[0]}

    result = Result("coreset")
    result.figures["all"] = {"rows": len(reference), **auroc(reference)}
    for share in (0.1, 0.01):
        size = round(share * len(reference))
        centres, random = [], []
        for seed in SEEDS:
            start = time.perf_counter()
            rows = k_centre(reference, size, seed)
            seconds = time.perf_counter() - start
            centres.append({"choosing": seconds, **auroc(reference[rows])})
            drawn = np.random.default_rng(seed).choice(len(reference), size, replace=False)
            random.append(auroc(reference[drawn]))
        result.figures[f"{size} rows"] = {"k-centre": summary(centres), "random": summary(random)}
    write(result, args.out)


if __name__ == "__main__":
    main()
