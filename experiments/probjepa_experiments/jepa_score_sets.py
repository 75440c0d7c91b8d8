"""JEPA-SCORE of a public encoder beside kNN and Mahalanobis: which sets of images does it tell apart?"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probjepa import metrics
from probjepa.data import Images
from probjepa.detectors import KNN, Mahalanobis
from probjepa.errors import ProbjepaWarning
from probjepa.evaluation.decisions import TEST
from probjepa.jacobian import jacobian_spectrum
from probjepa.jacobian.latent import fit_normal, latent_term
from probjepa.loading import open_encoder
from probjepa.report.jacobian import jacobian_sections
from probjepa.report.page import Section
from probjepa.scores.detectors import knn_neighbour
from probjepa.training.schedules import step_seed
from probjepa_experiments.datasets import SOURCES, DataSet, ImageSource
from probjepa_experiments.study import (
    PIXELS,
    RANDOM,
    Budget,
    Cell,
    Column,
    Finding,
    Look,
    Measured,
    Measurement,
    Published,
    Result,
    Row,
    Study,
)

EPS = 1e-6
PAPER, DROPPED, WITH_LATENT, LATENT, NEIGHBOURS, MAHALANOBIS = SCORES = (
    "Σ log σ", "without the largest fifth of σ", "Σ log σ + log N(f; m, C)", "log N(f; m, C)", "kNN",
    "Mahalanobis",
)  # fmt: skip
PUBLIC = "public ResNet-20"
AUROC = Column("AUROC, {ood}", "auroc/{ood}/{score}", better="max", plot=True, limits=(0, 1))
MEAN = Column("mean of the sets", "mean auroc/{score}", better="max", limits=(0, 1))


@dataclass(frozen=True, kw_only=True)
class Encoded(DataSet):
    """A data set, and the file of a public encoder's weights."""

    weights: Path


@dataclass(frozen=True)
class EncodedSource(ImageSource):
    """A data set, and below the data root the ``weights`` of an encoder that was trained on it."""

    weights: str = ""

    def missing(self, data_root: Path | None) -> str | None:
        """Return why it cannot be opened, or None."""
        reason = super().missing(data_root)
        if reason is None and data_root is not None and not (data_root / self.weights).is_file():
            return f"no {data_root / self.weights}"
        return reason

    def read(self, data_root: Path, rows: int | None, seed: int) -> Encoded:
        """Open it, with at most ``rows`` training images."""
        opened, weights = super().read(data_root, rows, seed), data_root / self.weights
        digest = hashlib.sha256(opened.fingerprint.encode() + weights.read_bytes()).hexdigest()[:16]
        return Encoded(**{**vars(opened), "fingerprint": digest, "weights": weights})


def encoder_of(cell: Cell, data: Encoded) -> nn.Module:
    """Return the public encoder, or the same with weights drawn anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)  # of the classifier, which is left out
        model: nn.Module = open_encoder("resnet20", weights=data.weights)
    if cell.settings["encoder"] == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(cell.seed, 1))
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                    module.reset_parameters()
    return model.eval()


def run(cell: Cell, data: Encoded, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Score images of every set, drawn by the seed; a trained encoder's pictures are those of its report."""
    generator = np.random.default_rng(step_seed(cell.seed, 0))

    def drawn(images: Images, most: int) -> Images:
        return images.subset(np.sort(generator.permutation(len(images))[:most]))

    reference = drawn(data.train, int(cell.settings["reference"]))
    count = int(cell.settings["images"])
    sets = {TEST: drawn(data.test, count), **{name: drawn(of, count) for name, of in data.ood.items()}}
    spectra: dict[str, Tensor] = {}
    if cell.settings["encoder"] == PIXELS:
        known, h = _pixels(reference), {name: _pixels(of) for name, of in sets.items()}
        scores = {NEIGHBOURS: neighbours(known, h)}
    else:
        model: Any = encoder_of(cell, data)
        known, h = model.embed(reference), {name: model.embed(of) for name, of in sets.items()}
        spectra = {name: jacobian_spectrum(model, of, progress=progress) for name, of in sets.items()}
        scores = scores_of(known, h, spectra)
    figures: dict[str, Any] = {}
    for score, of in scores.items():
        each = {
            name: metrics.ood_metrics(of[TEST], of[name], n_bootstrap=budget.n_bootstrap, seed=cell.seed)[
                "auroc"
            ]
            for name in data.ood
        }
        figures |= {f"auroc/{name}/{score}": asdict(value) for name, value in each.items()}
        figures[f"mean auroc/{score}"] = float(np.mean([value.value for value in each.values()]))
    pictures = {}
    if cell.settings["encoder"] == PUBLIC and cell.seed == 0:
        pictures = {
            "scores": {name: of.round(3).tolist() for name, of in scores[PAPER].items()},
            "spectra": {name: of[:64].float().tolist() for name, of in spectra.items()},
            "images": _packed(sets[TEST].get(slice(None)).numpy()),
            "labels": data.test.labels is not None and np.asarray(sets[TEST].labels).tolist(),
            "classes": sets[TEST].classes,
        }
    return Measured(figures, pictures=pictures)


def scores_of(
    known: Tensor, h: Mapping[str, Tensor], spectra: Mapping[str, Tensor]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return score → set → (N,): JEPA-SCORE and its variants, and the detectors of the same embeddings.

    ``known`` (M, K) are the reference's embeddings, ``h`` (N, K) a set's, ``spectra`` (N, K) the singular
    values of its Jacobians, falling.
    """
    density = fit_normal(known)
    logs = {name: sigma.clamp(min=EPS).log() for name, sigma in spectra.items()}
    volume = {name: of.sum(1) for name, of in logs.items()}
    latent = {name: latent_term(density, of) for name, of in h.items()}
    mahalanobis = Mahalanobis(shrinkage="ledoit-wolf").fit(_unit(known))
    return {
        PAPER: {name: of.numpy() for name, of in volume.items()},
        DROPPED: {name: of[:, of.shape[1] // 5 :].sum(1).numpy() for name, of in logs.items()},
        WITH_LATENT: {name: (of + latent[name]).numpy() for name, of in volume.items()},
        LATENT: {name: of.numpy() for name, of in latent.items()},
        NEIGHBOURS: neighbours(known, h),
        MAHALANOBIS: {name: mahalanobis.score_samples(_unit(of)) for name, of in h.items()},
    }


def neighbours(known: Tensor, h: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Return set → (N,): minus the distance to a reference's k-th neighbour, on unit vectors."""
    detector = KNN(knn_neighbour(len(known))).fit(_unit(known))
    return {name: detector.score_samples(_unit(of)) for name, of in h.items()}


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the sections that a report has of JEPA-SCORE, of the first seed: the paper's figures 1 and 3."""
    for result in results:
        if kept := result.get("pictures"):
            return jacobian_sections({
                "scores": {"jepa": {name: np.array(of) for name, of in kept["scores"].items()}},
                "spectra": {name: np.array(of) for name, of in kept["spectra"].items()},
                "images": _unpacked(kept["images"]),
                "labels": np.array(kept["labels"]) if kept["labels"] else None,
                "classes": kept["classes"],
            })  # fmt: skip
    return []


def _pixels(images: Images) -> Tensor:
    return torch.as_tensor(images.get(slice(None))).flatten(1).double() / 255


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.double(), dim=1)


def _packed(images: NDArray[np.uint8]) -> dict[str, Any]:
    return {"shape": images.shape, "bytes": base64.b64encode(images.tobytes()).decode()}


def _unpacked(packed: Mapping[str, Any]) -> NDArray[np.uint8]:
    content = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8)
    return content.reshape([int(n) for n in packed["shape"]])


def _label(encoder: str, score: str) -> str:
    return f"{encoder}, {score}"


def _above(first: str, second: str) -> Finding:
    def holds(look: Look) -> bool:
        return look(_label(PUBLIC, first), MEAN.label) > look(_label(PUBLIC, second), MEAN.label)

    return Finding(f"{first} is above {second} in the mean of the sets", holds)


_SETTINGS = {"images": 2000, "reference": 5000}
STUDY = Study(
    name="jepa-score-sets",
    title="JEPA-SCORE of a public encoder",
    paper="Gaussian Embeddings: How JEPAs Secretly Learn Your Data Density, arXiv 2510.05949, figures 1, 3",
    question="Does JEPA-SCORE tell sets of images apart with an encoder that nobody here trained?",
    measurement=Measurement(
        run,
        sources={
            "cifar10": EncodedSource(
                SOURCES["cifar10"].title, SOURCES["cifar10"].files, others=SOURCES["cifar10"].others,
                weights="encoders/resnet20_cifar10.safetensors",
            )
        },
        sections=sections,
    ),
    rows=(
        *(Row(_label(PUBLIC, score), settings={"encoder": PUBLIC}, score=score) for score in SCORES),
        *(
            Row(_label(RANDOM, score), settings={"encoder": RANDOM}, score=score)
            for score in (PAPER, NEIGHBOURS, MAHALANOBIS)
        ),
        Row(_label(PIXELS, NEIGHBOURS), settings={"encoder": PIXELS}, score=NEIGHBOURS),
    ),
    columns=(AUROC, MEAN),
    budgets={
        "small": Budget("small", "150 images of every set, 5,000 references", {**_SETTINGS, "images": 150}),
        "full": Budget("full", "2,000 images of every set, 5,000 references", _SETTINGS),
    },
    findings=(
        _above(PAPER, NEIGHBOURS),
        _above(DROPPED, PAPER),
        _above(WITH_LATENT, PAPER),
        _above(WITH_LATENT, LATENT),
    ),
    published=Published("another encoder: the paper's figures are pictures"),
    about="The ResNet-20 was trained with CIFAR-10's labels by others. Each seed draws other images and "
    "references. Σ log σ is the paper's form, over all 64 directions, σ clipped at 1e-6; N(m, C) is fitted "
    "to the references' embeddings; kNN and Mahalanobis are of unit vectors.",
)  # fmt: skip
