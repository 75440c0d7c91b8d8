"""Embeddings in bf16 beside float32: images a second and bf16's error, of CIFAR-10's test images.

For a CPU give ``--threads 1``: the clock is the process's own time, which counts all threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import probjepa as pj
from harness import Result, arguments, compare, parse, write
from probjepa.backbones.encoding import MOST_ERROR
from probjepa.methods import Method

FASTER = 1.5
TRAINED = "ResNet-20, trained"
VIT = {"width": 192, "heads": 3, "depth": 12, "patch_size": 4}


def encoders(weights: Path) -> dict[str, Callable[[], Method]]:
    """Return what is measured, by name; all but the last have random weights, which cost what trained do."""
    return {
        "ResNet-18, a quarter of its width": lambda: pj.VJE(
            "resnet18", backbone_options={"width": 0.25}, seed=0
        ),
        "ResNet-18": lambda: pj.VJE("resnet18", seed=0),
        "ViT, width 192": lambda: pj.VJE("vit", backbone_options=VIT, seed=0),
        TRAINED: lambda: pj.open_encoder(f"resnet20:{weights / 'resnet20_cifar10.safetensors'}"),
    }


def errors(h: Tensor, found: Tensor) -> dict[str, float]:
    """Medians over images of ‖h_bf16 − h‖, relative to ‖h‖ and to ‖h − h̄‖."""
    far = (found - h).norm(dim=1)
    return {
        "error_of_norm": float((far / h.norm(dim=1)).median()),
        "error_of_spread": float((far / (h - h.mean(0)).norm(dim=1)).median()),
    }


def measured(method: Method, images: Tensor, repeats: int) -> dict[str, Any]:
    """Return an encoder's images a second in both precisions, their ratio round by round, and the errors."""
    found, encodings = {}, {}
    for precision in ("float32", "bf16"):
        method.precision = precision
        found[precision] = method.embed(images)  # looks at the first images, and warms up
        encodings[precision] = method.encoding

    def embed(precision: str) -> None:
        method.encoding = encodings[precision]
        method.embed(images)

    # the process's own time leaves out what else runs on the machine
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    candidates = {precision: partial(embed, precision) for precision in found}
    result = compare("inference", candidates, reference="float32", repeats=repeats, clock=clock)
    return {
        "images_per_second": {name: len(images) / result.time(name).median for name in found},
        "times_as_fast": vars(result.pairwise("bf16", lambda mine, theirs: theirs / mine)),
        **errors(found["float32"].cpu(), found["bf16"].cpu()),
    }


def main() -> None:
    parser = arguments(__doc__, "inference", repeats=5)
    parser.add_argument("--images", type=int, default=256)
    args = parse(parser)
    test = pj.open_images(str(args.data_root / "cifar10" / "test.parquet"))
    images = test.get(torch.arange(args.images) * (len(test) // args.images)).to(args.device)
    result = Result("inference", figures={"images": args.images, "image_size": 32, "device": args.device})
    for name, opened in encoders(args.data_root / "encoders").items():
        method = opened().to(args.device)
        method.calibrate(images)
        found = result.figures[name] = measured(method, images, args.repeats)
        result.target(f"{name}: float32's speed / bf16's", 1 / found["times_as_fast"]["median"], 1 / FASTER)
        if name == TRAINED:
            result.target(f"{name}: error of bf16", found["error_of_spread"], MOST_ERROR)
    write(result, args.out)


if __name__ == "__main__":
    main()
