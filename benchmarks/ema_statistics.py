"""What batch norm's statistics in VJE's averaged teacher are worth: kNN on h and on the teacher's h.

``python benchmarks/ema_statistics.py --data-root DIR`` trains VJE with a stop-gradient, and with teachers
whose batch statistics are averaged like the weights, their own batch's, or the online network's copied (as
probjepa had it until November 2026; kept here alone), beside the same network untrained and raw pixels. On
scikit-learn's digits and on CIFAR-10, three seeds each. Cells that are finished are kept in the result's
JSON: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probjepa as pj
from harness import ROOT, command_line, environment, runs_of
from probjepa.backbones.frozen import evaluating
from probjepa.data import ImageSet
from probjepa.files import write_text
from probjepa.metrics import knn_accuracy

TARGETS = ("stop-gradient", "averaged", "batch", "copied")
UNTRAINED, PIXELS = "untrained", "raw pixels"
OPTIONS = {  # what each is to VJE
    "stop-gradient": "stop-gradient", "averaged": "ema-averaged", "batch": "ema", "copied": "ema-averaged",
    UNTRAINED: "stop-gradient",
}  # fmt: skip


def copied_statistics(source: Any, step: int, total_steps: int, *, ema: Any) -> None:
    """Follow the weights, and copy the statistics."""
    type(ema).update(ema, source, step, total_steps)
    with torch.no_grad():
        for kept, current in zip(ema.module.buffers(), source.buffers(), strict=True):
            kept.copy_(current)


def run(target: str, seed: int, train: ImageSet, test: ImageSet, fit: dict[str, Any]) -> dict[str, float]:
    """Train one cell; kNN (k = 20) on h and on the teacher's h."""
    if target == PIXELS:
        return {"h": _knn(*(images.images.flatten(1).float() for images in (train, test)), train, test)}
    torch.manual_seed(seed)
    method = pj.VJE(
        fit["backbone"], backbone_options=fit["options"], channels=train.channels, image_size=train.size,
        target=OPTIONS[target],
    )  # fmt: skip
    if target == UNTRAINED:
        method.calibrate(train.images)
        return {"h": accuracy(method, method.encoder, train, test)}
    if target == "copied":
        ema = method.target
        ema.update = lambda *arguments: copied_statistics(*arguments, ema=ema)
    settings = {key: fit[key] for key in ("epochs", "batch_size", "learning_rate")}
    pj.fit(
        method, train, seed=seed, device="cpu", progress=False, monitor_every=0, knn_every=0,
        precision="32-true",  # as the first seed had it, on a processor without units for bf16
        **settings,
    )  # fmt: skip
    figures = {"h": accuracy(method, method.encoder, train, test)}
    if method.target is not None:
        figures["ema-h"] = accuracy(method, method.target.module, train, test)
    return figures


def accuracy(method: Any, encoder: Any, train: ImageSet, test: ImageSet) -> float:
    """kNN accuracy of an encoder's embeddings."""
    with evaluating(method):
        bank, queries = (
            torch.cat([encoder(method.preprocess(x)) for x in torch.split(images.images, 500)])
            for images in (train, test)
        )
    return _knn(bank, queries, train, test)


def _knn(bank: torch.Tensor, queries: torch.Tensor, train: ImageSet, test: ImageSet) -> float:
    return float(knn_accuracy(bank, train.labels, queries, test.labels, k=20))


def data_sets(data_root: Path | None) -> dict[str, tuple[ImageSet, ImageSet, dict[str, Any]]]:
    """Digits, and CIFAR-10's first 5,000 training images where they are."""
    digits = pj.open_images("sklearn:digits", size=16)
    order = np.random.default_rng(0).permutation(len(digits))
    found = {
        "digits": (
            digits.subset(np.sort(order[:1200])),
            digits.subset(np.sort(order[1200:])),
            {
                "backbone": "convnet", "options": {"widths": (16, 32, 64)}, "epochs": 60, "batch_size": 128,
                "learning_rate": 0.05,
            },
        )
    }  # fmt: skip
    if data_root is not None:
        train = pj.open_images(data_root / "cifar10" / "train.parquet", size=32)
        test = pj.open_images(data_root / "cifar10" / "test.parquet", size=32)
        found["cifar10"] = (
            train.subset(np.arange(5_000)),
            test.subset(np.arange(2_000)),
            {
                "backbone": "convnet",
                "options": {"widths": (32, 64, 128)},
                "epochs": 30,
                "batch_size": 64,
                "learning_rate": 0.05,
            },
        )
    return found


def main() -> None:
    """Run what is not there yet, and write after every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "ema_statistics.json")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {"cells": {}}
    before = {"earlier": runs_of(result)} if result["cells"] else {}
    sets = data_sets(chosen.data_root)
    for name, (train, test, fit) in sets.items():
        for seed in range(chosen.seeds):
            for target in (*TARGETS, UNTRAINED, *([] if seed else [PIXELS])):
                key = f"{name}/{target}/{seed}"
                if key in result["cells"]:
                    continue
                started = time.monotonic()
                figures = run(target, seed, train, test, fit)
                result["cells"][key] = {**figures, "seconds": round(time.monotonic() - started, 1)}
                result |= {"settings": {n: s[2] for n, s in sets.items()}, **before}
                result |= {"command": command_line(sys.argv), "environment": environment()}
                write_text(chosen.out, json.dumps(result, indent=1, allow_nan=False) + "\n")
                print(key, result["cells"][key], flush=True)


if __name__ == "__main__":
    main()
