"""Every figure of a trained method that some table shows, so that tables can share a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from probjepa import metrics
from probjepa.data import Images
from probjepa.errors import ProbjepaError
from probjepa.evaluation.label_free import columns, label_free_scores
from probjepa.experiments.datasets import DataSet
from probjepa.experiments.study import Measured
from probjepa.methods.base import Method, ProbabilisticMethod, evaluating
from probjepa.methods.ema import EMA
from probjepa.methods.vje import VJE
from probjepa.scores import encode
from probjepa.scores.detectors import KNNScore

_K = 20
Figure = Mapping[str, float | None]


def measure(method: Method, data: DataSet, *, seed: int, n_bootstrap: int, pixels: bool = False) -> Measured:
    """Return the figures, and a line for each group that could not be measured.

    ``knn20/…`` on "h", "mu", "ema-h" (Wilson); "mean variance", "kl", "anisotropy" and "concentration" of
    the held-out images (bootstrap); "effective rank"; ``auroc/SET/SCORE`` (bootstrap), out-of-distribution
    positive; ``spearman/MEASURE/PLACE`` of ``uncertainty_geometry`` (bootstrap). Bounds are None where there
    are none.

    Parameters
    ----------
    method
        in evaluation mode
    pixels
        measure kNN on normalised pixels in the place of embeddings
    """
    if pixels:
        known, features = {"h": _pixels(method, data.train)}, _sets(data, lambda s: {"h": _pixels(method, s)})
    else:
        known, features = encode(method, data.train), _sets(data, lambda s: encode(method, s))
    figures: dict[str, Figure | float] = {}
    notes: list[str] = []
    groups: dict[str, Callable[[], Iterator[tuple[str, Figure | float]]]] = {
        "kNN": lambda: _accuracies(method, data, known, features["test"], pixels),
        "posterior": lambda: _posterior(method, features["test"], n_bootstrap, seed, pixels),
        "AUROC": lambda: _aurocs(method, known, features, n_bootstrap, seed, pixels),
        "geometry": lambda: _geometry(method, data, features["test"], n_bootstrap, seed, pixels),
    }
    for group, make in groups.items():
        try:
            figures |= dict(make())
        except ProbjepaError as error:  # a collapse: the other groups still say how far it went
            notes.append(f"{group}: {error}")
    return Measured(figures, notes)


def _sets(data: DataSet, of: Callable[[Images], dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {name: of(images) for name, images in {"test": data.test, **data.ood}.items()}


def _pixels(method: Method, images: Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([method.preprocess(batch).flatten(1) for batch, _ in images.batches(4096)])


def _accuracies(
    method: Method, data: DataSet, known: Mapping[str, Tensor], test: Mapping[str, Tensor], pixels: bool
) -> Iterator[tuple[str, Figure]]:
    assert data.train.labels is not None
    assert data.test.labels is not None
    spaces = {space: (known[space], test[space]) for space in ("h", "mu") if space in known}
    teacher = None if pixels else averaged_encoder(method)
    if teacher is not None:
        spaces["ema-h"] = (_encode(method, teacher, data.train), _encode(method, teacher, data.test))
    for space, (bank, queries) in spaces.items():
        yield f"knn{_K}/{space}", knn_accuracy(bank, data.train.labels, queries, data.test.labels)


def knn_accuracy(bank: Tensor, known: Tensor, queries: Tensor, truth: Tensor) -> Figure:
    """Return the accuracy of kNN, k = 20, with its Wilson interval."""
    predicted = metrics.knn_predict(bank, known, queries, k=min(_K, len(bank)))
    return asdict(metrics.accuracy_interval(predicted == truth.numpy()))


def averaged_encoder(method: Method) -> torch.nn.Module | None:
    """Return the encoder of a method's averaged copy, where it has one."""
    average = next((module for module in method.modules() if isinstance(module, EMA)), None)
    if average is None:
        return None
    # BYOL averages its projector too; the encoder comes first
    whole = average.module
    return next(iter(whole.children())) if isinstance(whole, torch.nn.Sequential) else whole


def _encode(method: Method, encoder: torch.nn.Module, images: Images) -> Tensor:
    with evaluating(encoder):
        parts = [
            encoder(method.preprocess(batch.to(method.device))).float().cpu()
            for batch, _ in images.batches(512)
        ]
    return torch.cat(parts)


def _posterior(
    method: Method, test: Mapping[str, Tensor], n_bootstrap: int, seed: int, pixels: bool
) -> Iterator[tuple[str, Figure | float]]:
    yield "effective rank", metrics.effective_rank(test["h"])
    if isinstance(method, ProbabilisticMethod) and not pixels:
        measures = {key: value.numpy() for key, value in method.uncertainty_of_features(test).items()}
        for key in ("mean_variance", "kl", "anisotropy", "concentration"):
            if key in measures:
                found = metrics.bootstrap_interval(measures[key], n_bootstrap=n_bootstrap, seed=seed)
                yield key.replace("_", " "), asdict(found)


def _aurocs(
    method: Method,
    known: Mapping[str, Tensor],
    features: Mapping[str, Mapping[str, Tensor]],
    n_bootstrap: int,
    seed: int,
    pixels: bool,
) -> Iterator[tuple[str, Figure]]:
    if pixels:  # a covariance or a mixture of thousands of pixels says nothing, and takes minutes
        scores = columns(KNNScore(seed=seed), known, features)
    else:
        scores = label_free_scores(method, known, features, seed=seed)
    for ood in features:
        if ood != "test":
            for score, of in scores.items():
                found = metrics.ood_metrics(of["test"], of[ood], n_bootstrap=n_bootstrap, seed=seed)["auroc"]
                yield f"auroc/{ood}/{score}", asdict(found)


def _geometry(
    method: Method, data: DataSet, test: Mapping[str, Tensor], n_bootstrap: int, seed: int, pixels: bool
) -> Iterator[tuple[str, Figure]]:
    if pixels or not isinstance(method, VJE):
        return
    assert data.test.labels is not None
    with torch.no_grad():
        uncertainty = method.uncertainty_of_features(test)
        named = {
            "nll": -method.score_features(test),
            "kl": uncertainty["kl"],
            "mean variance": uncertainty["mean_variance"],
            "anisotropy": uncertainty["anisotropy"],
        }
    measures = {name: np.asarray(value) for name, value in named.items()}
    found = metrics.uncertainty_geometry(
        test["mu"], data.test.labels, measures, n_bootstrap=n_bootstrap, seed=seed
    )
    for name, places in found["spearman"].items():
        for place, value in places.items():
            yield f"spearman/{name}/{place}", value
