"""How a run computes when nothing is said, beside float32 in the plain order: its speed and what it learns.

Speed: an epoch of random images by ``fit``, each way in turn. Accuracy: VJE on a seeded part of CIFAR-10,
each way with the same seeds; kNN (k = 20) on h of the test images. Cells that are finished are kept beside
the result: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from scipy.stats import t as student_t

from harness import arguments, compare, parse, write
from probjepa.cli import own_process
from probjepa.data import ImageSet, open_images, split
from probjepa.files import write_text
from probjepa.methods import METHODS
from probjepa.metrics import knn_accuracy
from probjepa.provenance import cpu_flags
from probjepa.training import auto, fit

PLAIN = {"precision": "32-true", "channels_last": False}
#: the same arithmetic as PLAIN, sooner: accuracy is compared with it
REFERENCE = {"precision": "32-true", "channels_last": True}
SIZE = 32
RATE = 0.017  # a third of the recipe's: these runs are short


def epoch(args: argparse.Namespace, images: ImageSet, method: str, how: dict[str, Any]) -> None:
    """Train one epoch."""
    made = METHODS[method](
        "resnet18",
        backbone_options={"width": args.width},
        image_size=SIZE,
        seed=0,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    fit(
        made, images, epochs=1, batch_size=args.batch_size, device="cpu", progress=False, learning_rate=1e-4,
        monitor_every=0, **how,
    )  # fmt: skip


def accuracy(args: argparse.Namespace, seed: int, how: dict[str, Any]) -> dict[str, float]:
    """Train a cell, and return kNN on h."""
    everything = open_images(args.data_root / "cifar10" / "train.parquet", size=SIZE)
    train, _ = split(everything, 1 - args.images / len(everything), seed=0)
    test = open_images(args.data_root / "cifar10" / "test.parquet", size=SIZE)
    method = METHODS["vje"](
        "resnet18", backbone_options={"width": args.accuracy_width}, image_size=SIZE, seed=seed
    )
    started = time.monotonic()
    fit(
        method, train, epochs=args.epochs, batch_size=args.batch_size, seed=seed, device="cpu",
        progress=False, learning_rate=RATE, monitor_every=0, knn_every=0, **how,
    )  # fmt: skip
    seconds = time.monotonic() - started
    bank, queries = (method.embed(images) for images in (train, test))
    found = knn_accuracy(bank, train.labels, queries, test.labels, k=20)
    return {"kNN on h": float(found), "seconds": round(seconds, 1)}


def main() -> None:
    parser = arguments(__doc__, "auto_path", repeats=5)
    parser.add_argument("--width", type=float, default=1.0, help="of the ResNet-18 that is timed")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="an epoch")
    parser.add_argument("--methods", nargs="+", default=["vje", "simsiam"], choices=sorted(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="of the accuracies; 0: speed alone")
    parser.add_argument("--epochs", type=int, default=20, help="of the accuracies")
    parser.add_argument("--images", type=int, default=10_000, help="of the accuracies")
    parser.add_argument("--accuracy-width", type=float, default=0.25, help="of the ResNet-18 that learns")
    own_process()  # as the command line runs: memory that is kept, threads that do not spin
    args = parse(parser)
    count = args.batch_size * args.steps
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()
    images = ImageSet(pixels, None, [str(row) for row in range(count)], name="random pixels")
    chosen = auto.by_processor(torch.device("cpu"))
    cells_file = args.out.with_suffix(".cells.json")
    cells = json.loads(cells_file.read_text()) if cells_file.is_file() else {}
    for seed in range(args.seeds):
        for name, how in {"float32": REFERENCE, "auto": {}}.items():
            if (key := f"{name}/{seed}") not in cells:
                cells[key] = accuracy(args, seed, how)
                write_text(cells_file, json.dumps(cells, indent=1, allow_nan=False) + "\n")
                print(key, cells[key], flush=True)
    candidates = {
        f"{method}, {name}": lambda method=method, how=how: epoch(args, images, method, how)
        for method in args.methods
        for name, how in {"float32, plain": PLAIN, "auto": {}}.items()
    }
    reference = f"{args.methods[0]}, float32, plain"
    clock = time.process_time if args.threads == 1 else time.perf_counter
    result = compare("auto_path", candidates, reference, args.repeats, clock=clock)
    result.figures = {
        "auto is": {"precision": chosen[0], "channels_last": chosen[1]},
        "width": args.width,
        "batch size": args.batch_size,
        "clock": clock.__name__,
        "images_per_second": {name: count / result.time(name).median for name in candidates},
    }
    for method in args.methods:
        pairs = zip(
            result.seconds[f"{method}, auto"], result.seconds[f"{method}, float32, plain"], strict=True
        )
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        # AMX multiplies bf16 far faster than AVX512-BF16, which has twice float32's products at most
        least = 1 / 2.5 if "amx_bf16" in cpu_flags() else 1 / 0.98
        result.target(f"{method}: auto / float32 in the plain order", ratio, least)
    if args.seeds:
        differences = [
            cells[f"auto/{seed}"]["kNN on h"] - cells[f"float32/{seed}"]["kNN on h"]
            for seed in range(args.seeds)
        ]
        floats = [cells[f"float32/{seed}"]["kNN on h"] for seed in range(args.seeds)]
        result.figures["accuracy"] = {
            "images": args.images,
            "epochs": args.epochs,
            "width": args.accuracy_width,
            "cells": cells,
            "auto − float32, mean": statistics.mean(differences),
            "auto − float32, half width of the 95 % interval": (
                float(student_t.ppf(0.975, args.seeds - 1)) * statistics.stdev(differences) / args.seeds**0.5
                if args.seeds > 1
                else None
            ),
        }
        if args.seeds > 1:
            result.target(
                "|mean of auto − float32|, kNN on h, beside the range of float32's seeds",
                abs(statistics.mean(differences)), max(floats) - min(floats),
            )  # fmt: skip
    write(result, args.out)
    cells_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
