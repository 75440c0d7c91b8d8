"""VJE on CIFAR-10 within a small CPU budget (or, with --full, the paper's recipe), evaluated."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probjepa
from harness import Result, arguments, parse, write
from probjepa.data import ImageSet, open_images, split
from probjepa.data.codec import reencode
from probjepa.evaluation import evaluate
from probjepa.methods.vje import VJE

CODEC = "jpeg:75"  # the quantisation tables and sampling of the CIFAR-10 files: a detector could tell by it
NOISE_IMAGES = 5_000

SMALL: dict[str, Any] = {
    "images": 10_000,
    "epochs": 80,
    "width": 0.25,
    "batch_size": 128,
    "learning_rate": 0.05,
    "precision": "auto",
}
FULL: dict[str, Any] = {
    "images": 50_000,
    "epochs": 200,
    "width": 1.0,
    "batch_size": 256,
    "learning_rate": 0.05,
    "precision": "auto",
}


def out_of_distribution(data_root: Path, seed: int) -> dict[str, ImageSet]:
    """Return the three sets, 32 px, RGB, each through the codec of CIFAR-10's files."""
    noise = np.random.default_rng(seed).integers(0, 256, (NOISE_IMAGES, 3, 32, 32), dtype=np.uint8)
    sources = {
        "tiny imagenet": data_root / "tiny_imagenet100" / "validation.parquet",
        "digits": "sklearn:digits",
        "uniform noise": noise,
    }
    return {
        name: dataclasses.replace(
            reencode(in_memory(source, size=32, channels=3, convert=True), CODEC), name=name
        )
        for name, source in sources.items()
    }


def cifar10(data_root: Path, part: str) -> ImageSet:
    source = data_root / "cifar10" / f"{part}.parquet"
    return dataclasses.replace(in_memory(source, channels=3), name=f"cifar10 {part}")


def in_memory(source: Any, **options: Any) -> ImageSet:
    images = open_images(source, **options)
    assert isinstance(images, ImageSet), "these sets take at most 150 MB"
    return images


def train(args: argparse.Namespace, images: ImageSet, folder: Path) -> tuple[VJE, dict[str, Any]]:
    """Train, or go on where ``folder`` stopped; return the method and what its table says of the time."""
    torch.manual_seed(args.seed)
    method = VJE("resnet18", backbone_options={"width": args.width}, image_size=32)
    limit: dict[str, Any] = (
        {} if args.minutes is None else {"max_time": datetime.timedelta(minutes=args.minutes)}
    )
    probjepa.fit(
        method,
        images,
        epochs=args.epochs,
        out=folder,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        precision=args.precision,
        seed=args.seed,
        device=args.device,
        resume=(folder / "config.yaml").is_file(),
        **limit,
    )
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows]
    steps_an_epoch = len(images) // args.batch_size
    return method, {
        "epochs": int(rows[-1]["step"]) / steps_an_epoch,  # --minutes may stop inside one
        "seconds": sum(seconds),
        "median_epoch_seconds": float(np.median(seconds)),
        "images_per_second": steps_an_epoch * args.batch_size / float(np.median(seconds)),
        "last_epoch": {key: float(value) for key, value in rows[-1].items() if value},
    }


def main() -> None:
    parser = arguments(__doc__, "cifar10_cpu")
    parser.add_argument(
        "--full", action="store_true", help="the paper's recipe; for a GPU, with --device cuda"
    )
    for name, value in SMALL.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(value), default=argparse.SUPPRESS, help=f"{value}, or {FULL[name]}"
        )
    parser.add_argument("--minutes", type=float, help="stop training after so long, wherever it is")
    parser.add_argument("--run", type=Path, help="keep the run folder here; one that is there goes on")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the subset, the weights, training, evaluation"
    )
    given = parse(parser)
    recipe = FULL if given.full else SMALL
    args = argparse.Namespace(**recipe | vars(given))
    if given.full and args.out == parser.get_default("out"):
        args.out = args.out.with_name("cifar10_full.json")

    start = time.perf_counter()
    images, test = cifar10(args.data_root, "train"), cifar10(args.data_root, "test")
    if args.images < len(images):
        images = split(images, args.images / len(images), args.seed)[1]
    opened = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        method, training = train(args, images, args.run or Path(temporary) / "run")
    trained = time.perf_counter()
    evaluation = evaluate(
        method, images, test, out_of_distribution(args.data_root, args.seed), seed=args.seed
    )
    seconds = {
        "opening": opened - start,
        "training": max(trained - opened, training["seconds"]),  # with what a resumed run took before
        "evaluation": time.perf_counter() - trained,
    }
    seconds["all"] = sum(seconds.values())

    found = evaluation.metrics
    result = Result("cifar10_full" if args.full else "cifar10_cpu")
    result.figures = {
        "recipe": {name: getattr(args, name) for name in (*recipe, "seed", "device", "minutes")},
        "training": training,
        "seconds": seconds,
        "kl": found["variance"]["kl_per_dimension"] * method.embedding_dim,
        "evaluation": found,
    }
    summarise(result.figures)
    if not args.full:
        result.target("opening, training and evaluating", seconds["all"] / 60, 30, "minutes")
    write(result, args.out)


def summarise(figures: dict[str, Any]) -> None:
    """Print the tables that the JSON holds."""
    found = figures["evaluation"]
    print(f"{figures['training']['epochs']:.4g} epochs, {figures['seconds']['all']:.0f} s in all")
    for space, probes in found["accuracy"].items():
        print(f"  {space:12}" + "".join(f"  {probe} {_interval(of)}" for probe, of in probes.items()))
    variance, rank = found["variance"]["mean"], found["collapse"]["effective_rank"]
    print(f"  mean σ² {variance:.3f}, KL {figures['kl']:.1f} nats, effective rank {rank:.1f}")
    for name, detectors in found["ood"].items():
        for detector, metrics in detectors.items():
            print(f"  {name:14} {detector:17} AUROC {_interval(metrics['auroc'])}")


def _interval(of: dict[str, float]) -> str:
    return f"{100 * of['value']:5.1f} [{100 * of['low']:.1f}, {100 * of['high']:.1f}]"


if __name__ == "__main__":
    main()
