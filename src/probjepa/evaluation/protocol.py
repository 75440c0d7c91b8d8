"""One evaluation: accuracy, detection, geometry and selection, always beside what they must beat.

Every score is computed on one encoding of each set, with the same reference rows, and stands beside raw
pixels and a random-initialisation encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probjepa
from probjepa import metrics
from probjepa.data import Images
from probjepa.data.codec import reencode as through_codec
from probjepa.data.fingerprint import fingerprint
from probjepa.data.overlap import overlap
from probjepa.errors import ConfigError, DataError
from probjepa.evaluation.label_free import columns, label_free_scores
from probjepa.evaluation.openood import openood_summary
from probjepa.evaluation.predictive import evaluate_predictions
from probjepa.evaluation.selective import selective_prediction
from probjepa.methods import Method, ProbabilisticMethod
from probjepa.methods.ijepa import IJEPA
from probjepa.provenance import hardware
from probjepa.scores import encode
from probjepa.scores.detectors import KNNScore, knn_neighbour

Space = tuple[Tensor, Mapping[str, Tensor]]  # the reference's rows (M, D), and those of every set

TEST = "test"
# A linear probe on raw pixels wider than this takes minutes, and kNN says as much.
_WIDEST_PROBE = 2048
_SPECTRA = 64  # images of each set whose spectra are drawn
_VECTORS = 6  # test images, and singular vectors of each, that are drawn


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` returns.

    Attributes
    ----------
    metrics
        JSON-able: settings, accuracy, collapse, variance, predictions, geometry, selection and OOD figures
    arrays
        what the report draws: scores by score and set, embeddings, variances, labels, and the sets
        themselves, so that a gallery reads the few images that it shows
    """

    metrics: dict[str, Any]
    arrays: dict[str, Any]


def evaluate(
    method: Method,
    train: Images,
    test: Images,
    ood: Mapping[str, Images] | None = None,
    *,
    openood: Mapping[str, Images] | None = None,
    reencode: str | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    jepa: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a trained method: nothing is fitted on any row that is scored.

    Test and out-of-distribution images that are also in ``train`` are left out, and counted.

    Parameters
    ----------
    method
        any method; a probabilistic one adds its own scores, its uncertainty and the geometry of its means
    train
        reference rows: the bank of kNN, and what detectors are fitted on
    test
        held-out rows of the same distribution; labels on both sides give accuracies and selective prediction
    ood
        name → set
    openood
        sets of the OpenOOD benchmark, as ``openood_sets`` opens them: evaluated like ``ood``, and averaged
    reencode
        a codec ("jpeg:75", see ``probjepa.data.codec``) that every set goes through first
    seed
        of the random-initialisation baseline, the detectors and the bootstrap
    n_bootstrap
        resamples of each 95 % interval of an OOD metric or a rank correlation
    jepa
        also JEPA-SCORE, in the paper's form and with the latent term of ``train``'s embeddings: D backward
        passes an image

    Raises
    ------
    ConfigError
        for a name that two sets share, or an unknown codec
    DataError
        if a set has no row that is not in ``train``
    """
    given = [TEST, *(ood or {}), *(openood or {})]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        taken = "the in-distribution set" if twice == TEST else "an OpenOOD set"
        raise ConfigError(f"'{twice}' is the name of {taken}: name the OOD set differently")
    sets: dict[str, Images] = {TEST: test, **(ood or {}), **(openood or {})}
    if reencode is not None:
        train = through_codec(train, reencode)
        sets = {name: through_codec(images, reencode) for name, images in sets.items()}
    sets, dropped = _without_train(sets, train)
    test = sets[TEST]

    known = encode(method, train, progress=progress, scored=False)
    features = {name: encode(method, images, progress=progress) for name, images in sets.items()}
    spaces = _spaces(method, train, sets, known, features, seed)
    read = {name: {**of, "inputs": sets[name]} for name, of in features.items()}
    scores = label_free_scores(method, known, read, seed=seed, gradients=jepa, progress=progress)
    for space in ("random-init", "raw pixels"):
        if space in spaces:
            bank, queries = spaces[space]
            of_space = columns(KNNScore(seed=seed), {"h": bank}, {n: {"h": of} for n, of in queries.items()})
            scores[f"knn, {space}"] = of_space["knn"]
    outside = {
        name: {
            score: {
                key: asdict(value)
                for key, value in metrics.ood_metrics(
                    of[TEST], of[name], n_bootstrap=n_bootstrap, seed=seed
                ).items()
            }
            for score, of in scores.items()
        }
        for name in sets
        if name != TEST
    }
    result: dict[str, Any] = {
        "version": probjepa.__version__,
        "hardware": hardware(),
        "settings": {
            "method": method.name,
            **method.settings,
            "seed": seed,
            "n_bootstrap": n_bootstrap,
            "kNN detector's k": knn_neighbour(len(train)),
        },
        "train": train.name,
        "test": test.name,
        "sets": {"train": describe(train)} | {name: describe(images) for name, images in sets.items()},
        "reencode": reencode,
        "left_out_as_in_train": dropped,
        "skipped": {images.name: images.skipped for images in (train, *sets.values()) if images.skipped},
        "accuracy": _accuracies(spaces, train, test, seed),
        "collapse": metrics.collapse_summary(features[TEST]["h"]),
        "ood": outside,
    }
    if openood:
        counts = {name: len(sets[name]) + dropped[name] for name in openood}
        result["openood"] = openood_summary(
            {name: outside[name] for name in openood}, counts, method.preprocess.config(), reencode
        )
    measures: dict[str, Tensor] = {}
    if isinstance(method, ProbabilisticMethod):
        with torch.no_grad():
            measures = {k: v.cpu() for k, v in method.uncertainty_of_features(features[TEST]).items()}
    result |= _uncertainty(measures, method.embedding_dim)
    predicted: dict[str, Any] | None = None
    if isinstance(method, IJEPA):
        result["predictive"], predicted = evaluate_predictions(
            method, test, seed=seed, n_bootstrap=n_bootstrap
        )
    if measures and _has_classes(test):
        assert test.labels is not None
        density = {"nll": -scores["likelihood"][TEST]} if "likelihood" in scores else {}
        result["geometry"] = metrics.uncertainty_geometry(
            features[TEST].get("mu", features[TEST]["h"]),
            test.labels,
            {**density, **measures},
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
    if train.labels is not None and test.labels is not None:
        result["selective"] = selective_prediction(
            known["h"],
            train.labels,
            features[TEST]["h"],
            test.labels,
            scores={name: of[TEST] for name, of in scores.items()},
            measures={name: values.numpy() for name, values in measures.items()},
        )
    arrays = {
        "scores": scores,
        "embeddings": features[TEST]["h"].numpy(),
        "variance": features[TEST]["variance"].numpy() if "variance" in features[TEST] else None,
        "labels": None if test.labels is None else test.labels.numpy(),
        "classes": test.classes,
        "images": test,
        "ood_images": {name: images for name, images in sets.items() if name != TEST},
        "predictive": predicted,
    }
    if jepa:
        arrays |= _jacobian_arrays(method, sets)
    return Evaluation(result, arrays)


def _without_train(sets: Mapping[str, Images], train: Images) -> tuple[dict[str, Images], dict[str, int]]:
    """Return the sets without the images of ``train``, and how many each had."""
    kept, dropped = dict(sets), {}
    for name, images in sets.items():
        seen = overlap(images, train)
        dropped[name] = int(seen.sum())
        if seen.all():
            raise DataError(f"every image of {images.name} is also in {train.name}: give a held-out set")
        if dropped[name]:
            kept[name] = images.subset(~seen)
    return kept, dropped


def _spaces(
    method: Method,
    train: Images,
    sets: Mapping[str, Images],
    known: Mapping[str, Tensor],
    features: Mapping[str, Mapping[str, Tensor]],
    seed: int,
) -> dict[str, Space]:
    """Return the features that accuracies and distances are read from, the baselines among them."""
    spaces: dict[str, Space] = {
        key: (known[key], {name: of[key] for name, of in features.items()})
        for key in ("h", "mu")
        if key in known
    }
    try:
        fresh = method.reinitialised(seed)
    except ConfigError:
        pass  # a backbone of the user's own cannot be made anew
    else:
        spaces["random-init"] = (
            encode(fresh, train, scored=False)["h"],
            {name: encode(fresh, images, scored=False)["h"] for name, images in sets.items()},
        )
    spaces["raw pixels"] = (_pixels(method, train), {n: _pixels(method, s) for n, s in sets.items()})
    return spaces


def _uncertainty(measures: Mapping[str, Tensor], dim: int) -> dict[str, Any]:
    """Return the posterior's summary, of a method that measures these three."""
    if not {"mean_variance", "kl", "anisotropy"} <= set(measures):
        return {}
    return {
        "variance": {
            "mean": measures["mean_variance"].mean().item(),
            "kl_per_dimension": measures["kl"].mean().item() / dim,
            "anisotropy": measures["anisotropy"].mean().item(),
        }
    }


def _has_classes(images: Images) -> bool:
    """Whether there is a margin between classes to speak of."""
    labels = images.labels
    return labels is not None and len(labels) >= 3 and int(labels.min()) < int(labels.max())


def _jacobian_arrays(method: Method, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Spectra of a few images of each set, and the top singular vectors of a few test images."""
    from probjepa.jacobian import jacobian_spectrum, singular_vectors

    few = {name: images.get(slice(0, _SPECTRA)) for name, images in sets.items()}
    chosen = few[TEST][:_VECTORS]
    _, vectors = singular_vectors(method, chosen, count=min(_VECTORS, method.embedding_dim))
    prepared = method.preprocess(chosen)
    low, high = (prepared.amin((1, 2, 3), keepdim=True), prepared.amax((1, 2, 3), keepdim=True))
    pictures = (255 * (prepared - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return {
        "spectra": {name: jacobian_spectrum(method, images).numpy() for name, images in few.items()},
        "singular": {"images": pictures.cpu().numpy(), "vectors": vectors.numpy()},
    }


def _pixels(method: Method, images: Images) -> Tensor:
    with torch.no_grad():
        parts = [method.preprocess(batch).flatten(1) for batch, _ in images.batches(4096)]
    return torch.cat(parts)


def _accuracies(
    spaces: Mapping[str, Space], train: Images, test: Images, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by space and probe with a 95 % Wilson interval; empty where a side has no labels."""
    if train.labels is None or test.labels is None:
        return {}
    known, truth = train.labels, test.labels
    table: dict[str, dict[str, dict[str, float]]] = {}
    for space, (bank, queries) in spaces.items():
        rows: dict[str, dict[str, float]] = {}
        for probe, k, temperature in (("knn20", 20, None), ("knn200", 200, 0.1)):
            predicted = metrics.knn_predict(
                bank, known, queries[TEST], k=min(k, len(bank)), temperature=temperature
            )
            correct = torch.as_tensor(predicted).cpu() == truth
            rows[probe] = asdict(metrics.accuracy_interval(correct.numpy()))
        if bank.shape[1] <= _WIDEST_PROBE:
            linear = metrics.linear_probe(bank, known, queries[TEST], truth, seed=seed)
            hits = np.arange(len(truth)) < round(linear * len(truth))
            rows["linear"] = asdict(metrics.accuracy_interval(hits))
        table[space] = rows
    return table


def describe(images: Images) -> dict[str, Any]:
    """Name, size, and the hash of ids and pixels of a set: a result says exactly what it was computed on."""
    return {
        "name": images.name,
        "images": len(images),
        "shape": list(images.shape),
        "sha256": fingerprint(images),
    }
