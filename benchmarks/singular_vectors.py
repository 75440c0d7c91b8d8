"""How far a step along the right singular vectors of an encoder's Jacobian moves the embedding.

``python benchmarks/singular_vectors.py --threads 1 --data-root DIR`` opens the public CIFAR-10 ResNet-20 and
the same network untrained, draws test images for each seed, and takes a step of each root mean square, in
grey levels of 255, along the first, the 8th and the last vector and along random directions. Beside it: where
the first vectors lie (share of their squares in the lowest quarter of frequencies each way, and in the middle
quarter of the image, where the object mostly is) and whether they are of the image (|cos| with those of
others). ``--picture`` draws images with their first vectors, the paper's last figure; it shows images of the
data set, whose terms keep it out of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import probjepa as pj
from frozen_scores import opened
from harness import Result, arguments, parse, write
from probjepa.jacobian import singular_vectors

STEPS = (0.1, 4.0)  # root mean square over the pixels, in grey levels
DRAWN, ZOOM, GAP = (
    5,
    3,
    4,
)  # vectors beside each image of the picture, pixels of one of its pixels, and between
RANDOM = 16  # directions an image


def moved(model: Any, x: Tensor, step: Tensor) -> Tensor:
    """How far a step (N, C, H, W) moves each image's embedding: (N,)."""
    with torch.no_grad():
        return (model(x + step) - model(x)).norm(dim=1)


def low_frequencies(vectors: Tensor) -> Tensor:
    """Share of the squares in frequencies of at most a quarter of Nyquist's, each way: (…, H, W) → (…,)."""
    power = torch.fft.fft2(vectors).abs().square()
    rows, columns = (torch.fft.fftfreq(side).abs() <= 0.125 for side in vectors.shape[-2:])
    return (power * (rows[:, None] & columns[None, :])).sum((-1, -2)) / power.sum((-1, -2))


def middle(vectors: Tensor) -> Tensor:
    """Share of the squares in the middle half of the rows and columns: (N, C, H, W) → (N,)."""
    squares = vectors.square().sum(1)
    height, width = squares.shape[-2:]
    inner = squares[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    return inner.sum((1, 2)) / squares.sum((1, 2))


def measured(model: Any, images: Tensor, grey: float, seed: int) -> dict[str, float]:
    """The figures of one seed's images, means over them; ``grey`` is a grey level in prepared units."""
    x = model.preprocess(images)
    dim = model.embedding_dim
    sigma, vectors = singular_vectors(model, images, count=dim)
    found: dict[str, float] = {}
    pixels = x[0].numel()
    draws = torch.Generator().manual_seed(seed)
    random = torch.randn(RANDOM, *x.shape, generator=draws)
    random /= random.flatten(2).norm(dim=2)[:, :, None, None, None]
    for level in STEPS:
        length = level * grey * pixels**0.5
        reach = torch.stack([moved(model, x, length * way) for way in random]).mean(0)
        for rank in (1, 8, dim):
            far = moved(model, x, length * vectors[:, rank - 1].to(x.dtype))
            found[f"{level:g} grey levels: vector {rank} / random"] = float((far / reach).mean())
            if level == STEPS[0] and rank < dim:  # the last σ of an untrained network is 0
                found[f"{level:g} grey levels: vector {rank} / σ · step"] = float(
                    (far / (length * sigma[:, rank - 1])).mean()
                )
    first = vectors[:, 0]
    found["low frequencies, vector 1"] = float(low_frequencies(first).mean())
    found["low frequencies, random"] = float(low_frequencies(random).mean())
    found["middle, vector 1"] = float(middle(first).mean())
    found["middle, random"] = float(middle(random.flatten(0, 1)).mean())
    flat = first.flatten(1)
    among = (flat @ flat.T).abs()[~torch.eye(len(flat), dtype=torch.bool)]
    found["|cos| of vector 1 between images"] = float(among.mean())
    return found


def draw(model: Any, images: Tensor, path: Path) -> None:
    """Write the images, each with its first singular vectors beside it; grey is zero."""
    _, vectors = singular_vectors(model, images, count=DRAWN)
    scaled = vectors / vectors.abs().amax((2, 3, 4), keepdim=True)
    tiles = torch.cat([images[:, None], (127.5 + 127.5 * scaled).round().to(torch.uint8)], 1)
    tiles = tiles.repeat_interleave(ZOOM, 3).repeat_interleave(ZOOM, 4)
    tiles = torch.nn.functional.pad(tiles, (GAP,) * 4, value=255)
    sheet = torch.cat([torch.cat(list(row), 2) for row in tiles], 1)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path, optimize=True)


def main() -> None:
    parser = arguments(__doc__, "singular_vectors", repeats=3)
    parser.add_argument("--images", type=int, default=64, help="of each seed")
    parser.add_argument("--picture", type=Path, help="PNG file of a few images and their vectors")
    args = parse(parser)
    trained = opened("resnet20", args.data_root)
    test = pj.open_images(args.data_root / "cifar10" / "test.parquet", size=trained.preprocess.opened)
    seeds: dict[str, list[dict[str, float]]] = {"resnet20": [], "random initialisation": []}
    zero, one = (trained.preprocess(torch.full((1, 3, 32, 32), level, dtype=torch.uint8)) for level in (0, 1))
    grey = float((one - zero).mean())
    for seed in range(args.repeats):
        rows = np.sort(np.random.default_rng(seed).permutation(len(test))[: args.images])
        images = test.get(rows)
        for name in seeds:
            model = trained if name == "resnet20" else trained.reinitialised(seed)
            seeds[name].append(measured(model, images, grey, seed))
            print(name, seed, seeds[name][-1], flush=True)
    figures: dict[str, Any] = {"images a seed": args.images, "K": trained.embedding_dim}
    for name, found in seeds.items():
        figures[name] = {
            what: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "seeds": values}
            for what in found[0]
            for values in [[of[what] for of in found]]
        }
    if args.picture is not None:
        draw(trained, test.get(slice(0, 6)), args.picture)
    result = Result("singular_vectors")
    result.figures = figures
    write(result, args.out)


if __name__ == "__main__":
    main()
