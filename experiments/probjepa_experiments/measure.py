"""Every figure of a trained method that some table shows, so that tables can share a cell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from probjepa import metrics
from probjepa.backbones.frozen import evaluating
from probjepa.data import Images
from probjepa.data.labels import shared_labels
from probjepa.data.records import UNLABELLED
from probjepa.errors import ProbjepaError
from probjepa.evaluation.label_free import columns, label_free_scores
from probjepa.methods.base import Method
from probjepa.methods.ema import EMA
from probjepa.methods.probabilistic import ProbabilisticMethod
from probjepa.methods.vje import VJE
from probjepa.scores import encode
from probjepa.scores.detectors import KNNScore, MahalanobisScore
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.study import Measured

_K = 20
Figure = Mapping[str, float | None]
Features = Mapping[str, Tensor]


def measure(
    method: Method,
    data: DataSet,
    *,
    seed: int,
    n_bootstrap: int,
    pixels: bool = False,
    only: Collection[str] = (),
) -> Measured:
    """Return the figures, and a line for each group that could not be measured.

    ``knn20/…`` and ``linear/…`` (softmax regression) on "h", "mu", "ema-h" (Wilson); "mean variance", "kl",
    "anisotropy" and "concentration" of the held-out images (bootstrap); "effective rank";
    ``auroc/SET/SCORE`` and ``fpr95/SET/SCORE`` (bootstrap), out-of-distribution positive;
    ``spearman/MEASURE/PLACE`` of ``uncertainty_geometry`` (bootstrap). Bounds are None where there are none.

    Parameters
    ----------
    method
        in evaluation mode
    pixels
        measure normalised pixels in the place of embeddings: of detectors kNN and Mahalanobis alone
    only
        of "kNN", "linear", "posterior", "AUROC" and "geometry", those that are measured; (): all
    """

    def read(images: Images) -> Features:
        return {"h": embedded(method, images, pixels=True)} if pixels else encode(method, images)

    ood = data.ood if not only or "AUROC" in only else {}
    features = {name: read(images) for name, images in {"test": data.test, **ood}.items()}
    work = _Work(method, data, read(data.train), features, pixels, {"seed": seed, "n_bootstrap": n_bootstrap})
    figures: dict[str, Figure | float] = {}
    notes: list[str] = []
    groups: dict[str, Callable[[], Iterator[tuple[str, Figure | float]]]] = {
        "kNN": work.neighbours, "linear": work.probes, "posterior": work.posterior, "AUROC": work.aurocs,
        "geometry": work.geometry,
    }  # fmt: skip
    for group, make in groups.items():
        if only and group not in only:
            continue
        try:
            figures |= dict(make())
        except ProbjepaError as error:  # a collapse: the other groups still say how far it went
            notes.append(f"{group}: {error}")
    return Measured(figures, notes)


def embedded(method: Method, images: Images, *, pixels: bool = False) -> Tensor:
    """Return the embeddings (N, D) of images, or their normalised pixels."""
    with torch.no_grad():
        read = (lambda x: method.preprocess(x).flatten(1)) if pixels else method.embed
        return torch.cat([read(batch).cpu() for batch, _ in images.batches(512)])


def encoded(method: Method, encoder: torch.nn.Module, images: Images) -> Tensor:
    """Return what an encoder that a method holds, not its own, makes of images (N, D)."""
    with evaluating(encoder):
        batches = images.batches(512)
        prepared = (method.preprocess(batch.to(method.device)) for batch, _ in batches)
        return torch.cat([encoder(batch).float().cpu() for batch in prepared])


def knn_accuracy(data: DataSet, bank: Tensor, queries: Tensor) -> Figure:
    """Return the accuracy of kNN, k = 20, on the held-out images, with its Wilson interval."""
    k = min(_K, len(bank))
    return _accuracy(data, queries, lambda labels, asked: metrics.knn_predict(bank, labels, asked, k=k))


def linear_accuracy(
    data: DataSet,
    bank: Tensor,
    queries: Tensor,
    *,
    method: Literal["lbfgs", "sgd"] = "lbfgs",
    seed: int = 0,
) -> Figure:
    """Return the accuracy of a linear probe on the held-out images, with its Wilson interval."""

    def predict(labels: Tensor, asked: Tensor) -> Any:
        return metrics.linear_predict(bank, labels, asked, method=method, seed=seed)

    return _accuracy(data, queries, predict)


def _accuracy(data: DataSet, queries: Tensor, predict: Callable[[Tensor, Tensor], Any]) -> Figure:
    shared = shared_labels(data.train, data.test)
    assert shared is not None
    labelled = shared.asked != UNLABELLED
    predicted = predict(shared.known, queries[labelled])
    return asdict(metrics.accuracy_interval(predicted == shared.asked[labelled].numpy()))


def averaged_encoder(method: Method) -> torch.nn.Module | None:
    """Return the encoder of a method's averaged copy, where it has one."""
    average = next((module for module in method.modules() if isinstance(module, EMA)), None)
    if average is None:
        return None
    # BYOL averages its projector too; the encoder comes first
    whole = average.module
    return next(iter(whole.children())) if isinstance(whole, torch.nn.Sequential) else whole


@dataclass(frozen=True)
class _Work:
    """A method, what it makes of the training images and of the other sets, and how intervals are drawn."""

    method: Method
    data: DataSet
    known: Features
    features: Mapping[str, Features]
    pixels: bool
    drawing: Mapping[str, Any]

    def neighbours(self) -> Iterator[tuple[str, Figure]]:
        for space, (bank, queries) in self.spaces.items():
            yield f"knn{_K}/{space}", knn_accuracy(self.data, bank, queries)

    def probes(self) -> Iterator[tuple[str, Figure]]:
        for space, (bank, queries) in self.spaces.items():
            yield f"linear/{space}", linear_accuracy(self.data, bank, queries)

    @cached_property
    def spaces(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The spaces that labels are looked for in: embeddings of the training and of the test images."""
        test = self.features["test"]
        spaces = {space: (self.known[space], test[space]) for space in ("h", "mu") if space in self.known}
        teacher = None if self.pixels else averaged_encoder(self.method)
        if teacher is not None:
            bank, queries = (encoded(self.method, teacher, of) for of in (self.data.train, self.data.test))
            spaces["ema-h"] = bank, queries
        return spaces

    def posterior(self) -> Iterator[tuple[str, Figure | float]]:
        test = self.features["test"]
        yield "effective rank", metrics.effective_rank(test["h"])
        if isinstance(self.method, ProbabilisticMethod) and not self.pixels:
            measures = self.method.uncertainty_of_features(test)
            for key in ("mean_variance", "kl", "anisotropy", "concentration"):
                if key in measures:
                    found = metrics.bootstrap_interval(measures[key].numpy(), **self.drawing)
                    yield key.replace("_", " "), asdict(found)

    def aurocs(self) -> Iterator[tuple[str, Figure]]:
        seed = self.drawing["seed"]
        if self.pixels:  # a mixture of thousands of pixels takes hours
            kinds = (KNNScore, MahalanobisScore)
            scores = dict(
                item for kind in kinds for item in columns(kind(seed=seed), self.known, self.features).items()
            )
        else:
            scores = label_free_scores(self.method, self.known, self.features, seed=seed)
        for ood in self.data.ood:
            for score, of in scores.items():
                found = metrics.ood_metrics(of["test"], of[ood], **self.drawing)
                yield f"auroc/{ood}/{score}", asdict(found["auroc"])
                yield f"fpr95/{ood}/{score}", asdict(found["fpr_at_95_tpr_out"])

    def geometry(self) -> Iterator[tuple[str, Figure]]:
        if self.pixels or not isinstance(self.method, VJE):
            return
        test, labels = self.features["test"], self.data.test.labels
        assert labels is not None
        with torch.no_grad():
            nll, measures = -self.method.score_features(test), self.method.uncertainty_of_features(test)
        names = ("kl", "mean_variance", "anisotropy")
        named = {"nll": nll.numpy(), **{name.replace("_", " "): measures[name].numpy() for name in names}}
        found = metrics.uncertainty_geometry(test["mu"], labels, named, **self.drawing)
        for name, places in found["spearman"].items():
            for place, value in places.items():
                yield f"spearman/{name}/{place}", value
